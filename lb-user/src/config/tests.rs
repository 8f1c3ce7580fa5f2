mod track;

use super::*;
use crate::model::{Auth, Protocol, Scheduler, Target};

mod instances;
mod pools;

const GUIDE: &str = r#"
[[vrrp]]
name = "VI_1"
interface = "eno16777736"
virtual_router_id = 20
priority = 100
password = "6b8a916c"
multicast_group = "224.15.15.15"
addresses = ["10.1.15.50/16"]
notify = "/etc/lbd/notify.sh 'two words'"

[[service]]
address = "10.1.15.50:80"
sorry_server = "local"
[service.check]
type = "http"
interval = "1s"
[[service.backend]]
address = "10.1.15.45"
[[service.backend]]
address = "10.1.15.46:80"
weight = 3
"#;

fn errors(text: &str) -> String {
    parse("lbd.toml", text, "host").map_or_else(|e| e.to_string(), |_| "valid".to_owned())
}

#[test]
fn the_guide_with_defaults() {
    let config = parse("lbd.toml", GUIDE, "host").unwrap();
    assert_eq!(config.router_id, "host");
    assert_eq!(config.dataplane.interfaces, ["eno16777736"]);
    let instance = &config.instances[0];
    assert_eq!(
        (instance.vrid, instance.priority, instance.preempt),
        (20, 100, true)
    );
    assert_eq!(instance.auth, Auth::Pass(*b"6b8a916c"));
    assert_eq!(
        instance.notify.any.as_deref(),
        Some(&["/etc/lbd/notify.sh".to_owned(), "two words".to_owned()][..])
    );
    let service = &config.services[0];
    assert_eq!(service.id.protocol, Protocol::Tcp);
    assert_eq!(service.scheduler, Scheduler::Wrr);
    assert_eq!(
        service.instance.as_deref(),
        Some("VI_1"),
        "found by its address"
    );
    assert_eq!(service.sorry, [Target::Local]);
    let weights: Vec<u32> = service.backends.iter().map(|b| b.weight).collect();
    assert_eq!(weights, [1, 3]);
}

/// A change of the guide's file, and what the error must say about it.
#[test]
fn what_is_refused_and_how() {
    let rows: &[(&str, &str, &[&str])] = &[
        (
            "weight = 3",
            "wieght = 3",
            &[
                "lbd.toml:22:1: unknown key `wieght`",
                "did you mean `weight`?",
            ],
        ),
        (
            "weight = 3",
            "weight = -1",
            &[
                "lbd.toml:22:10: `weight` is -1, which is out of range",
                "0 to 65535",
            ],
        ),
        (
            "weight = 3",
            "weight = \"3\"",
            &["`weight` must be an integer", "found string"],
        ),
        (
            "10.1.15.45",
            "10.1.15.450",
            &["`10.1.15.450` is not an IP address"],
        ),
        (
            "10.1.15.45",
            "10.1.15.46",
            &["duplicate real server 10.1.15.46"],
        ),
        ("10.1.15.45", "10.1.15.50", &["is the VIP itself"]),
        (
            "10.1.15.46:80",
            "10.1.15.46:8080",
            &["port 8080 differs", "only forward = \"nat\" changes"],
        ),
        (
            "sorry_server = \"local\"",
            "sorry_server = \"127.0.0.1:8080\"",
            &["port 8080 differs"],
        ),
        (
            "virtual_router_id = 20",
            "virtual_router_id = 256",
            &["out of range", "1 to 255"],
        ),
        (
            "virtual_router_id = 20",
            "",
            &["`vrrp` needs `virtual_router_id`"],
        ),
        ("priority = 100", "priority = 0", &["out of range"]),
        (
            "priority = 100",
            "advert_interval = \"100ms\"",
            &["1 to 255 whole seconds"],
        ),
        (
            "priority = 100",
            "advert_interval = 1",
            &["a duration with its unit"],
        ),
        ("6b8a916c", "6b8a916cd", &["1 to 8 bytes"]),
        (
            "224.15.15.15",
            "10.0.0.1",
            &["10.0.0.1 is not a multicast address"],
        ),
        (
            "10.1.15.50/16",
            "10.1.15.50/33",
            &["is not an IP address with a prefix length"],
        ),
        (
            "eno16777736",
            "an-interface-with-a-long-name",
            &["cannot be an interface name"],
        ),
        (
            "type = \"http\"",
            "type = \"htpp\"",
            &["`type` cannot be \"htpp\"", "\"http\", \"https\""],
        ),
        (
            "type = \"http\"",
            "type = \"tcp\"\npath = \"/\"",
            &["`path` belongs to checks of type \"http\""],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"gre\"",
            &["`forward` cannot be \"gre\"", "\"dr\", \"tunnel\", \"nat\""],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"dr\"\ntunnel_type = \"gue\"",
            &["`tunnel_type` without `forward = \"tunnel\"`"],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"tunnel\"\ntunnel_type = \"vxlan\"",
            &[
                "`tunnel_type` cannot be \"vxlan\"",
                "\"ipip\", \"gue\", \"gre\"",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"tunnel\"\ntunnel_type = \"gue\"",
            &["type \"gue\" needs `tunnel_port`", "fou add port"],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"tunnel\"\ntunnel_type = \"gue\"\ntunnel_port = 65536",
            &["`tunnel_port` is 65536", "1 to 65535"],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"tunnel\"\ntunnel_type = \"gre\"\ntunnel_port = 6080\ntunnel_checksum = \"remcsum\"",
            &[
                "type \"gre\" has no port",
                "type \"gre\" has no checksum \"remcsum\"",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "forward = \"tunnel\"\ntunnel_checksum = \"csum\"",
            &["type \"ipip\" has no checksum"],
        ),
        (
            "sorry_server = \"local\"",
            "vrrp = \"VI_2\"",
            &["there is no VRRP instance `VI_2`", "VI_1"],
        ),
        (
            "sorry_server = \"local\"",
            "scheduler = \"what\"",
            &[
                "`scheduler` cannot be \"what\"",
                "\"rr\", \"wrr\", \"lc\", \"wlc\", \"sh\", \"mh\", \"fo\"",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "scheduler_flags = [\"mh-port\"]",
            &[
                "scheduler wrr has no flag `mh-port`",
                "only sh and mh have flags",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "scheduler = \"mh\"\nscheduler_flags = [\"sh-port\"]",
            &["scheduler mh has no flag `sh-port`", "mh-port, mh-fallback"],
        ),
        (
            "sorry_server = \"local\"",
            "persistence_prefix = 24",
            &["`persistence_prefix` without `persistence_timeout`"],
        ),
        (
            "sorry_server = \"local\"",
            "persistence_engine = \"sip\"",
            &[
                "`persistence_engine` without `persistence_timeout`",
                "`persistence_engine` is for protocol \"udp\"",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "persistence_timeout = \"5m\"\npersistence_engine = \"http\"",
            &["`persistence_engine` cannot be \"http\""],
        ),
        (
            "sorry_server = \"local\"",
            "persistence_timeout = \"5m\"\npersistence_prefix = 33",
            &[
                "`persistence_prefix` is 33, which is out of range",
                "0 to 32",
            ],
        ),
        (
            "sorry_server = \"local\"",
            "new_connections_burst = 5",
            &["`new_connections_burst` without `new_connections_per_second`"],
        ),
        (
            "weight = 3",
            "upper_threshold = 5\nlower_threshold = 6",
            &["`lower_threshold` 6 is above `upper_threshold` 5"],
        ),
        (
            "address = \"10.1.15.50:80\"",
            "address = \"10.1.15.50:2000-1000\"",
            &[
                "`10.1.15.50:2000-1000` is not an address with a port",
                "all ports",
            ],
        ),
        (
            "address = \"10.1.15.50:80\"",
            "address = \"[fe80::1]:80\"",
            &["fe80::1 is not a unicast address of a network"],
        ),
        (
            "address = \"10.1.15.50:80\"",
            "address = \"[2001:db8::50]:80\"",
            &["10.1.15.45 is not of the VIP's version of IP", "tunnel"],
        ),
        (
            "[[service]]",
            "[protection]\nblock = [\"10.0.0.1/8\"]\n[[service]]",
            &["`10.0.0.1/8` is not a prefix", "without host bits"],
        ),
        (
            "[[service]]",
            "[protection]\nblock = [\"10.0.0.0/8\"]\nallow = [\"10.0.0.0/8\"]\n[[service]]",
            &["10.0.0.0/8 is both blocked and allowed"],
        ),
        ("priority = 100", "version = 4", &["`version` is 2 or 3"]),
        (
            "priority = 100",
            "version = 3",
            &["version 3 has no password", "use [vrrp.auth_hmac]"],
        ),
        (
            "password = \"6b8a916c\"",
            "version = 3\nadvert_interval = \"15ms\"",
            &["of VRRP version 3 is 10ms to 40s 950ms", "twelve bits"],
        ),
        (
            "password = \"6b8a916c\"",
            "authentication = \"ah\"",
            &["`authentication` without `password`"],
        ),
        (
            "priority = 100",
            "version = 2\nchecksum = \"auto\"",
            &["`checksum` is for version 3 over IPv4"],
        ),
        (
            "priority = 100",
            "unicast_peers = [\"2001:db8::44\"]",
            &["`unicast_peers` must be an IPv4 address"],
        ),
        (
            "priority = 100",
            "unicast_peers = [\"10.1.15.44\", \"10.1.15.44\"]",
            &["10.1.15.44 is a group, or named twice"],
        ),
        (
            "[\"10.1.15.50/16\"]",
            "[\"10.1.15.50/16\", \"2001:db8::50/64\"]",
            &[
                "IPv4 and IPv6 addresses in one instance",
                "`excluded_addresses`",
            ],
        ),
        (
            "[\"10.1.15.50/16\"]",
            "[\"10.1.15.50/16\"]\nexcluded_addresses = [\"10.1.15.50/32\"]",
            &["duplicate virtual address 10.1.15.50"],
        ),
        (
            "priority = 100",
            "unicast_min_ttl = 9\nunicast_max_ttl = 8",
            &["`unicast_min_ttl` is above `unicast_max_ttl`"],
        ),
        (
            "priority = 100",
            "sync_group = \"VG\"",
            &["VI_1 is alone in the sync group `VG`"],
        ),
        ("interval = \"1s\"", "interval = \"1s", &["not valid TOML"]),
        (
            "priority = 100",
            "priority = 100\npriority = 101",
            &["not valid TOML", "duplicate key"],
        ),
        (
            "[[service]]",
            "[service]",
            &["`service` must be an array of tables"],
        ),
    ];
    for (old, new, expected) in rows {
        let text = GUIDE.replacen(old, new, 1);
        assert_ne!(text, GUIDE, "{old}");
        let message = errors(&text);
        for part in *expected {
            assert!(message.contains(part), "{new}: no `{part}` in\n{message}");
        }
    }
}

#[test]
fn duplicates_over_tables_are_refused() {
    let instance = GUIDE[..GUIDE.find("[[service]]").unwrap()].to_owned();
    let second = instance.replace("VI_1", "VI_2");
    let message = errors(&format!("{GUIDE}{second}"));
    assert!(
        message.contains("duplicate virtual_router_id 20 on eno16777736: VI_1 has it already"),
        "{message}"
    );
    assert!(
        message.contains("duplicate virtual address 10.1.15.50: VI_1 has it already"),
        "{message}"
    );
    let message = errors(&format!(
        "{GUIDE}{}",
        &GUIDE[GUIDE.find("[[service]]").unwrap()..]
    ));
    assert!(
        message.contains("duplicate service TCP 10.1.15.50:80"),
        "{message}"
    );
}

#[test]
fn ranges_of_ports_may_not_overlap() {
    let service = |ports: &str| {
        format!(
            "[[service]]\naddress = \"10.1.15.50:{ports}\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n"
        )
    };
    let of = |all: &[&str]| all.iter().map(|ports| service(ports)).collect::<String>();
    let message = errors(&format!("{GUIDE}{}", of(&["1000-2000", "1500-2500"])));
    assert!(
        message.contains("ports 1500-2500 overlap those of service TCP 10.1.15.50:1000-2000"),
        "{message}"
    );
    let fine = format!("{GUIDE}{}", of(&["1000-2000", "2001-3000", "1500", "0"]));
    assert!(parse("lbd.toml", &fine, "host").is_ok());
    let many: Vec<String> = (0..33)
        .map(|n| format!("{}-{}", 1000 + n * 2, 1001 + n * 2))
        .collect();
    let many: String = many.iter().map(|ports| service(ports)).collect();
    let message = errors(&format!("{GUIDE}{many}"));
    assert!(
        message.contains("more than 32 ranges of ports of 10.1.15.50"),
        "{message}"
    );
}

#[test]
fn a_service_needs_a_real_server() {
    let text = &GUIDE[..GUIDE.find("[[service.backend]]").unwrap()];
    assert!(errors(text).contains("has no real server"));
}

#[test]
fn all_errors_at_once_in_file_order() {
    let text = GUIDE
        .replace("priority = 100", "priority = 300")
        .replace("weight = 3", "weight = 70000");
    let message = errors(&text);
    let (first, second) = (
        message.find("`priority`").unwrap(),
        message.find("`weight`").unwrap(),
    );
    assert!(first < second);
    assert!(message.ends_with("lbd.toml: 2 errors"), "{message}");
}

#[test]
fn an_error_shows_its_line() {
    let message = errors(&GUIDE.replace("weight = 3", "weight = 70000"));
    assert!(
        message.contains(" 22 | weight = 70000\n    |          ^^^^^\n"),
        "{message}"
    );
}

#[test]
fn changes_in_words() {
    let old = parse("a", GUIDE, "host").unwrap();
    let text = GUIDE
        .replace("weight = 3", "weight = 4")
        .replace("priority = 100", "priority = 90");
    let new = parse("a", &text, "host").unwrap();
    assert_eq!(
        changes(&old, &new),
        [
            "VRRP instance VI_1 changed, priority 100 -> 90",
            "TCP 10.1.15.50:80: weight of 10.1.15.46 3 -> 4"
        ]
    );
    assert!(needs_restart(&old, &new).is_empty());
}

mod checks;

mod properties {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\PC\\n]{0,400}") {
            let _ = super::parse("f", &text, "host");
        }

        /// Cutting and splicing the guide's own file reaches deeper than random text does.
        #[test]
        fn no_mutation_panics(at in 0usize..600, length in 0usize..60, with in "[\\PC\\n]{0,12}") {
            let mut bytes: Vec<char> = super::GUIDE.chars().collect();
            let start = at.min(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, with.chars());
            let text: String = bytes.into_iter().collect();
            let _ = super::parse("f", &text, "host");
        }
    }
}

/// Addresses, routes and rules, and what is refused of them.
#[test]
fn what_lies_in_the_network_stack() {
    use crate::model::network::{Action, Item, MAIN_TABLE, Scope};

    let with = |text: &str| GUIDE.replace("notify = ", &format!("{text}\nnotify = "));
    let valid = |text: &str| parse("lbd.toml", text, "host").unwrap();
    let config = valid(&with(
        "use_virtual_mac = true\nexcluded_addresses = [{ address = \"10.1.15.51\", dev = \"lo\", scope = \"host\" }]",
    ));
    let instance = &config.instances[0];
    assert_eq!(instance.device(), "vrrp.20");
    assert_eq!(instance.virtual_mac_address(), [0, 0, 0x5e, 0, 1, 20]);
    assert!(instance.network.accept);
    let Item::Address(address) = &instance.items()[1] else {
        panic!("{:?}", instance.items());
    };
    assert_eq!(
        (address.device.as_str(), address.options.scope),
        ("lo", Some(Scope::Host))
    );
    let text = format!(
        "{GUIDE}[[vrrp.virtual_route]]\nto = \"default\"\nvia = \"10.1.15.1\"\n\
         [[vrrp.virtual_rule]]\npriority = 7\nto = \"2001:db8::/32\"\ntype = \"prohibit\"\n"
    );
    // The last instance's tables come before the services'.
    let (head, tail) = text.split_at(text.find("[[vrrp.virtual_route]]").unwrap());
    let at = head.find("[[service]]").unwrap();
    let text = format!("{}{tail}{}", &head[..at], &head[at..]);
    let network = &valid(&text).instances[0].network;
    assert_eq!(
        network.routes[0].to_string(),
        "0.0.0.0/0 via 10.1.15.1 metric 0"
    );
    assert_eq!(network.routes[0].table, MAIN_TABLE);
    assert_eq!(
        (network.rules[0].action, network.rules[0].is_v6),
        (Action::Prohibit, true)
    );
    let statics = |text: &str| errors(&format!("{text}\n{GUIDE}"));
    let route = "[[static_route]]\nto = \"192.0.2.0/24\"\n";
    let rows = [
        (
            with("vmac_interface = \"v\""),
            "`vmac_interface` without `use_virtual_mac = true`",
        ),
        (
            with("excluded_addresses = [7]"),
            "a list of addresses, each a string or a table",
        ),
        (
            with("excluded_addresses = [{ address = \"2001:db8::1\", label = \"x\" }]"),
            "IPv6 addresses have no `label`",
        ),
        (
            with("excluded_addresses = [{ adress = \"10.1.15.51\" }]"),
            "did you mean `address`?",
        ),
    ];
    for (text, expected) in rows {
        let errors = errors(&text);
        assert!(errors.contains(expected), "{expected}\n{errors}");
    }
    let rows = [
        (
            "[[static_address]]\naddress = \"192.0.2.1/24\"".to_owned(),
            "needs `dev`",
        ),
        (route.to_owned(), "a route needs `via` or `dev`"),
        (
            format!("{route}via = \"fe80::1\""),
            "another version of IP than that of `to`",
        ),
        (
            format!("{route}via = \"10.1.15.1\"\ntype = \"blackhole\""),
            "leads nowhere",
        ),
        (
            format!("{route}dev = \"eth0\"\nonlink = true"),
            "`onlink` needs `via` and `dev`",
        ),
        (
            format!("{route}dev = \"eth0\"\n{route}dev = \"eth1\""),
            "exclude each other",
        ),
        (
            "[[static_route]]\nto = \"default\"\ndev = \"eth0\"".to_owned(),
            "of which version of IP?",
        ),
        (
            "[[static_rule]]\npriority = 5\ntable = 5".to_owned(),
            "a rule of which version of IP?",
        ),
        (
            "[[static_rule]]\nfamily = \"ipv4\"\ntable = 5".to_owned(),
            "needs `priority`",
        ),
        (
            "[[static_rule]]\nfamily = \"ipv4\"\npriority = 5".to_owned(),
            "a rule needs `table`",
        ),
        (
            "[[static_rule]]\nfrom = \"::/0\"\nto = \"10.0.0.0/8\"\npriority = 5\ntable = 9"
                .to_owned(),
            "IPv4 and IPv6 in one rule",
        ),
    ];
    for (text, expected) in rows {
        let errors = statics(&text);
        assert!(errors.contains(expected), "{text}\n{expected}\n{errors}");
    }
}
