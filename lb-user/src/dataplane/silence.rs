//! Real servers that are sent connections which come to nothing: the client's first packet was seen, and no
//! second one. Pure.
//!
//! A client's second packet of a TCP connection acknowledges the server's answer. So a connection that stays
//! half-open for longer than a second had no answer, or has a client that asks for none (a flood of SYNs from
//! invented addresses). That is why it is a hint for health checks and decides nothing.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Sweeps, and so seconds, for which a connection may wait before it counts.
const PATIENCE: usize = 1;
/// Seconds that are looked back. A client gives up its third attempt after seven.
const WINDOW: usize = 5;
/// Fewer than this may be a client that went away.
const AT_LEAST: u32 = 3;

/// What was seen of a real server in the last seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Connections that got no further than their first packet.
    pub unanswered: u32,
    /// Of how many.
    pub connections: u32,
}

/// Follows the connections of real servers, each known by a number or whatever else names it.
#[derive(Debug)]
pub struct Watch<K = u16> {
    /// Connections scheduled so far, of the last sweeps, the newest last.
    scheduled: HashMap<K, VecDeque<u64>>,
    silent: HashMap<K, Silence>,
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self {
            scheduled: HashMap::new(),
            silent: HashMap::new(),
        }
    }
}

/// Whether a connection whose first packet was so many seconds ago is to be counted.
pub fn counts(age_s: u64) -> bool {
    (PATIENCE as u64..(PATIENCE + WINDOW) as u64).contains(&age_s)
}

impl<K: Copy + Eq + Hash> Watch<K> {
    /// Takes what one sweep found, for each real server: connections scheduled since the program was
    /// loaded, and those that [`counts`] names.
    pub fn sweep(&mut self, seen: impl Iterator<Item = (K, u64, u32)>) {
        let mut before = std::mem::take(&mut self.scheduled);
        self.silent.clear();
        for (id, scheduled, unanswered) in seen {
            let mut history = before.remove(&id).unwrap_or_default();
            history.push_back(scheduled);
            while history.len() > PATIENCE + WINDOW + 1 {
                history.pop_front();
            }
            // Those of the time that unanswered ones can be of.
            let newest = history.len().checked_sub(1 + PATIENCE);
            let newest = newest.and_then(|at| history.get(at)).copied();
            let oldest = history.front().copied().unwrap_or(scheduled);
            let made = newest.map_or(0, |newest| newest.saturating_sub(oldest));
            let connections = u32::try_from(made).unwrap_or(u32::MAX).max(unanswered);
            if unanswered >= AT_LEAST && unanswered > connections / 2 {
                let silence = Silence {
                    unanswered,
                    connections,
                };
                self.silent.insert(id, silence);
            }
            self.scheduled.insert(id, history);
        }
    }

    /// What was seen of a real server, if most of its connections came to nothing.
    pub fn of(&self, id: K) -> Option<Silence> {
        self.silent.get(&id).copied()
    }

    /// The same of all.
    pub fn all(&self) -> impl Iterator<Item = (K, Silence)> + '_ {
        self.silent.iter().map(|(id, silence)| (*id, *silence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections scheduled and unanswered in each sweep, and what is said after the last.
    #[test]
    fn most_of_several_must_be_unanswered() {
        type Row<'a> = (&'a [(u64, u32)], Option<(u32, u32)>);
        let rows: [Row<'_>; 7] = [
            (&[(0, 0), (9, 0), (18, 0)], None),
            (&[(0, 0), (4, 0), (8, 4)], Some((4, 4))),
            // One client that went away.
            (&[(0, 0), (1, 0), (1, 1)], None),
            // Half of them are answered.
            (&[(0, 0), (8, 0), (16, 4)], None),
            (&[(0, 0), (8, 0), (16, 5)], Some((5, 8))),
            // Long ago they were answered.
            (
                &[
                    (900, 0),
                    (900, 0),
                    (900, 0),
                    (900, 0),
                    (900, 0),
                    (900, 0),
                    (903, 0),
                    (904, 3),
                ],
                Some((3, 3)),
            ),
            // A daemon that takes over knows nothing of what was before.
            (&[(5_000, 3)], Some((3, 3))),
        ];
        for (sweeps, said) in rows {
            let mut watch = Watch::default();
            for (scheduled, unanswered) in sweeps {
                watch.sweep([(7, *scheduled, *unanswered)].into_iter());
            }
            let said = said.map(|(unanswered, connections)| Silence {
                unanswered,
                connections,
            });
            assert_eq!(watch.of(7), said, "{sweeps:?}");
        }
    }

    #[test]
    fn one_that_is_gone_is_forgotten() {
        let mut watch = Watch::default();
        watch.sweep([(7, 3, 3)].into_iter());
        watch.sweep(std::iter::empty());
        assert_eq!(watch.of(7), None);
    }

    #[test]
    fn only_the_last_seconds_count() {
        let ages: Vec<u64> = (0..9).filter(|age| counts(*age)).collect();
        assert_eq!(ages, [1, 2, 3, 4, 5]);
    }
}
