//! What the daemon writes down for `lbctl events`, and what it counts of itself.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Daemon, DaemonError};
use crate::{
    api::proto::Reload,
    events::Kind,
    vrrp::{oddities::Oddity, packet::Rejection, runner::Snapshot},
};

/// Reloads by their result.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reloads {
    pub applied: u64,
    pub refused: u64,
}

impl Daemon {
    /// Writes down an event.
    pub(super) fn event(&mut self, kind: Kind, subject: &str, text: impl Into<String>) {
        self.event_with_peer(kind, subject, text, None);
    }

    /// Writes down an event that another router has to do with.
    pub(super) fn event_with_peer(
        &mut self,
        kind: Kind,
        subject: &str,
        text: impl Into<String>,
        peer: Option<IpAddr>,
    ) {
        let peer = peer.map(|peer| peer.to_string());
        self.journal.note(now_ms(), kind, subject, text, peer);
    }

    pub(super) fn count_reload(&mut self, result: &Result<Reload, DaemonError>) {
        let file = self.path.display().to_string();
        match result {
            Ok(reload) => {
                self.reloads.applied += 1;
                let text = match reload.changes.as_slice() {
                    [] => "reloaded: nothing has changed".to_owned(),
                    changes => format!("reloaded: {}", changes.join("; ")),
                };
                self.event(Kind::Reload, &file, text);
            }
            Err(error) => {
                self.reloads.refused += 1;
                let error = error.to_string();
                let first = error.lines().next().unwrap_or_default();
                self.event(Kind::Reload, &file, format!("refused: {first}"));
            }
        }
    }

    /// Tells of what instances heard that they should not, once for each kind and sender.
    pub(super) fn note_oddities(&mut self, snapshots: &[Snapshot]) {
        let mut totals: BTreeMap<(&str, Oddity, Option<IpAddr>), u64> = BTreeMap::new();
        for snapshot in snapshots {
            let Some(record) = self.instances.get(&snapshot.name) else {
                continue;
            };
            for (oddity, sender, count) in &snapshot.oddities {
                // What is counted at every instance of an interface is one disagreement.
                let subject = match oddity.is_of_interface() {
                    true => record.instance.interface.as_str(),
                    false => snapshot.name.as_str(),
                };
                let total = totals.entry((subject, *oddity, *sender)).or_default();
                *total = (*total).max(*count);
            }
        }
        let now = now_ms();
        for ((subject, oddity, sender), total) in totals {
            let peer = sender.map(|sender| sender.to_string());
            let text = format!("{oddity}: {}", oddity.advice());
            let is_news = self
                .journal
                .disagreement(now, subject, &text, peer.clone(), total);
            // Other routers of the segment are no concern of an operator.
            if is_news && oddity != Oddity::Rejected(Rejection::WrongVrid) {
                let who = peer.unwrap_or_else(|| "an unknown sender".to_owned());
                tracing::warn!(
                    "{subject}: {who} {} ({oddity}); more of it is only counted",
                    oddity.advice()
                );
            }
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
