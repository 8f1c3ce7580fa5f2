//! While XDP forwards, IPVS takes what its program leaves to the kernel though it knows the real server: the slow path.
//!
//! The order of changes: a mark goes before its service does, and comes after it. So a packet has the mark of a service
//! that is there, or none.

use serde::{Deserialize, Serialize};

use super::{Alone, Kind, News, Pair, Planes};
use crate::dataplane::{
    Plan,
    ipvs::{self, Ipvs},
    xdp::Xdp,
};

/// What IPVS takes beside XDP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowPath {
    /// Real servers that it takes packets for; 0 where there is no slow path.
    pub servers: u64,
    /// Packets that XDP left to it since the start.
    pub packets: u64,
    /// Why there is none.
    pub obstacle: Option<String>,
}

impl Planes {
    /// Whether IPVS takes what the XDP program leaves to the kernel.
    pub const fn has_slow_path(&self) -> bool {
        self.slow.servers != 0
    }

    /// Makes the slow path fit the plan and who forwards: to be called after each change of those.
    pub(super) fn follow_slow_path(&mut self) {
        if self.forwarding() != Kind::Xdp || self.is_settling() || self.generation == 0 {
            self.slow = SlowPath::default();
            return;
        }
        let (plan, is_in_force) = (&self.plan, self.has_slow_path());
        let result = match &mut self.pair {
            Pair::Both { xdp, ipvs, .. } => bring_about(xdp, ipvs, plan, is_in_force),
            Pair::Xdp(_) | Pair::Ipvs(_) => {
                let alone = self.alone.as_ref();
                Err(alone.map_or_else(|| Alone::words(None), Alone::no_slow_path))
            }
        };
        self.note_slow_path(result);
    }

    /// Looks after the slow path's services: to be called every second.
    pub(super) fn tend_slow_path(&mut self) {
        if !self.has_slow_path() {
            // What was refused may work by now.
            return self.follow_slow_path();
        }
        let Some((xdp, ipvs)) = self.pair.both() else {
            return;
        };
        let result = match ipvs.tend_slow_path() {
            Ok(()) => Ok(publish(xdp, ipvs)),
            Err(error) => Err(error.to_string()),
        };
        self.note_slow_path(result);
    }

    fn note_slow_path(&mut self, result: Result<u64, String>) {
        /// More than this at once is not worth telling.
        const AT_ONCE: usize = 16;
        match result {
            Ok(servers) => {
                self.slow = SlowPath {
                    servers,
                    ..SlowPath::default()
                };
            }
            Err(obstacle) => {
                if let Some(xdp) = self.pair.xdp() {
                    close(xdp);
                }
                if let Some((_, ipvs)) = self.pair.both() {
                    abandon(ipvs);
                }
                let is_news = self.slow.obstacle.as_ref() != Some(&obstacle);
                // With one data plane alone that is what was configured, or was told at the start.
                if is_news && self.pair.both().is_some() && self.news.len() < AT_ONCE {
                    let text = format!(
                        "no slow path through IPVS for what XDP leaves to the kernel: {obstacle}"
                    );
                    self.news.push_back(News {
                        text,
                        is_bad: false,
                    });
                }
                self.slow = SlowPath {
                    obstacle: Some(obstacle),
                    ..SlowPath::default()
                };
            }
        }
    }

    /// What is shown of it, where XDP forwards.
    pub(super) fn show_slow_path(&mut self) -> Option<SlowPath> {
        let shown = self.slow.clone();
        let forwards = self.forwarding() == Kind::Xdp;
        let xdp = self.pair.xdp().filter(|_| forwards)?;
        Some(SlowPath {
            packets: xdp.slow_packets(),
            ..shown
        })
    }
}

/// Nothing goes to IPVS any more with a mark.
pub(super) fn close(xdp: &mut Xdp) {
    xdp.open_slow_path(false);
    xdp.clear_slow_marks();
}

/// Half a slow path is none. What cannot be removed now is removed by the next attempt.
fn abandon(ipvs: &mut Ipvs) {
    if ipvs.has_slow_path()
        && let Err(error) = ipvs.follow_slow_path(&[])
    {
        tracing::debug!(%error, "services of the slow path stay for now");
    }
}

/// Returns the number of real servers.
fn bring_about(
    xdp: &mut Xdp,
    ipvs: &mut Ipvs,
    plan: &Plan,
    is_in_force: bool,
) -> Result<u64, String> {
    if let Some(reason) = xdp.no_slow_path() {
        return Err(reason.to_owned());
    }
    let servers = ipvs::servers(plan, &xdp.backend_ids());
    let obstacle = Ipvs::slow_obstacle(&servers);
    if servers.is_empty() || obstacle.is_some() {
        close(xdp);
        if ipvs.has_slow_path() {
            ipvs.follow_slow_path(&[])
                .map_err(|error| error.to_string())?;
        }
        return obstacle.map_or(Ok(0), Err);
    }
    if is_in_force && ipvs.has_slow_path_for(&servers) {
        return Ok(servers.len() as u64);
    }
    for id in ipvs.slow_outdated(&servers) {
        xdp.set_slow_mark(id, 0);
    }
    ipvs.follow_slow_path(&servers)
        .map_err(|error| error.to_string())?;
    let count = publish(xdp, ipvs);
    xdp.open_slow_path(true);
    Ok(count)
}

/// Tells the program the marks. Returns how many there are.
fn publish(xdp: &mut Xdp, ipvs: &Ipvs) -> u64 {
    let mut count = 0;
    for (id, mark) in ipvs.slow_marks() {
        xdp.set_slow_mark(id, mark);
        count += 1;
    }
    count
}
