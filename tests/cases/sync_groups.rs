//! Two instances on two networks that go together, with keepalived's `vrrp_sync_group` as the other
//! director.

use std::time::Duration;

use lab::{Director, Lab, Node, network::INTERFACE, peer, wait};
use lb_user::model::VrrpState::{self, Backup, Fault, Master};

const INSTANCES: [(&str, &str, u8, &str); 2] = [
    ("VI_OUT", INTERFACE, 20, "10.1.15.50/16"),
    ("VI_IN", "eth1", 21, "172.20.0.50/16"),
];

fn ours(priority: u8) -> String {
    let instance = |(name, interface, vrid, address): &(&str, &str, u8, &str)| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{interface}\"\nvirtual_router_id = {vrid}\n\
             priority = {priority}\naddresses = [\"{address}\"]\nsync_group = \"VG_1\"\n"
        )
    };
    // Only the outer network carries services.
    let plane = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n");
    INSTANCES
        .iter()
        .map(instance)
        .fold(plane, |all, one| all + &one)
}

fn theirs(priority: u8) -> String {
    let instance = |(name, interface, vrid, address): &(&str, &str, u8, &str)| {
        format!(
            "vrrp_instance {name} {{\n  state BACKUP\n  interface {interface}\n  virtual_router_id {vrid}\n  \
             priority {priority}\n  advert_int 1\n  virtual_ipaddress {{\n    {address}\n  }}\n}}\n"
        )
    };
    let group = "vrrp_sync_group VG_1 {\n  group {\n    VI_OUT\n    VI_IN\n  }\n}\n".to_owned();
    INSTANCES
        .iter()
        .map(instance)
        .fold(group, |all, one| all + &one)
}

/// Which of both addresses a director holds.
fn held(node: &Node) -> [bool; 2] {
    INSTANCES.map(|(_, interface, _, address)| {
        let text = node.ip(&["address", "show", "dev", interface]).unwrap();
        text.contains(&format!("inet {address}"))
    })
}

fn states(lbd: &Director) -> [VrrpState; 2] {
    INSTANCES.map(|(name, ..)| lbd.state(name).unwrap())
}

#[test]
fn instances_of_a_group_go_together() {
    let lab = Lab::new().unwrap();
    let node1 = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let node2 = lab.node("node2", [10, 1, 15, 44]).unwrap();
    lab.second_network(&node1, [172, 20, 0, 43], &node2, [172, 20, 0, 44])
        .unwrap();
    let mut lbd = Director::new(&lab, &node1, &ours(150)).unwrap();
    lbd.start(&lab).unwrap();
    let _keepalived = peer::keepalived(&lab, &node2, "", &theirs(100)).unwrap();
    let settles = |lbd: &Director, state: VrrpState, others: bool, what: &str| {
        let as_expected = || Ok(states(lbd) == [state; 2] && held(&node2) == [others; 2]);
        wait::until_true(what, Duration::from_secs(15), as_expected).unwrap_or_else(|error| {
            panic!(
                "{error}: {:?}, {:?}\n{}",
                states(lbd),
                held(&node2),
                lbd.log()
            )
        });
        std::thread::sleep(Duration::from_secs(2));
        assert!(as_expected().unwrap(), "{what}: it does not last");
    };
    settles(&lbd, Master, false, "lbd is master of both");

    // The outer cable goes: the inner instance is given up with it, though its network is well.
    node1.cable(false).unwrap();
    settles(&lbd, Fault, true, "keepalived is master of both");
    let status = lbd.status().unwrap();
    let inner = status.instances.iter().find(|i| i.name == "VI_IN").unwrap();
    assert_eq!(inner.reason, "with its sync group");
    node1.cable(true).unwrap();
    settles(&lbd, Master, false, "lbd is master of both again");

    // One that gives up takes the other along, until it may be master again.
    lbd.ctl(&["vrrp", "failover", "VI_IN"]).unwrap();
    let both = || Ok(states(&lbd) == [Backup; 2]);
    wait::until_true("both go with one", Duration::from_secs(2), both).unwrap();
    lbd.ctl(&["vrrp", "failover", "VI_OUT"]).unwrap();
    settles(&lbd, Backup, true, "keepalived has the higher priorities");
    // One alone is not enough to come back.
    lbd.ctl(&["vrrp", "reset", "VI_IN"]).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(states(&lbd), [Backup; 2], "{}", lbd.log());
    lbd.ctl(&["vrrp", "reset", "VI_OUT"]).unwrap();
    settles(&lbd, Master, false, "both come back");

    // A third member joins a group that is master; nobody yields for that.
    let since = || lbd.status().unwrap().instances[0].since;
    let before = since();
    let third = "[[vrrp]]\nname = \"VI_3\"\ninterface = \"eth1\"\nvirtual_router_id = 22\n\
                 priority = 150\naddresses = [\"172.20.0.52/16\"]\nsync_group = \"VG_1\"\n";
    lbd.configure(&(ours(150) + third)).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    wait::until_true("the third is master too", Duration::from_secs(6), || {
        Ok(lbd.state("VI_3")? == Master)
    })
    .unwrap();
    assert_eq!(since(), before, "{}", lbd.log());

    // One that failed with its group, and is alone after a reload, recovers.
    node1.cable(false).unwrap();
    settles(&lbd, Fault, true, "keepalived is master of both once more");
    let (_, inner) = ours(150)
        .split_once("sync_group = \"VG_1\"\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let alone = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{}",
        inner.replace("sync_group = \"VG_1\"\n", "")
    );
    lbd.configure(&alone).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    wait::until_true("the inner one is fit", Duration::from_secs(2), || {
        Ok(lbd.state("VI_IN")? != Fault)
    })
    .unwrap();
    node1.cable(true).unwrap();
    lbd.configure(&ours(150)).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    settles(&lbd, Master, false, "as at the beginning");
    lbd.stop().unwrap();
    wait::until_true("keepalived follows a stop", Duration::from_secs(3), || {
        Ok(held(&node2) == [true; 2])
    })
    .unwrap();
}
