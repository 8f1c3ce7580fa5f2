//! Directors that nobody here wrote.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_user::model::VrrpState;

use super::Seen;
use crate::{
    Guide, Lab, Node, Process,
    guide::{self, Settings, VIP},
    peer::{self, complaints},
    wait,
};

/// Step 9.
pub fn keepalived(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    guide.node2.stop()?;
    let node2 = guide.node2.node.clone();
    let peer = start(&guide.lab, &node2, 98)?;
    settle(guide, &node2, true, "keepalived starts as BACKUP")?;
    seen.note("lbd 100, keepalived 98", "lbd MASTER, keepalived BACKUP");

    guide.node1.stop()?;
    holds(&node2, true, "keepalived takes over from a stopped lbd")?;
    seen.note("lbd stops", "keepalived MASTER");
    guide.node1.start(&guide.lab)?;
    settle(guide, &node2, true, "keepalived yields to lbd")?;
    seen.note("lbd returns", "lbd MASTER, keepalived BACKUP");
    let complaints = complaints(&peer.log());
    ensure!(
        complaints.is_empty(),
        "keepalived complains: {complaints:?}"
    );
    peer.stop()?;

    // The roles swapped: keepalived has the higher priority.
    guide.node1.configure(&guide::config(&Settings::of(90)))?;
    guide.node1.ctl(&["reload"])?;
    let peer = start(&guide.lab, &node2, 100)?;
    settle(guide, &node2, false, "lbd yields to keepalived")?;
    seen.note("lbd 90, keepalived 100", "lbd BACKUP, keepalived MASTER");
    let log = peer.log();
    peer.stop()?;
    guide.node1.wait_for("VI_1", VrrpState::Master)?;
    holds(
        &guide.node1.node,
        true,
        "lbd takes over from a stopped keepalived",
    )?;
    seen.note("keepalived stops", "lbd MASTER");
    let again = start(&guide.lab, &node2, 100)?;
    settle(guide, &node2, false, "lbd yields again")?;
    seen.note("keepalived returns", "lbd BACKUP, keepalived MASTER");
    let complaints = peer::complaints(&(log + &again.log()));
    ensure!(
        complaints.is_empty(),
        "keepalived complains: {complaints:?}"
    );
    again.stop()?;

    let rejected: Vec<(String, u64)> = guide
        .node1
        .status()?
        .instances
        .into_iter()
        .flat_map(|i| i.rejected)
        .collect();
    seen.note("adverts that lbd ignored", rejected.len());
    ensure!(
        rejected.is_empty(),
        "lbd ignored adverts of keepalived: {rejected:?}"
    );
    guide.node1.configure(&guide::config(&Settings::of(100)))?;
    guide.node1.ctl(&["reload"])?;
    guide.node2.start(&guide.lab)?;
    guide.node1.wait_for("VI_1", VrrpState::Master)?;
    guide.node2.wait_for("VI_1", VrrpState::Backup)
}

/// Starts keepalived's VRRP with the guide's instance.
pub fn start(lab: &Lab, node: &Node, priority: u8) -> Result<Process> {
    let instance = peer::guide_instance(priority);
    peer::keepalived(lab, node, "  vrrp_mcast_group4 224.15.15.15", &instance)
}

/// Waits until exactly one of the two holds the address, and lbd is in the state that fits.
fn settle(guide: &Guide, peer: &Node, lbd_is_master: bool, what: &str) -> Result<()> {
    let state = if lbd_is_master {
        VrrpState::Master
    } else {
        VrrpState::Backup
    };
    // A keepalived that starts listens for a master-down time first.
    std::thread::sleep(Duration::from_secs(1));
    guide.node1.wait_for("VI_1", state)?;
    holds(&guide.node1.node, lbd_is_master, what)?;
    holds(peer, !lbd_is_master, what)?;
    // And it stays so.
    std::thread::sleep(Duration::from_secs(4));
    holds(&guide.node1.node, lbd_is_master, what)?;
    holds(peer, !lbd_is_master, what)
}

fn holds(node: &Node, expected: bool, what: &str) -> Result<()> {
    wait::until_true(what, Duration::from_secs(8), || {
        Ok(node.addresses()?.contains(&VIP.to_string()) == expected)
    })
}
