//! Which real servers of IPVS are sent connections that come to nothing. Pure: it is handed the kernel's counters once a
//! second, says whether the table of connections is worth a look, and is handed what is half-open there.
//!
//! The counters alone do not tell: the packets of a few connections that nobody answers are as many as those of one that is
//! answered at once. But mostly they tell that nothing is wrong, and cost nothing. A connection that is half-open at two looks
//! has waited for about a second; how old it is the kernel does not tell, because each SYN that comes once more renews its time.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use crate::dataplane::{
    BackendKey,
    silence::{self, Silence, Watch},
};

/// Sweeps that are looked back for whether something may be wrong.
const RECENT: usize = 3;
/// New connections in that time that are worth a look: one less is a client that went away.
const AT_LEAST: u64 = 3;
/// Packets for each of them. A client sends its first one at most four times in three seconds; this leaves room for those of connections
/// before, and is less than what a request and its answer take. Most servers that answer are not looked at.
const MOST_PACKETS: u64 = 6;
/// Connections in the kernel's table: a look reads a line of each, every second while there is suspicion.
const MOST_CONNECTIONS: u64 = 50_000;

/// What the kernel has counted of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections since it was added.
    pub connections: u64,
    /// Packets to it.
    pub packets: u64,
}

/// A half-open connection, to a port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HalfOpen {
    /// With which real server.
    pub server: BackendKey,
    /// Whose.
    pub client: SocketAddr,
    /// Which port.
    pub port: u16,
}

/// What came of the look that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nobody looked.
    None,
    /// It is not finished.
    Pending,
    /// These are half-open.
    Done(Vec<HalfOpen>),
}

/// Follows all real servers.
#[derive(Debug, Default)]
pub struct Unanswered {
    sweep: u64,
    recent: HashMap<BackendKey, VecDeque<Counters>>,
    /// Half-open connections, and the sweep that heard of each first.
    open: HashMap<HalfOpen, u64>,
    watch: Watch<BackendKey>,
}

impl Unanswered {
    /// Takes what one sweep found: counters, how many connections the kernel's table has, and the last look. Returns whether
    /// another one is worth its while.
    pub fn sweep(&mut self, seen: &[(BackendKey, Counters)], all: u64, look: Look) -> bool {
        self.sweep += 1;
        match look {
            Look::Pending => {}
            Look::None => self.open.clear(),
            Look::Done(open) => {
                let first = |one: &HalfOpen| self.open.get(one).copied().unwrap_or(self.sweep);
                self.open = open.iter().map(|one| (*one, first(one))).collect();
            }
        }
        let mut unanswered: HashMap<BackendKey, u32> = HashMap::new();
        for (one, first) in &self.open {
            if silence::counts(self.sweep - first) {
                *unanswered.entry(one.server).or_default() += 1;
            }
        }
        let counted = seen.iter().map(|(server, counters)| {
            let unanswered = unanswered.get(server).copied().unwrap_or_default();
            (*server, counters.connections, unanswered)
        });
        self.watch.sweep(counted);
        let is_suspicious = self.remember(seen);
        is_suspicious && all <= MOST_CONNECTIONS
    }

    /// Real servers that most new connections got no answer from.
    pub fn silent(&self) -> Vec<(BackendKey, Silence)> {
        self.watch.all().collect()
    }

    /// Whether some real server was sent connections, and hardly anything else.
    fn remember(&mut self, seen: &[(BackendKey, Counters)]) -> bool {
        let mut before = std::mem::take(&mut self.recent);
        let mut is_suspicious = false;
        for (server, now) in seen {
            let mut history = before.remove(server).unwrap_or_default();
            // What was before the first sweep is not known; a real server that was added again counts anew.
            let then = history.front().copied().unwrap_or(*now);
            let made = now.connections.saturating_sub(then.connections);
            let packets = now.packets.saturating_sub(then.packets);
            is_suspicious |= made >= AT_LEAST && packets <= made * MOST_PACKETS;
            history.push_back(*now);
            while history.len() > RECENT {
                history.pop_front();
            }
            self.recent.insert(*server, history);
        }
        is_suspicious
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceId, Target};

    fn server(last: u8) -> BackendKey {
        let vip: SocketAddr = "10.1.15.50:80".parse().unwrap();
        let target = Target::Host([10, 1, 15, last].into());
        (ServiceId::new(Protocol::Tcp, vip), target, false)
    }

    fn counters(connections: u64, packets: u64) -> Counters {
        Counters {
            connections,
            packets,
        }
    }

    fn open(server: BackendKey, clients: std::ops::Range<u16>) -> Look {
        let of = |client: u16| HalfOpen {
            server,
            client: SocketAddr::new([192, 0, 2, 1].into(), client),
            port: 80,
        };
        Look::Done(clients.map(of).collect())
    }

    /// Connections and packets after each sweep, and whether the last one is followed by a look.
    #[test]
    fn few_packets_for_many_connections_are_worth_a_look() {
        let rows: [(&[(u64, u64)], bool); 9] = [
            (&[(0, 0), (3, 3)], true),
            (&[(0, 0), (2, 2)], false),
            // Each SYN four times.
            (&[(0, 0), (3, 3), (3, 6), (3, 9)], true),
            (&[(0, 0), (10, 40), (20, 80)], true),
            // Answered requests.
            (&[(0, 0), (10, 70), (20, 140)], false),
            // Nothing new for three seconds.
            (&[(0, 0), (9, 9), (9, 9), (9, 9), (9, 9)], false),
            // A daemon that begins knows nothing of what was before.
            (&[(500, 500)], false),
            (&[(500, 500), (503, 503)], true),
            // Added again.
            (&[(500, 500), (0, 0), (2, 2)], false),
        ];
        for (sweeps, looks) in rows {
            let mut unanswered = Unanswered::default();
            let mut last = false;
            for (connections, packets) in sweeps {
                let seen = [(server(45), counters(*connections, *packets))];
                last = unanswered.sweep(&seen, *connections, Look::None);
            }
            assert_eq!(last, looks, "{sweeps:?}");
        }
    }

    #[test]
    fn a_large_table_is_left_alone() {
        let mut unanswered = Unanswered::default();
        let seen = |connections| [(server(45), counters(connections, connections))];
        assert!(!unanswered.sweep(&seen(0), 50_000, Look::None));
        assert!(unanswered.sweep(&seen(9), 50_000, Look::None));
        assert!(!unanswered.sweep(&seen(18), 50_001, Look::None));
    }

    #[test]
    fn half_open_at_two_looks_is_unanswered() {
        let (quiet, well) = (server(45), server(46));
        let mut unanswered = Unanswered::default();
        let mut sweep = |connections: u64, look| {
            let seen = [
                (quiet, counters(connections, connections)),
                (well, counters(connections, connections * 9)),
            ];
            let looks = unanswered.sweep(&seen, 100, look);
            (looks, unanswered.silent())
        };
        assert_eq!(sweep(0, Look::None), (false, vec![]));
        assert_eq!(sweep(4, Look::None), (true, vec![]));
        // Some of these are on their way.
        assert_eq!(sweep(8, open(quiet, 0..6)), (true, vec![]));
        let said = |unanswered, connections| {
            let silence = Silence {
                unanswered,
                connections,
            };
            vec![(quiet, silence)]
        };
        assert_eq!(sweep(12, open(quiet, 0..10)), (true, said(6, 8)));
        assert_eq!(sweep(16, Look::Pending), (true, said(10, 12)));
        // It answers again, and nobody needs to look any more.
        assert_eq!(sweep(20, open(quiet, 10..12)), (true, vec![]));
        assert_eq!(sweep(20, Look::None), (true, vec![]));
        assert_eq!(sweep(20, Look::None), (true, vec![]));
        assert_eq!(sweep(20, Look::None), (false, vec![]));
    }

    /// One that waits for a minute does not speak for new ones.
    #[test]
    fn only_the_last_seconds_count() {
        let mut unanswered = Unanswered::default();
        let mut counted = Vec::new();
        for sweep in 0..9 {
            let seen = [(server(45), counters(3 + sweep, 3 + sweep))];
            unanswered.sweep(&seen, 9, open(server(45), 0..8));
            counted.push(unanswered.silent().len());
        }
        assert_eq!(counted, [0, 1, 1, 1, 1, 1, 0, 0, 0]);
    }
}
