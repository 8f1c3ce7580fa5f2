//! Who is master, and who is told.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_user::model::VrrpState;

use super::Seen;
use crate::{
    Guide,
    guide::{self, Settings, VIP},
    http, wait,
};

/// Step 1.
pub fn election(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let (first, second) = (guide.node1.state("VI_1")?, guide.node2.state("VI_1")?);
    seen.note("node1", first.to_string());
    seen.note("node2", second.to_string());
    ensure!(
        (first, second) == (VrrpState::Master, VrrpState::Backup),
        "{first} and {second}"
    );
    let page = http::get_many(&guide.client, VIP, 1)?;
    let entry = guide
        .client
        .neighbour(&VIP.to_string())?
        .context("the client has no ARP entry")?;
    let mac = guide.node1.node.mac()?;
    seen.note("client's ARP entry for the VIP", entry.clone());
    seen.note("node1's MAC address", mac.clone());
    ensure!(
        entry == mac,
        "the client's ARP entry {entry} is not node1's {mac}"
    );
    ensure!(page[0].starts_with("rs"), "answered by {page:?}");
    let addresses = guide.node2.node.addresses()?;
    ensure!(
        !addresses.contains(&VIP.to_string()),
        "the BACKUP holds the VIP: {addresses:?}"
    );
    Ok(())
}

/// Step 7.
pub fn notify(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let log = guide.notify_log("notify")?;
    let settings = Settings {
        notify_log: Some(log.clone()),
        ..Settings::of(100)
    };
    guide.node1.configure(&guide::config(&settings))?;
    guide.node1.ctl(&["reload"])?;
    guide.node1.stop()?;
    expect(&log, &["INSTANCE VI_1 STOP 100"])?;
    guide.node1.start(&guide.lab)?;
    guide.node1.wait_for("VI_1", VrrpState::Master)?;
    guide.node1.node.cable(false)?;
    guide.node1.wait_for("VI_1", VrrpState::Fault)?;
    guide.node1.node.cable(true)?;
    guide.node1.wait_for("VI_1", VrrpState::Master)?;
    let lines = expect(
        &log,
        &[
            "INSTANCE VI_1 STOP 100",
            "backup",
            "INSTANCE VI_1 BACKUP 100",
            "master",
            "INSTANCE VI_1 MASTER 100",
            "fault",
            "INSTANCE VI_1 FAULT 100",
            "backup",
            "INSTANCE VI_1 BACKUP 100",
            "master",
            "INSTANCE VI_1 MASTER 100",
        ],
    )?;
    seen.note("notify.log", lines);
    guide.node1.configure(&guide::config(&Settings::of(100)))?;
    guide.node1.ctl(&["reload"])?;
    guide.node2.wait_for("VI_1", VrrpState::Backup)
}

fn expect(log: &Path, expected: &[&str]) -> Result<Vec<String>> {
    let read = || -> Result<Vec<String>> {
        Ok(fs::read_to_string(log)?
            .lines()
            .map(str::to_owned)
            .collect())
    };
    // The scripts run beside the daemon.
    let done = wait::until_true("the notify scripts", Duration::from_secs(5), || {
        Ok(read()? == expected)
    });
    let lines = read()?;
    done.with_context(|| format!("notify.log is {lines:?}"))?;
    Ok(lines)
}
