//! Directors go and come back.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_user::model::VrrpState;
use serde_json::Value;

use super::{Seen, traffic::under_requests};
use crate::{
    Director, Guide, Node,
    guide::{self, Settings, VIP, VIP2},
    http, wait,
};

/// Above keepalived's theoretical 3.617 s (three intervals and the skew of priority 98) there is
/// only what this machine adds.
const SILENT_LIMIT: Duration = Duration::from_millis(4_500);
/// A stop costs the skew, 617 ms.
const STOP_LIMIT: Duration = Duration::from_millis(1_500);
/// A returning master takes over without a gap worth the name.
const RETURN_LIMIT: Duration = Duration::from_millis(500);

/// Step 5.
pub fn stop(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    seen.note("node2's control element before", control(&guide.node2)?);
    let Guide {
        node1,
        node2,
        client,
        lab,
        ..
    } = guide;
    without_service(
        seen,
        client,
        "outage when node1 stops (ms)",
        STOP_LIMIT,
        || {
            node1.stop()?;
            node2.wait_for("VI_1", VrrpState::Master)
        },
    )?;
    seen.note("node2's control element after", control(node2)?);
    let left = node1.leftovers(&[&VIP.to_string()])?;
    ensure!(left.is_empty(), "node1 left behind: {left:?}");

    without_service(
        seen,
        client,
        "outage when node1 returns and preempts (ms)",
        RETURN_LIMIT,
        || {
            node1.start(lab)?;
            node1.wait_for("VI_1", VrrpState::Master)?;
            node2.wait_for("VI_1", VrrpState::Backup)
        },
    )?;
    Ok(())
}

/// Does something to the cluster under requests, notes for how long they failed, and fails when that
/// is too long.
fn without_service(
    seen: &mut Seen,
    client: &Node,
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let outage = http::outage(&under_requests(client, VIP, http::GRAIN, work)?)?;
    seen.note(what, outage.as_millis() as u64);
    ensure!(outage < limit, "{what}: {}", outage.as_millis());
    Ok(())
}

/// Step 6.
pub fn port_down(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let Guide {
        node1,
        node2,
        client,
        ..
    } = guide;
    without_service(
        seen,
        client,
        "outage when node1's port goes down (ms)",
        SILENT_LIMIT,
        || {
            node1.node.cable(false)?;
            node1.wait_for("VI_1", VrrpState::Fault)?;
            node2.wait_for("VI_1", VrrpState::Master)
        },
    )?;
    let addresses = node1.node.addresses()?;
    ensure!(
        !addresses.contains(&VIP.to_string()),
        "node1 still holds the VIP: {addresses:?}"
    );

    without_service(
        seen,
        client,
        "outage when the port returns (ms)",
        RETURN_LIMIT,
        || {
            node1.node.cable(true)?;
            node1.wait_for("VI_1", VrrpState::Master)?;
            node2.wait_for("VI_1", VrrpState::Backup)
        },
    )?;
    node1.wait_for_backends(&["up", "up", "draining"])
}

/// Step 8.
pub fn dual_master(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let pair = |first, second| {
        guide::config(&Settings {
            second: Some(second),
            ..Settings::of(first)
        })
    };
    guide.node1.configure(&pair(100, 98))?;
    guide.node2.configure(&pair(98, 100))?;
    guide.node1.ctl(&["reload"])?;
    guide.node2.ctl(&["reload"])?;
    let Guide {
        node1,
        node2,
        client,
        lab,
        ..
    } = guide;
    node2.wait_for("VI_2", VrrpState::Master)?;
    let split = masters(node1, node2)?;
    seen.note("both alive", split.clone());
    ensure!(split == "VI_1 on node1, VI_2 on node2", "{split}");
    for vip in [VIP, VIP2] {
        http::get_many(client, vip, 4)?;
    }

    // Death: the daemon is killed and the cable cut, so that nothing of node1 answers any more.
    without_service(seen, client, "outage of VI_1 (ms)", SILENT_LIMIT, || {
        node1.kill()?;
        node1.node.cable(false)?;
        node2.wait_for("VI_1", VrrpState::Master)
    })?;
    seen.note(
        "node1 dead",
        format!(
            "VI_1 {}, VI_2 {} on node2",
            node2.state("VI_1")?,
            node2.state("VI_2")?
        ),
    );
    for vip in [VIP, VIP2] {
        let pages = http::get_many(client, vip, 4)?;
        ensure!(
            pages.iter().all(|page| page.starts_with("rs")),
            "{vip}: {pages:?}"
        );
        let entry = client.neighbour(&vip.to_string())?;
        ensure!(
            entry == Some(node2.node.mac()?),
            "{vip} is at {entry:?}, not at node2"
        );
    }

    node1.node.cable(true)?;
    node1.start(lab)?;
    node1.wait_for("VI_1", VrrpState::Master)?;
    let split = masters(node1, node2)?;
    seen.note("node1 back", split.clone());
    ensure!(split == "VI_1 on node1, VI_2 on node2", "{split}");
    wait::until_true(
        "one holder of VI_1's address",
        Duration::from_secs(2),
        || Ok(!node2.node.addresses()?.contains(&VIP.to_string())),
    )?;

    node1.configure(&guide::config(&Settings::of(100)))?;
    node2.configure(&guide::config(&Settings::of(98)))?;
    node1.ctl(&["reload"])?;
    node2.ctl(&["reload"])?;
    let addresses = node2.node.addresses()?;
    ensure!(
        !addresses.contains(&VIP2.to_string()),
        "VI_2 is gone but its address is not: {addresses:?}"
    );
    Ok(())
}

fn masters(node1: &Director, node2: &Director) -> Result<String> {
    let of = |instance: &str| -> Result<String> {
        let holders: Vec<&str> = [
            ("node1", node1.state(instance)?),
            ("node2", node2.state(instance)?),
        ]
        .into_iter()
        .filter(|(_, state)| *state == VrrpState::Master)
        .map(|(name, _)| name)
        .collect();
        Ok(format!("{instance} on {}", holders.join(" and ")))
    };
    Ok(format!("{}, {}", of("VI_1")?, of("VI_2")?))
}

fn control(director: &Director) -> Result<Value> {
    let dump = director.dump("control")?;
    Ok(dump.entries.into_iter().next().unwrap_or_default())
}
