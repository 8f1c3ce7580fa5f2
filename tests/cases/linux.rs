//! What a director does to its host's network: all of it is taken away again, byte for byte, and
//! what was there before stays.

use std::time::Duration;

use lab::{Director, Guide, Lab, Node, guide, guide::VIP, http, network::INTERFACE, wait};
use lb_user::model::VrrpState;

/// What the host has of its own: an address, a route and a rule that lbd's configuration names too.
const OWN: [&[&str]; 5] = [
    &["address", "add", "10.1.200.1/24", "dev", INTERFACE],
    &[
        "route",
        "add",
        "198.51.100.0/24",
        "via",
        "10.1.15.1",
        "metric",
        "7",
    ],
    &[
        "rule",
        "add",
        "priority",
        "900",
        "from",
        "198.51.100.9",
        "lookup",
        "main",
    ],
    &[
        "-6",
        "route",
        "add",
        "2001:db8:5::/48",
        "via",
        "fe80::1",
        "dev",
        INTERFACE,
    ],
    &[
        "-6",
        "rule",
        "add",
        "priority",
        "900",
        "from",
        "2001:db8:5::9",
        "lookup",
        "main",
    ],
];

const STATICS: &str = "
[[static_address]]
address = \"10.1.200.1/24\"
dev = \"eno16777736\"
[[static_address]]
address = \"10.1.201.1/24\"
dev = \"lo\"
scope = \"link\"
[[static_address]]
address = \"2001:db8:200::1/64\"
dev = \"eno16777736\"
[[static_route]]
to = \"198.51.100.0/24\"
via = \"10.1.15.1\"
metric = 7
[[static_route]]
to = \"198.51.101.0/24\"
via = \"10.1.15.1\"
[[static_route]]
type = \"unreachable\"
to = \"2001:db8:6::/48\"
table = 100
[[static_rule]]
priority = 900
from = \"198.51.100.9\"
table = 254
[[static_rule]]
priority = 901
family = \"ipv6\"
fwmark = 0x10
fwmask = 0xff
table = 100
";

const ROUTES: &str = "
[[vrrp.virtual_route]]
to = \"default\"
via = \"10.1.15.1\"
dev = \"eno16777736\"
source = \"10.1.15.50\"
metric = 50
[[vrrp.virtual_route]]
to = \"203.0.113.0/24\"
via = \"10.99.0.1\"
dev = \"eno16777736\"
onlink = true
table = 70000
mtu = 1400
[[vrrp.virtual_route]]
type = \"blackhole\"
to = \"203.0.114.0/24\"
[[vrrp.virtual_route]]
to = \"2001:db8:5::/48\"
via = \"fe80::1\"
dev = \"eno16777736\"
[[vrrp.virtual_route]]
to = \"2001:db8:7::/48\"
dev = \"eno16777736\"
[[vrrp.virtual_rule]]
priority = 1000
from = \"10.1.15.50\"
table = 70000
[[vrrp.virtual_rule]]
priority = 1001
type = \"prohibit\"
iif = \"eno16777736\"
to = \"203.0.115.0/24\"
[[vrrp.virtual_rule]]
priority = 1002
from = \"10.0.0.0/8\"
invert = true
table = 100
[[vrrp.virtual_rule]]
priority = 900
from = \"2001:db8:5::9\"
table = 254
";

/// Part of an instance's table.
fn instance(name: &str, vrid: u8, priority: u8, addresses: &str, more: &str) -> String {
    format!(
        "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nversion = 3\nadvert_interval = \"100ms\"\n\
         virtual_router_id = {vrid}\npriority = {priority}\naddresses = [{addresses}]\n{more}"
    )
}

fn own(node: &Node) {
    let link_local = "fe80::43/64";
    node.ip(&["address", "add", link_local, "dev", INTERFACE, "nodad"])
        .unwrap();
    for arguments in OWN {
        node.ip(arguments).unwrap();
    }
}

/// One director with everything that can be put in place.
fn alone(more: &str) -> (Director, Lab) {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    own(&node);
    let addresses =
        "\"10.1.15.50/16\", { address = \"10.1.15.51/32\", dev = \"lo\", label = \"lo:vip\" }";
    let more = format!("{more}excluded_addresses = [\"2001:db8::51/64\"]\n{ROUTES}");
    let config = STATICS.to_owned() + &instance("VI_1", 20, 100, addresses, &more);
    (Director::new(&lab, &node, &config).unwrap(), lab)
}

fn master(director: &mut Director, lab: &Lab) -> String {
    director.start(lab).unwrap();
    director.wait_for("VI_1", VrrpState::Master).unwrap();
    // Everything is in place before the transition is in the log.
    wait::until_true("MASTER in the log", Duration::from_secs(3), || {
        Ok(director.log().contains("-> MASTER"))
    })
    .unwrap();
    director.node.picture().unwrap()
}

/// Waits for a picture, and fails with the lines that differ.
fn wait_for_picture(what: &str, node: &Node, wanted: &str) {
    let seen = wait::until_true(what, Duration::from_secs(3), || {
        Ok(node.picture()? == wanted)
    });
    if seen.is_err() {
        assert_picture(node, wanted);
    }
}

fn assert_picture(node: &Node, wanted: &str) {
    let picture = node.picture().unwrap();
    let (new, gone) = (new_lines(&picture, wanted), new_lines(wanted, &picture));
    assert!(
        picture == wanted,
        "more: {new:#?}\nless: {gone:#?}\n{picture}"
    );
}

/// Lines of a picture that another does not have.
fn new_lines(picture: &str, before: &str) -> Vec<String> {
    let is_new = |line: &&str| !before.lines().any(|other| other == *line);
    let trimmed = picture
        .lines()
        .filter(is_new)
        .map(|line| line.trim().to_owned());
    trimmed.collect()
}

#[test]
fn a_master_puts_everything_in_place_and_takes_it_away() {
    let (mut director, lab) = alone("");
    let before = director.node.picture().unwrap();
    let while_master = master(&mut director, &lab);
    let new = new_lines(&while_master, &before).join("\n");
    for line in [
        "inet 10.1.15.50/16 brd 10.1.255.255 scope global secondary eno16777736",
        "inet 10.1.15.51/32 scope global lo:vip",
        "inet 10.1.201.1/24 brd 10.1.201.255 scope link lo",
        "default via 10.1.15.1 dev eno16777736 proto 112 src 10.1.15.50 metric 50",
        "203.0.113.0/24 via 10.99.0.1 dev eno16777736 table 70000 proto 112 onlink mtu 1400",
        "blackhole 203.0.114.0/24 proto 112",
        "198.51.101.0/24 via 10.1.15.1 dev eno16777736 proto 112",
        "unreachable 2001:db8:6::/48 dev lo table 100 proto 112 metric 1024",
        "2001:db8:7::/48 dev eno16777736 proto 112 metric 1024",
        "1000:\tfrom 10.1.15.50 lookup 70000 proto 112",
        "1001:\tfrom all to 203.0.115.0/24 iif eno16777736 prohibit proto 112",
        "1002:\tnot from 10.0.0.0/8 lookup 100 proto 112",
        "901:\tfrom all fwmark 0x10/0xff lookup 100 proto 112",
    ] {
        assert!(new.contains(line), "{line}\nis not in\n{new}");
    }
    // Of the same routes there is one; rules of another origin are other rules.
    assert!(
        !new.contains("198.51.100.0/24") && !new.contains("2001:db8:5::/48"),
        "{new}"
    );
    director.stop().unwrap();
    assert_picture(&director.node, &before);
}

/// Whatever somebody removes by hand is back at once.
#[test]
fn removed_routes_and_rules_are_put_back() {
    let (mut director, lab) = alone("");
    let wanted = master(&mut director, &lab);
    // What is put back comes last.
    let sorted = |picture: &str| {
        let mut lines: Vec<&str> = picture.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    let wanted = sorted(&wanted);
    for arguments in [
        &["route", "delete", "default"][..],
        &["route", "delete", "203.0.113.0/24", "table", "70000"],
        &["route", "delete", "blackhole", "203.0.114.0/24"],
        &["-6", "route", "delete", "2001:db8:7::/48"],
        &["rule", "delete", "priority", "1000"],
        &["-6", "rule", "delete", "priority", "901"],
        &["address", "delete", "10.1.15.51/32", "dev", "lo"],
        &["address", "delete", "10.1.201.1/24", "dev", "lo"],
    ] {
        director.node.ip(arguments).unwrap();
        let is_undone = || Ok(sorted(&director.node.picture()?) == wanted);
        if wait::until_true("undone", Duration::from_secs(2), is_undone).is_err() {
            let picture = director.node.picture().unwrap();
            let less = new_lines(&wanted, &picture);
            let more = new_lines(&picture, &wanted);
            panic!(
                "{arguments:?} is not undone: {less:#?}, more: {more:#?}\n{}",
                director.log()
            );
        }
    }
    let undone = director
        .log()
        .matches("was removed by somebody else")
        .count();
    assert_eq!(undone, 8, "{}", director.log());
}

/// What the kernel refuses is a problem until it does not any more, and then in place; the rest is there
/// meanwhile.
#[test]
fn a_refused_route_is_tried_again() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let route = "[[vrrp.virtual_route]]\nto = \"203.0.113.0/24\"\nvia = \"10.77.0.1\"\n\
                 [[vrrp.virtual_rule]]\npriority = 1000\nfrom = \"10.1.15.50\"\ntable = 100\n";
    let config = instance("VI_1", 20, 100, "\"10.1.15.50/16\"", route);
    let mut director = Director::new(&lab, &node, &config).unwrap();
    let picture = master(&mut director, &lab);
    assert!(
        picture.contains("10.1.15.50/16") && picture.contains("1000:"),
        "{picture}"
    );
    let problems = || director.status().unwrap().problems.join("\n");
    let complaint = "cannot add route 203.0.113.0/24 via 10.77.0.1";
    assert!(problems().contains(complaint), "{}", problems());
    // Nobody tells the daemon that the router can be reached now.
    node.ip(&["address", "add", "10.77.0.2/24", "dev", INTERFACE])
        .unwrap();
    wait::until_true("the route is there", Duration::from_secs(10), || {
        Ok(node.picture()?.contains("203.0.113.0/24 via 10.77.0.1") && problems().is_empty())
    })
    .unwrap();
    assert_eq!(
        director.log().matches(complaint).count(),
        1,
        "told once\n{}",
        director.log()
    );
    director.stop().unwrap();
    node.ip(&["address", "delete", "10.77.0.2/24", "dev", INTERFACE])
        .unwrap();
    let picture = node.picture().unwrap();
    assert!(
        !picture.contains("203.0.113.0") && !picture.contains("1000:"),
        "{picture}"
    );
}

/// What was there before is still there after a daemon that was killed and one that followed it.
#[test]
fn a_killed_daemon_s_traces_are_cleared() {
    let (mut director, lab) = alone("");
    let before = director.node.picture().unwrap();
    master(&mut director, &lab);
    director.kill().unwrap();
    assert_ne!(director.node.picture().unwrap(), before);
    // As it was configured, and taken over.
    master(&mut director, &lab);
    director.kill().unwrap();
    // With nothing of it configured any more.
    director.configure("").unwrap();
    director.start(&lab).unwrap();
    assert_picture(&director.node, &before);
    director.stop().unwrap();
    assert_picture(&director.node, &before);
}

/// Between two directors, and between instances of one by reloads.
#[test]
fn failovers_and_reloads_leave_nothing_behind() {
    let lab = Lab::new().unwrap();
    let mut directors = [("node1", 43), ("node2", 44)].map(|(name, last)| {
        let node = lab.node(name, [10, 1, 15, last]).unwrap();
        own(&node);
        node
    });
    directors[1]
        .ip(&["address", "add", "fe80::44/64", "dev", INTERFACE, "nodad"])
        .unwrap();
    let befores = directors.each_ref().map(|node| node.picture().unwrap());
    let route = |to: &str, metric: u8| {
        format!("[[vrrp.virtual_route]]\nto = \"{to}\"\nvia = \"10.1.15.1\"\nmetric = {metric}\n")
    };
    let rule = "[[vrrp.virtual_rule]]\npriority = 1000\nfrom = \"10.1.15.50\"\ntable = 100\n";
    let first = |priority: u8| {
        let more = route("203.0.113.0/24", 5) + rule;
        instance("VI_1", 20, priority, "\"10.1.15.50/16\"", &more)
            + &instance("VI_2", 30, priority, "\"10.1.15.60/16\"", "")
    };
    let mut pair = [(0, 100), (1, 90)].map(|(index, priority): (usize, u8)| {
        let mut director = Director::new(&lab, &directors[index], &first(priority)).unwrap();
        director.start(&lab).unwrap();
        director
    });
    pair[0].wait_for("VI_1", VrrpState::Master).unwrap();
    pair[0].wait_for("VI_2", VrrpState::Master).unwrap();
    let backup = directors[1].picture().unwrap();
    pair[0].stop().unwrap();
    assert_picture(&directors[0], &befores[0]);
    pair[1].wait_for("VI_1", VrrpState::Master).unwrap();
    let holds = |node: &Node| Ok(node.picture()?.contains("203.0.113.0/24"));
    wait::until_true("node2 has the route", Duration::from_secs(2), || {
        holds(&directors[1])
    })
    .unwrap();
    pair[0].start(&lab).unwrap();
    pair[0].wait_for("VI_1", VrrpState::Master).unwrap();
    wait_for_picture("node2 is as before", &directors[1], &backup);
    // The address, route and rule move to the other instance, and the route leads elsewhere.
    let more = route("203.0.113.0/24", 5).replace("15.1\"", "15.2\"") + rule;
    let second = instance("VI_1", 20, 100, "\"10.1.15.60/16\"", "")
        + &instance("VI_2", 30, 100, "\"10.1.15.50/16\"", &more);
    pair[0].configure(&second).unwrap();
    pair[0].ctl(&["reload"]).unwrap();
    let picture = directors[0].picture().unwrap();
    for line in [
        "10.1.15.50/16",
        "10.1.15.60/16",
        "203.0.113.0/24 via 10.1.15.2",
        "1000:",
    ] {
        assert!(
            picture.contains(line),
            "{line}\n{picture}\n{}",
            pair[0].log()
        );
    }
    assert!(
        !picture.contains("203.0.113.0/24 via 10.1.15.1 "),
        "{picture}"
    );
    pair[0]
        .configure(&instance("VI_1", 20, 100, "\"10.1.15.60/16\"", ""))
        .unwrap();
    pair[0].ctl(&["reload"]).unwrap();
    let picture = directors[0].picture().unwrap();
    for gone in ["10.1.15.50", "203.0.113.0", "1000:"] {
        assert!(!picture.contains(gone), "{gone}\n{picture}");
    }
    for director in &mut pair {
        director.stop().unwrap();
    }
    for (node, before) in directors.iter_mut().zip(&befores) {
        assert_picture(node, before);
    }
}

/// The interface of a director is removed and made again: VRRP and forwarding come back without a
/// restart.
#[test]
fn an_interface_that_is_made_again_forwards() {
    let guide = Guide::start().unwrap();
    let others = http::get_many(&guide.client, VIP, 4).unwrap();
    assert!(!others.contains(&"sorry".to_owned()), "{others:?}");
    let old = guide.node1.node.ifindex().unwrap();
    guide.node1.node.ip(&["link", "delete", INTERFACE]).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Fault).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    let problems = guide.node1.status().unwrap().problems.join("\n");
    assert!(
        problems.contains("the XDP program does not run on eno16777736"),
        "{problems}"
    );
    guide.lab.plug(&guide.node1.node).unwrap();
    assert_ne!(guide.node1.node.ifindex().unwrap(), old);
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    assert!(guide.node1.node.has_xdp().unwrap());
    let packets = || -> u64 {
        let service = guide.node1.service().unwrap();
        service.backends.iter().map(|b| b.packets).sum()
    };
    let before = packets();
    let mut answers = http::get_many(&guide.client, VIP, 20).unwrap();
    answers.sort();
    assert_eq!(answers[..10], ["rs1"; 10]);
    assert_eq!(answers[10..], ["rs2"; 10]);
    assert!(packets() > before, "the program forwarded them");
    // The other's last advert is a problem for some seconds.
    wait::until_true("no problem is left", Duration::from_secs(6), || {
        Ok(guide.node1.status()?.problems.is_empty())
    })
    .unwrap();
}

/// A host that does not accept takes nothing for the address, but ARP, forwarding and the sorry
/// server of its own go on.
#[test]
fn an_address_that_is_not_accepted() {
    let mut guide = Guide::prepare().unwrap();
    let closed = guide::config(&guide::Settings::of(100))
        .replace("advert_interval", "accept = false\nadvert_interval");
    guide.node1.configure(&closed).unwrap();
    guide.start_directors().unwrap();
    let vip = VIP.to_string();
    let connects = |port: u16| {
        let target = std::net::SocketAddr::from((VIP, port));
        let attempt = || std::net::TcpStream::connect_timeout(&target, Duration::from_millis(700));
        guide
            .client
            .within(|| attempt().map_err(|e| e.kind()).map(drop))
            .unwrap()
    };
    let timed_out = Err(std::io::ErrorKind::TimedOut);
    let both = http::get_many(&guide.client, VIP, 4).unwrap();
    assert!(
        both.contains(&"rs1".to_owned()) && both.contains(&"rs2".to_owned()),
        "{both:?}"
    );
    assert!(
        guide.client.neighbour(&vip).unwrap().is_some(),
        "ARP is answered"
    );
    assert_eq!(connects(81), timed_out, "dropped, not refused");
    guide.rs1.stop().unwrap();
    guide.rs2.stop().unwrap();
    guide
        .node1
        .wait_for_backends(&["down", "down", "up"])
        .unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 3).unwrap(), ["sorry"; 3]);
    // By a reload, and back.
    let open = guide::config(&guide::Settings::of(100));
    guide.node1.configure(&open).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert_eq!(connects(81), Err(std::io::ErrorKind::ConnectionRefused));
    guide.node1.configure(&closed).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert_eq!(connects(81), timed_out);
    guide.node1.stop().unwrap();
    // The owner of an address takes packets to it whatever is configured.
    guide.node2.stop().unwrap();
    let owner = closed.replace("priority = 100", "priority = 255");
    guide.node1.configure(&owner).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    assert_eq!(connects(81), Err(std::io::ErrorKind::ConnectionRefused));
}

/// A MAC address that an administrator has fixed stays, of a host that answers no ARP, too: the kernel lets go of it
/// when it is told to use it.
#[test]
fn fixed_neighbours_stay_fixed() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let six = ["-6", "address", "add", "2001:db8::43/64", "dev", INTERFACE];
    node.ip(&[&six[..], &["nodad"]].concat()).unwrap();
    let servers = ["10.1.15.45", "2001:db8::45"];
    for address in servers {
        let entry = ["neighbour", "add", address, "dev", INTERFACE, "lladdr"];
        let fixed = ["02:00:00:00:00:45", "nud", "permanent"];
        node.ip(&[&entry[..], &fixed].concat()).unwrap();
    }
    let config = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n[[service]]\naddress = \"10.1.15.50:80\"\n[[service.backend]]\n\
         address = \"10.1.15.45\"\n[[service]]\naddress = \"[2001:db8::50]:80\"\n[[service.backend]]\naddress = \"2001:db8::45\"\n"
    );
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    // Longer than from one look to the next.
    for _ in 0..12 {
        std::thread::sleep(Duration::from_secs(1));
        for address in servers {
            let shown = node.ip(&["neighbour", "show", address]).unwrap();
            assert!(shown.contains("PERMANENT"), "{shown}");
        }
    }
    for service in director.status().unwrap().data_plane.services {
        assert_eq!(service.backends[0].state, "up");
    }
    director.stop().unwrap();
}
