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
        let mut totals = Totals::new();
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
        for ((subject, oddity, sender), total) in few_senders(totals) {
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

/// Senders of one kind of disagreement that are told of apart. More than that are forged, or one fault of all
/// of them.
const SENDERS_TOLD: usize = 8;

type Totals<'a> = BTreeMap<(&'a str, Oddity, Option<IpAddr>), u64>;

/// The same with all senders beyond the first few as one.
fn few_senders(totals: Totals<'_>) -> Totals<'_> {
    let mut few = Totals::new();
    let mut told: BTreeMap<(&str, Oddity), usize> = BTreeMap::new();
    for ((subject, oddity, sender), total) in totals {
        let told = told.entry((subject, oddity)).or_default();
        *told += usize::from(sender.is_some());
        let sender = sender.filter(|_| *told <= SENDERS_TOLD);
        *few.entry((subject, oddity, sender)).or_default() += total;
    }
    few
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_senders_are_told_of_as_one() {
        let oddity = Oddity::Rejected(Rejection::WrongPassword);
        let mut totals = Totals::new();
        totals.insert(("VI_1", oddity, None), 5);
        for sender in 1..=20_u32 {
            totals.insert(("VI_1", oddity, Some(IpAddr::V4(sender.into()))), 1);
        }
        totals.insert(("VI_2", oddity, Some(IpAddr::V4(99.into()))), 1);
        let few = few_senders(totals);
        assert_eq!(few.len(), 1 + SENDERS_TOLD + 1);
        let rest = 5 + 20 - SENDERS_TOLD as u64;
        assert_eq!(few[&("VI_1", oddity, None)], rest);
    }
}
