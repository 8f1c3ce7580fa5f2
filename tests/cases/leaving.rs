//! A master that leaves, in whatever way, resets no connection of its clients: until another announces
//! the address their segments still come to it.

use std::time::Duration;

use lab::{Drips, Guide, guide::VIP, network::INTERFACE};
use lb_user::model::VrrpState;

/// Talking clients.
const CLIENTS: u32 = 200;

/// Lets node1 leave while clients talk to it.
fn leave(guide: &mut Guide, what: &str, leave: impl FnOnce(&mut Guide)) {
    // Whatever others announce, the clients stay with the one that leaves.
    let mac = guide.node1.node.mac().unwrap();
    let vip = VIP.to_string();
    let entry = [vip.as_str(), "lladdr", &mac, "dev", INTERFACE];
    let entry = [&["neigh", "replace"], &entry[..], &["nud", "permanent"]].concat();
    guide.client.ip(&entry).unwrap();
    let drips = Drips::start(&guide.client, VIP, CLIENTS).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    leave(guide);
    std::thread::sleep(Duration::from_secs(1));
    drips
        .break_off()
        .unwrap_or_else(|error| panic!("{what}: {error}\n{}", guide.node1.log()));
}

#[test]
fn who_leaves_resets_no_connection() {
    let mut guide = Guide::start().unwrap();
    leave(&mut guide, "yields", |guide| {
        guide.node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
        guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    });
    guide.node1.ctl(&["vrrp", "reset", "VI_1"]).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();

    leave(&mut guide, "stops", |guide| guide.node1.stop().unwrap());
}
