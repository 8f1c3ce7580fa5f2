//! Virtual MAC addresses: the switch sees them move, keepalived with its own agrees, and nothing is
//! left behind.

use std::time::Duration;

use lab::{Director, Guide, Lab, Node, guide, guide::VIP, http, network::INTERFACE, peer, wait};
use lb_user::model::VrrpState;

const MAC: &str = "00:00:5e:00:01:14";

/// The port of the switch that a MAC address was learnt on.
fn port_of(lab: &Lab, mac: &str) -> Option<String> {
    let table = lab
        .on_switch("bridge", &["-json", "fdb", "show", "br", "br0"])
        .unwrap();
    let entries: serde_json::Value = serde_json::from_str(&table).unwrap();
    let entries = entries.as_array().unwrap();
    let found = entries.iter().find(|entry| entry["mac"] == mac)?;
    Some(found["ifname"].as_str().unwrap().to_owned())
}

fn settings(node: &Node) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{INTERFACE}");
    node.run(
        "sh",
        &["-c", &format!("grep -H . {path}/arp_* {path}/rp_filter")],
    )
    .unwrap()
}

fn guide_with_virtual_mac() -> Guide {
    let guide = Guide::prepare().unwrap();
    for (director, priority) in [(&guide.node1, 100), (&guide.node2, 98)] {
        let config = guide::config(&guide::Settings::of(priority))
            .replace("advert_interval", "use_virtual_mac = true\nadvert_interval");
        director.configure(&config).unwrap();
    }
    guide
}

/// Clients keep their ARP entry over a failover; the switch learns where the address is now.
#[test]
fn the_switch_sees_it_move_and_the_client_nothing() {
    let mut guide = guide_with_virtual_mac();
    let nodes = [guide.node1.node.clone(), guide.node2.node.clone()];
    let before = nodes
        .each_ref()
        .map(|node| (node.picture().unwrap(), settings(node)));
    guide.start_directors().unwrap();
    let vip = VIP.to_string();
    let answers = http::get_many(&guide.client, VIP, 4).unwrap();
    assert!(
        answers.iter().any(|a| a == "rs1") && answers.iter().any(|a| a == "rs2"),
        "{answers:?}"
    );
    assert_eq!(guide.client.neighbour(&vip).unwrap().as_deref(), Some(MAC));
    assert_eq!(port_of(&guide.lab, MAC).as_deref(), Some("p-node1"));
    // The program forwards frames to the virtual MAC address; none comes so far as the stack.
    let packets: u64 = guide
        .node1
        .service()
        .unwrap()
        .backends
        .iter()
        .map(|b| b.packets)
        .sum();
    assert!(packets >= 20, "{packets}");
    let shown = guide.node1.ctl(&["vrrp"]).unwrap();
    assert!(
        shown.contains("virtual MAC address 00:00:5e:00:01:14 on vrrp.20"),
        "{shown}"
    );
    // A BACKUP takes no frames to it.
    let link = nodes[1].ip(&["link", "show", "vrrp.20"]).unwrap();
    assert!(link.contains("state DOWN"), "{link}");
    // The real servers fail, and the director answers by its own stack, from the address.
    guide.rs1.stop().unwrap();
    guide.rs2.stop().unwrap();
    guide
        .node1
        .wait_for_backends(&["down", "down", "up"])
        .unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 2).unwrap(), ["sorry"; 2]);
    assert_eq!(guide.client.neighbour(&vip).unwrap().as_deref(), Some(MAC));
    guide.rs1.resume(&guide.lab).unwrap();
    guide.rs2.resume(&guide.lab).unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    let samples = lab::steps::under_requests(&guide.client, VIP, Duration::from_secs(1), || {
        guide.node1.stop()?;
        guide.node2.wait_for("VI_1", VrrpState::Master)
    })
    .unwrap();
    assert!(
        http::failures(&samples) < samples.len() / 2,
        "{}",
        samples.len()
    );
    assert_eq!(port_of(&guide.lab, MAC).as_deref(), Some("p-node2"));
    assert_eq!(guide.client.neighbour(&vip).unwrap().as_deref(), Some(MAC));
    http::get_many(&guide.client, VIP, 4).unwrap();
    guide.node2.stop().unwrap();
    for (node, (picture, set)) in nodes.iter().zip(before) {
        assert_eq!(node.picture().unwrap(), picture);
        assert_eq!(settings(node), set);
    }
}

/// After kill -9 the next daemon takes the interface over and knows what it must put back.
#[test]
fn a_killed_daemon_s_interface_is_taken_over() {
    let mut guide = guide_with_virtual_mac();
    let node = guide.node1.node.clone();
    let before = (node.picture().unwrap(), settings(&node));
    guide.start_directors().unwrap();
    guide.node2.stop().unwrap();
    let samples = lab::steps::under_requests(&guide.client, VIP, Duration::from_secs(1), || {
        guide.node1.kill()?;
        std::thread::sleep(Duration::from_millis(300));
        guide.node1.start(&guide.lab)?;
        guide.node1.wait_for("VI_1", VrrpState::Master)
    })
    .unwrap();
    assert_eq!(http::failures(&samples), 0, "of {}", samples.len());
    assert_ne!(settings(&node), before.1);
    // Somebody removes the interface: it is made again, with the address.
    node.ip(&["link", "delete", "vrrp.20"]).unwrap();
    wait::until_true("the address is back", Duration::from_secs(3), || {
        let link = node.ip(&["address", "show", "vrrp.20"]);
        Ok(link.is_ok_and(|text| text.contains("10.1.15.50/16") && text.contains("state UP")))
    })
    .unwrap();
    http::get_many(&guide.client, VIP, 4).unwrap();
    guide.node1.kill().unwrap();
    // Without a virtual MAC address, the next one clears all of it.
    guide
        .node1
        .configure(&guide::config(&guide::Settings::of(100)))
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    assert!(node.ip(&["link", "show", "vrrp.20"]).is_err());
    assert_eq!(settings(&node), before.1);
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    // By a reload to one, while it is master, and back.
    let with = guide_config_with_vmac();
    guide.node1.configure(&with).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert!(
        node.ip(&["address", "show", "vmac20"])
            .unwrap()
            .contains("10.1.15.50/16")
    );
    http::get_many(&guide.client, VIP, 4).unwrap();
    guide
        .node1
        .configure(&guide::config(&guide::Settings::of(100)))
        .unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert!(node.ip(&["link", "show", "vmac20"]).is_err());
    assert!(node.addresses().unwrap().contains(&VIP.to_string()));
    http::get_many(&guide.client, VIP, 4).unwrap();
    guide.node1.stop().unwrap();
    assert_eq!(node.picture().unwrap(), before.0);
    assert_eq!(settings(&node), before.1);
}

/// A daemon died between making it and giving it what belongs to it.
#[test]
fn an_interface_that_was_half_made_is_completed() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let before = (node.picture().unwrap(), settings(&node));
    let add = format!(
        "link add vrrp.20 link {INTERFACE} address {MAC} group 112 type macvlan mode bridge"
    );
    node.ip(&add.split(' ').collect::<Vec<_>>()).unwrap();
    let config = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
         use_virtual_mac = true\naddresses = [\"{VIP}/16\"]\n"
    );
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    director.wait_for("VI_1", VrrpState::Master).unwrap();
    let link = node.ip(&["link", "show", "vrrp.20"]).unwrap();
    assert!(link.contains("alias lbd arp_ignore=0"), "{link}");
    let answers = "/proc/sys/net/ipv4/conf/vrrp.20/arp_ignore";
    assert_eq!(node.run("cat", &[answers]).unwrap().trim(), "1");
    assert_ne!(settings(&node), before.1);
    director.stop().unwrap();
    assert_eq!((node.picture().unwrap(), settings(&node)), before);
}

/// Somebody takes its name while it is away: that is one problem, told of once, however often it is tried again.
#[test]
fn an_interface_that_cannot_be_made_is_one_problem() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let config = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
         use_virtual_mac = true\nadvert_interval = \"100ms\"\nversion = 3\naddresses = [\"{VIP}/16\"]\n"
    );
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    director.wait_for("VI_1", VrrpState::Master).unwrap();
    node.ip(&["link", "delete", INTERFACE]).unwrap();
    director.wait_for("VI_1", VrrpState::Fault).unwrap();
    node.ip(&["link", "add", "vrrp.20", "type", "bridge"])
        .unwrap();
    lab.plug(&node).unwrap();
    director.wait_for("VI_1", VrrpState::Master).unwrap();
    let problems = || director.status().unwrap().problems;
    let complaint = "cannot make interface vrrp.20: Received a netlink error message File exists";
    wait::until_true("it is a problem", Duration::from_secs(5), || {
        Ok(problems().join("\n").contains(complaint))
    })
    .unwrap();
    // It is tried again every second.
    std::thread::sleep(Duration::from_secs(3));
    let of_making = problems().into_iter().filter(|p| p.contains("make"));
    assert_eq!(of_making.count(), 1, "{:?}", problems());
    let log = director.log();
    assert_eq!(log.matches(complaint).count(), 1, "{log}");
    node.ip(&["link", "delete", "vrrp.20"]).unwrap();
    wait::until_true("the address is there", Duration::from_secs(5), || {
        let link = node.ip(&["address", "show", "vrrp.20"]);
        Ok(link.is_ok_and(|text| text.contains("10.1.15.50/16") && text.contains("state UP")))
    })
    .unwrap();
    wait::until_true("no problem is left", Duration::from_secs(6), || {
        Ok(problems().is_empty())
    })
    .unwrap();
    director.stop().unwrap();
}

fn guide_config_with_vmac() -> String {
    guide::config(&guide::Settings::of(100)).replace(
        "advert_interval",
        "use_virtual_mac = true\nvmac_interface = \"vmac20\"\nadvert_interval",
    )
}

/// An interface of the name that is somebody else's is not touched.
#[test]
fn an_interface_of_somebody_else_is_left_alone() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    node.ip(&["link", "add", "vrrp.20", "type", "bridge"])
        .unwrap();
    let config = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
         use_virtual_mac = true\naddresses = [\"10.1.15.50/16\"]\n"
    );
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.launch(&lab).unwrap();
    let status = director
        .process()
        .unwrap()
        .wait(Duration::from_secs(10))
        .unwrap();
    assert!(!status.success());
    let log = director.log();
    assert!(
        log.contains("interface vrrp.20 exists and is not one that lbd made"),
        "{log}"
    );
    assert!(
        node.ip(&["link", "show", "vrrp.20", "type", "bridge"])
            .is_ok()
    );
}

/// lbd and keepalived, both with the virtual MAC address, each in both roles.
fn with_keepalived(ours: &str, theirs: &str, addresses: &[&str], mac: &str) {
    let lab = Lab::new().unwrap();
    let nodes = [("node1", 43), ("node2", 44)].map(|(name, last)| {
        let node = lab.node(name, [10, 1, 15, last]).unwrap();
        let address = format!("fe80::{last}/64");
        node.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])
            .unwrap();
        node
    });
    let list: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
    let config = |priority: u8| {
        format!(
            "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
             use_virtual_mac = true\nversion = 3\nadvert_interval = \"100ms\"\npriority = {priority}\n\
             addresses = [{}]\n{ours}",
            list.join(", ")
        )
    };
    let mut lbd = Director::new(&lab, &nodes[0], &config(150)).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", VrrpState::Master).unwrap();
    let instance = format!(
        "vrrp_instance VI_1 {{\n  state BACKUP\n  interface {INTERFACE}\n  virtual_router_id 20\n  use_vmac\n  \
         priority 100\n  advert_int 0.1\n{theirs}\n  virtual_ipaddress {{\n    {}\n  }}\n}}\n",
        addresses.join("\n    ")
    );
    let keepalived = peer::keepalived(&lab, &nodes[1], "  vrrp_version 3", &instance).unwrap();
    let last = addresses.last().unwrap();
    let holds = |node: &Node| node.ip(&["address", "show"]).unwrap().contains(last);
    let settles = |what: &str, lbd_is_master: bool| {
        let as_expected = || {
            let port = if lbd_is_master { "p-node1" } else { "p-node2" };
            Ok(holds(&nodes[0]) == lbd_is_master
                && holds(&nodes[1]) != lbd_is_master
                && port_of(&lab, mac).as_deref() == Some(port))
        };
        wait::until_true(what, Duration::from_secs(8), as_expected).unwrap_or_else(|error| {
            panic!(
                "{error}\n{:?}\n{}\n{}",
                port_of(&lab, mac),
                lbd.log(),
                keepalived.log()
            )
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(
            as_expected().unwrap(),
            "{what}: it does not last\n{}",
            lbd.log()
        );
    };
    std::thread::sleep(Duration::from_secs(1));
    settles("lbd has the higher priority", true);
    // A partition: both are masters with one MAC address, and must still hear each other after it.
    nodes[1].silently(false).unwrap();
    wait::until_true("two masters", Duration::from_secs(3), || {
        Ok(holds(&nodes[0]) && holds(&nodes[1]))
    })
    .unwrap();
    nodes[1].silently(true).unwrap();
    settles("lbd stays after the heal", true);
    lbd.configure(&config(50)).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    settles("keepalived has the higher priority", false);
    nodes[1].silently(false).unwrap();
    wait::until_true("two masters", Duration::from_secs(3), || {
        Ok(holds(&nodes[0]) && holds(&nodes[1]))
    })
    .unwrap();
    nodes[1].silently(true).unwrap();
    settles("keepalived stays after the heal", false);
    let log = keepalived.log();
    assert_eq!(peer::complaints(&log), Vec::<String>::new());
    assert_eq!(lbd.status().unwrap().instances[0].rejected, []);
    keepalived.stop().unwrap();
    lbd.wait_for("VI_1", VrrpState::Master).unwrap();
    lbd.stop().unwrap();
    assert!(
        nodes[0]
            .ip(&["link", "show", "type", "macvlan"])
            .unwrap()
            .is_empty()
    );
}

#[test]
fn keepalived_with_virtual_macs() {
    let ours = "checksum = \"pseudo-header\"\n";
    with_keepalived(ours, "", &["10.1.15.50/16"], MAC);
}

#[test]
fn keepalived_with_virtual_macs_over_ipv6() {
    let addresses = ["fe80::50/64", "2001:db8::50/64"];
    with_keepalived("", "", &addresses, "00:00:5e:00:02:14");
}

/// Another interface, of another network namespace, has the virtual MAC address: ours cannot be turned on. When
/// the other goes nobody tells, and ours comes up.
#[test]
fn an_interface_that_cannot_be_turned_on_is_tried_again() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let sleeper = ["infinity"];
    let other =
        lab::Process::start(&lab, &client, "other", "/bin/sleep".as_ref(), &sleeper).unwrap();
    node.ip(&[
        "link", "add", "thief", "link", INTERFACE, "type", "macvlan", "mode", "bridge",
    ])
    .unwrap();
    node.ip(&["link", "set", "thief", "netns", &other.id().to_string()])
        .unwrap();
    client
        .ip(&["link", "set", "thief", "address", MAC, "up"])
        .unwrap();
    let config = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\npriority = 100\n\
         addresses = [\"{VIP}/16\"]\nuse_virtual_mac = true\n"
    );
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    director.wait_for("VI_1", VrrpState::Master).unwrap();
    let problems = || director.status().unwrap().problems.join("\n");
    let complaint = "interface vrrp.20: cannot turn an interface on or off";
    assert!(problems().contains(complaint), "{}", problems());
    client.ip(&["link", "delete", "thief"]).unwrap();
    wait::until_true("no problem is left", Duration::from_secs(10), || {
        Ok(problems().is_empty())
    })
    .unwrap();
    let vip = VIP.to_string();
    wait::until_true("the address answers", Duration::from_secs(10), || {
        let _ = client.within(|| {
            let target = std::net::SocketAddr::from((VIP, 81));
            std::net::TcpStream::connect_timeout(&target, Duration::from_millis(200))
        });
        Ok(client.neighbour(&vip)?.as_deref() == Some(MAC))
    })
    .unwrap();
    assert_eq!(
        director.log().matches(complaint).count(),
        1,
        "{}",
        director.log()
    );
    director.stop().unwrap();
}
