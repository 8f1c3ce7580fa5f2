//! keepalived with IPVS as the other director of a pair: elections in both directions, connections that
//! survive them because the kernels tell each other, and the same table of real servers.

use std::time::Duration;

use lab::{
    Download, Drips, Guide, Lab, Node, Process,
    guide::{Settings, VIP},
    http,
    network::INTERFACE,
    peer, wait,
};
use lb_user::model::VrrpState;

use crate::{
    cluster::{shares, told_of_connections, with_ipvs},
    with_modules,
};

/// Elections take seconds, and everything is slow under emulation.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a download that outlasts an election.
const LENGTH: usize = 8_000_000;

/// Connections whose clients talk all the time.
const TALKING: u32 = 40;

/// keepalived with the guide's instance and service.
fn keepalived(lab: &Lab, node: &Node) -> Process {
    let global =
        format!("  vrrp_mcast_group4 224.15.15.15\n  lvs_sync_daemon {INTERFACE} VI_1 id 7");
    let servers: String = [45, 46]
        .map(|last| {
            format!(
                "  real_server 10.1.15.{last} 80 {{\n    weight 1\n    TCP_CHECK {{\n      connect_timeout 2\n    \
                 }}\n  }}\n"
            )
        })
        .concat();
    let instance = peer::guide_instance(98);
    let rest = format!(
        "{instance}virtual_server {VIP} 80 {{
  delay_loop 1
  lb_algo wrr
  lb_kind DR
  protocol TCP
  sorry_server 127.0.0.1 80
{servers}}}
"
    );
    peer::keepalived_director(lab, node, &global, &rest).unwrap()
}

fn holds_address(node: &Node) {
    wait::until_true("the address moves", LIMIT, || {
        Ok(node.addresses()?.contains(&VIP.to_string()))
    })
    .unwrap();
}

fn until_listed(node: &Node, servers: &[&str]) {
    wait::until_true("the kernel holds the servers", LIMIT, || {
        // It may not be there yet.
        let table = node
            .run("ipvsadm", &["-Ln", "-t", &format!("{VIP}:80")])
            .unwrap_or_default();
        let held: Vec<&str> = table
            .lines()
            .filter(|line| line.contains("Route"))
            .collect();
        Ok(held.len() == servers.len()
            && servers
                .iter()
                .all(|s| held.iter().any(|line| line.contains(s))))
    })
    .unwrap();
}

/// Every request is answered, by both. A check that times out on a busy machine makes shares uneven.
fn spread(guide: &Guide) {
    let [first, second] = shares(guide, 40);
    assert!(
        first + second == 40 && first.min(second) >= 10,
        "{first}, {second}"
    );
}

/// No connection broke: every client gets the page of a real server.
fn are_answered(what: &str, drips: Drips) {
    let pages = drips
        .finish()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(pages.iter().all(|page| page.starts_with("rs")), "{pages:?}");
}

fn sync_daemon(node: &Node) -> String {
    node.run("ipvsadm", &["-L", "--daemon"]).unwrap()
}

const SERVERS: [&str; 2] = ["10.1.15.45:80", "10.1.15.46:80"];

#[test]
fn keepalived_as_the_other_director() {
    let _modules = with_modules();
    let mut guide = Guide::prepare().unwrap();
    let node1 = guide.node1.node.clone();
    let node2 = guide.node2.node.clone();
    guide
        .node1
        .configure(&with_ipvs(&Settings::of(100)))
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    let other = keepalived(&guide.lab, &node2);
    until_listed(&node1, &SERVERS);
    until_listed(&node2, &SERVERS);
    wait::until_true("keepalived listens", LIMIT, || {
        Ok(sync_daemon(&node2).starts_with("backup sync daemon"))
    })
    .unwrap();
    assert!(sync_daemon(&node1).starts_with("master sync daemon"));
    spread(&guide);

    // lbd is stopped: keepalived goes on with its connections.
    let download = Download::start(&guide, LENGTH).unwrap();
    let drips = Drips::start(&guide.client, VIP, TALKING).unwrap();
    told_of_connections(&node1, &node2);
    let young = Drips::start(&guide.client, VIP, TALKING).unwrap();
    guide.node1.stop().unwrap();
    holds_address(&node2);
    are_answered("known to the other director", drips);
    are_answered("opened at the end", young);
    download.finish().unwrap();
    spread(&guide);

    // lbd returns with the lower priority, learns, and takes over when keepalived's port is down.
    guide
        .node1
        .configure(&with_ipvs(&Settings::of(90)))
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    until_listed(&node1, &SERVERS);
    let download = Download::start(&guide, LENGTH).unwrap();
    let drips = Drips::start(&guide.client, VIP, TALKING).unwrap();
    told_of_connections(&node2, &node1);
    node2.cable(false).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    are_answered("known to lbd", drips);
    download.finish().unwrap();
    spread(&guide);

    // It yields when the port is back.
    node2.cable(true).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    holds_address(&node2);
    until_listed(&node2, &SERVERS);
    spread(&guide);

    // Without real servers each has its sorry page.
    guide.rs1.stop().unwrap();
    guide.rs2.stop().unwrap();
    let sorry = |node: &Node| {
        until_listed(node, &["127.0.0.1:80"]);
        let pages = http::get_many(&guide.client, VIP, 10).unwrap();
        assert!(pages.iter().all(|page| page == "sorry"), "{pages:?}");
    };
    until_listed(&node1, &["127.0.0.1:80"]);
    sorry(&node2);
    other.stop().unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    holds_address(&node1);
    sorry(&node1);
    guide.rs1.resume(&guide.lab).unwrap();
    guide.rs2.resume(&guide.lab).unwrap();
    // The sorry server stays for those who read it, without a weight.
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    spread(&guide);
    guide.node1.stop().unwrap();
}
