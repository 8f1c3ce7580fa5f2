//! What an operator may tell a VRRP instance, and how the thread that serves it runs.

use std::{fs, time::Duration};

use lab::{Director, Guide, Lab, guide::VIP, network::INTERFACE, wait};
use lb_user::model::VrrpState;

#[test]
fn failover_priority_reset_announce() {
    let guide = Guide::start().unwrap();
    let (node1, node2) = (&guide.node1, &guide.node2);
    let said = node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
    assert!(said.contains("VI_1: yields"), "{said}");
    node2.wait_for("VI_1", VrrpState::Master).unwrap();
    node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    let status = node1.status().unwrap();
    let instance = &status.instances[0];
    assert_eq!((instance.priority, instance.configured_priority), (1, 100));
    assert!(instance.reason.contains("operator"), "{}", instance.reason);
    let told = status
        .problems
        .iter()
        .any(|p| p.contains("lbctl vrrp reset VI_1"));
    assert!(told, "{:?}", status.problems);
    // It does not come back by itself, and a reload does not end it.
    std::thread::sleep(Duration::from_secs(5));
    node1.ctl(&["reload"]).unwrap();
    assert_eq!(node1.state("VI_1").unwrap(), VrrpState::Backup);

    node1.ctl(&["vrrp", "priority", "VI_1", "97"]).unwrap();
    let shown = node1.ctl(&["vrrp"]).unwrap();
    assert!(
        shown.contains("priority 97 from an operator (100 configured)"),
        "{shown}"
    );
    node1.ctl(&["vrrp", "reset", "VI_1"]).unwrap();
    node1.wait_for("VI_1", VrrpState::Master).unwrap();
    node2.wait_for("VI_1", VrrpState::Backup).unwrap();

    // A client that lost its way is told where the address is.
    let wrong = [
        "neigh",
        "replace",
        "10.1.15.50",
        "lladdr",
        "02:00:00:00:00:99",
        "nud",
        "reachable",
        "dev",
        "eno16777736",
    ];
    guide.client.ip(&wrong).unwrap();
    node1.ctl(&["vrrp", "announce", "VI_1"]).unwrap();
    let mac = node1.node.mac().unwrap();
    wait::until_true("the client learns the MAC", Duration::from_secs(3), || {
        Ok(guide.client.neighbour(&VIP.to_string())?.as_deref() == Some(&mac))
    })
    .unwrap();
    for (arguments, code, words) in [
        (
            &["vrrp", "announce", "VI_1"][..],
            1,
            "VI_1 is not MASTER here",
        ),
        (
            &["vrrp", "failover", "VI_9"],
            1,
            "there is no VRRP instance VI_9; there is: VI_1",
        ),
        (
            &["vrrp", "priority", "VI_1", "255"],
            2,
            "255 is not in 1..=254",
        ),
    ] {
        let output = node2.lbctl(arguments).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}

/// The thread of the adverts overtakes everything else on its CPU, and only that thread.
#[test]
fn adverts_have_real_time_priority() {
    let mut guide = Guide::start().unwrap();
    let pid = guide.node1.process().unwrap().id();
    // nsenter has become lbd.
    let mut policies = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap();
        let stat = fs::read_to_string(task.join("stat")).unwrap();
        // proc(5): fields 40 and 41 are the real-time priority and the policy, 1 being SCHED_FIFO.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        policies.push((
            name.trim().to_owned(),
            fields[37].to_owned(),
            fields[38].to_owned(),
        ));
    }
    for (name, priority, policy) in &policies {
        let expected = if name == "vrrp" {
            ("50", "1")
        } else {
            ("0", "0")
        };
        assert_eq!(
            (priority.as_str(), policy.as_str()),
            expected,
            "{policies:?}"
        );
    }
    assert!(
        policies.iter().any(|(name, _, _)| name == "vrrp"),
        "{policies:?}"
    );
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let locked = status
        .lines()
        .find(|line| line.starts_with("VmLck"))
        .unwrap();
    assert!(!locked.contains(" 0 kB"), "{locked}");
}

/// A master's IPv6 address: no source of the director's own packets, put back when somebody takes it
/// away, announced, and able to change its length.
#[test]
fn an_ipv6_address_is_held() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    for (node, last) in [(&node, 43), (&client, 1)] {
        let own = format!("2001:db8::{last}/64");
        node.ip(&["address", "add", &own, "dev", INTERFACE, "nodad"])
            .unwrap();
    }
    let config = |length: u8| {
        format!(
            "[[vrrp]]\nname = \"VI_6\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 6\n\
             advert_interval = \"100ms\"\naddresses = [\"2001:db8::50/{length}\"]\n\
             excluded_addresses = [\"10.1.15.60/16\"]\n"
        )
    };
    let mut lbd = Director::new(&lab, &node, &config(64)).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_6", VrrpState::Master).unwrap();
    let held = |what: &str| -> anyhow::Result<bool> {
        let text = node.ip(&["address", "show", "dev", INTERFACE])?;
        Ok(text.lines().any(|line| line.contains(what)))
    };
    let soon = Duration::from_secs(3);
    let waits = |what: &str| {
        wait::until_true(what, soon, || held(what))
            .unwrap_or_else(|e| panic!("{e}\n{}", lbd.log()));
    };
    waits("inet6 2001:db8::50/64");
    waits("deprecated");
    waits("inet 10.1.15.60/16");
    let route = node.ip(&["-6", "route", "get", "2001:db8::1"]).unwrap();
    assert!(route.contains("src 2001:db8::43"), "{route}");
    node.ip(&["address", "del", "2001:db8::50/64", "dev", INTERFACE])
        .unwrap();
    waits("inet6 2001:db8::50/64");
    lbd.configure(&config(128)).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    waits("inet6 2001:db8::50/128");
    assert!(!held("2001:db8::50/64").unwrap());
    let wrong = [
        "-6",
        "neigh",
        "replace",
        "2001:db8::50",
        "lladdr",
        "02:00:00:00:00:99",
        "nud",
        "reachable",
        "dev",
        INTERFACE,
    ];
    client.ip(&wrong).unwrap();
    lbd.ctl(&["vrrp", "announce", "VI_6"]).unwrap();
    let mac = node.mac().unwrap();
    wait::until_true("the client learns the MAC", soon, || {
        Ok(client.neighbour("2001:db8::50")?.as_deref() == Some(&mac))
    })
    .unwrap();
    lbd.stop().unwrap();
    assert!(!held("2001:db8::50").unwrap() && !held("10.1.15.60").unwrap());
}
