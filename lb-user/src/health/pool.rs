//! What a pool of real servers does when some of them come and go: quorum, panic guard, slow start. Pure: it
//! is handed what the checks say, and the time since the daemon's start.
//!
//! ```text
//!               live weight >= quorum + hysteresis
//!     no quorum ─────────────────────────────────────────────────► quorum
//!               ◄─────────────────────────────────────────────────
//!               live weight = 0, or < quorum - hysteresis
//!
//!               more than `panic_threshold` per cent failed within `panic_window`
//!     calm      ─────────────────────────────────────────────────► panic: those stay in use
//!               ◄─────────────────────────────────────────────────
//!               no more than `panic_threshold` per cent of them still fail
//! ```
//!
//! The live weight is that of real servers in use: those whose checks pass, and those that the guard keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::model::{PoolRules, RAMP_STEPS};

/// A real server as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Which.
    pub address: IpAddr,
    /// Its weight in force; 0 while it is drained.
    pub weight: u32,
    /// Its checks pass, or it has none.
    pub up: bool,
    /// How long it has been down, where it was ever up.
    pub down_for: Option<Duration>,
}

/// Something that became of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Enough is alive.
    QuorumGained {
        /// Live weight.
        live: u64,
        /// How long it was not.
        lasted: Duration,
    },
    /// Not enough is alive any more.
    QuorumLost {
        /// Live weight.
        live: u64,
        /// How long it was.
        lasted: Duration,
    },
    /// Too many failed at once: they are kept.
    Panic {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
    /// Few enough fail: those are taken out now.
    Calm {
        /// How many.
        failed: usize,
        /// How long the panic was.
        lasted: Duration,
    },
}

/// A pool.
#[derive(Debug, Default)]
pub struct Pool {
    members: BTreeMap<IpAddr, Member>,
    quorum: bool,
    since: Duration,
    live: u64,
    panic: Option<Duration>,
    begun: bool,
}

#[derive(Debug, Default)]
struct Member {
    up: bool,
    /// Its going down, where that may be part of a panic.
    failed: Option<Failure>,
    /// The guard keeps it.
    held: bool,
    /// When its weight began to grow, while it does.
    ramp: Option<Duration>,
}

/// A real server's going down, as the pool saw it.
#[derive(Clone, Copy, Debug)]
struct Failure {
    /// When it was seen.
    at: Duration,
    /// How long ago it was by then: an earlier daemon may have seen it.
    age: Duration,
}

impl Pool {
    /// Takes what is known of all real servers at `now`. Returns what became of the pool.
    pub fn look(&mut self, rules: &PoolRules, servers: &[Server], now: Duration) -> Vec<Turn> {
        if !self.begun {
            self.since = now;
        }
        self.follow(rules, servers, now);
        let mut turns = Vec::new();
        turns.extend(self.guard(rules, now));
        self.begun = true;
        turns.extend(self.weigh(rules, servers, now));
        turns
    }

    /// Whether a real server is to be used.
    pub fn is_in_use(&self, address: IpAddr) -> Option<bool> {
        let member = self.members.get(&address)?;
        Some(member.up || member.held)
    }

    /// Whether enough is alive.
    pub fn has_quorum(&self) -> bool {
        self.quorum
    }

    /// Since when it is so.
    pub fn quorum_since(&self) -> Duration {
        self.since
    }

    /// Weight of the real servers in use.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Since when too many have failed at once.
    pub fn panic_since(&self) -> Option<Duration> {
        self.panic
    }

    /// Those that the guard keeps although their checks fail.
    pub fn held(&self) -> BTreeSet<IpAddr> {
        let held = self.members.iter().filter(|(_, m)| m.held && !m.up);
        held.map(|(address, _)| *address).collect()
    }

    /// How much of its weight a real server has, in tenths: 1 to [`RAMP_STEPS`].
    pub fn step(&self, rules: &PoolRules, address: IpAddr, now: Duration) -> u32 {
        let began = self.members.get(&address).and_then(|member| member.ramp);
        began.map_or(RAMP_STEPS, |began| step(rules, began, now))
    }

    /// When a weight grows next.
    pub fn next_step(&self, rules: &PoolRules, now: Duration) -> Option<Duration> {
        let began = self.members.values().filter_map(|member| member.ramp);
        began
            .map(|began| began + rules.slow_start * step(rules, began, now) / RAMP_STEPS)
            .min()
    }

    fn follow(&mut self, rules: &PoolRules, servers: &[Server], now: Duration) {
        self.members
            .retain(|address, _| servers.iter().any(|server| server.address == *address));
        // What a daemon before this one saw fail together still fails together.
        let newest = servers.iter().filter_map(|server| server.down_for).min();
        let together = |server: &Server| {
            let (Some(down_for), Some(newest)) = (server.down_for, newest) else {
                return false;
            };
            !server.up && down_for - newest <= rules.panic_window
        };
        for server in servers {
            let is_new = !self.members.contains_key(&server.address);
            let member = self.members.entry(server.address).or_default();
            if is_new {
                let age = server.down_for.filter(|_| !self.begun && together(server));
                member.failed = age.map(|age| Failure { at: now, age });
            } else if member.up && !server.up {
                let age = Duration::ZERO;
                member.failed = Some(Failure { at: now, age });
                member.ramp = None;
            } else if !member.up && server.up {
                member.failed = None;
                // One that the guard kept was never away.
                if !member.held && rules.slow_start > Duration::ZERO {
                    member.ramp = Some(now);
                }
            }
            member.up = server.up;
            if member
                .ramp
                .is_some_and(|began| step(rules, began, now) == RAMP_STEPS)
            {
                member.ramp = None;
            }
        }
    }

    /// Begins and ends a panic.
    fn guard(&mut self, rules: &PoolRules, now: Duration) -> Option<Turn> {
        let all = self.members.len();
        let (panic, begins) = (self.panic, !self.begun);
        let together = |member: &Member| {
            let fresh = |failed: Failure| match panic {
                Some(since) => failed.at >= since,
                // `follow` has compared them with one another: all of it may be long ago.
                None if begins => true,
                None => failed.age + now.saturating_sub(failed.at) <= rules.panic_window,
            };
            !member.up && (member.held || member.failed.is_some_and(fresh))
        };
        let failed = self.members.values().filter(|m| together(m)).count();
        let too_many = rules
            .panic_threshold
            .is_some_and(|threshold| failed * 100 > usize::from(threshold) * all);
        match (panic, too_many) {
            (None, false) => None,
            (_, true) => {
                for member in self.members.values_mut() {
                    member.held = together(member);
                }
                self.panic = panic.or(Some(now));
                panic.is_none().then_some(Turn::Panic { failed, all })
            }
            (Some(since), false) => {
                for member in self.members.values_mut() {
                    member.held = false;
                }
                self.panic = None;
                let lasted = now.saturating_sub(since);
                Some(Turn::Calm { failed, lasted })
            }
        }
    }

    /// Gains and loses the quorum, by keepalived's rules.
    fn weigh(&mut self, rules: &PoolRules, servers: &[Server], now: Duration) -> Option<Turn> {
        let in_use = |server: &&Server| self.is_in_use(server.address) == Some(true);
        let weights = servers.iter().filter(in_use);
        let live: u64 = weights.map(|server| u64::from(server.weight)).sum();
        self.live = live;
        let (quorum, hysteresis) = (u64::from(rules.quorum), u64::from(rules.hysteresis));
        let lasted = now.saturating_sub(self.since);
        if !self.quorum && live >= quorum + hysteresis {
            self.quorum = true;
            self.since = now;
            return Some(Turn::QuorumGained { live, lasted });
        }
        if self.quorum && (live == 0 || live < quorum.saturating_sub(hysteresis)) {
            self.quorum = false;
            self.since = now;
            return Some(Turn::QuorumLost { live, lasted });
        }
        None
    }
}

/// The step of a weight that has been growing since `began`.
fn step(rules: &PoolRules, began: Duration, now: Duration) -> u32 {
    let whole = rules.slow_start.as_millis();
    if whole == 0 {
        return RAMP_STEPS;
    }
    let passed = now.saturating_sub(began).as_millis();
    let steps = passed * u128::from(RAMP_STEPS) / whole + 1;
    u32::try_from(steps).unwrap_or(RAMP_STEPS).min(RAMP_STEPS)
}

#[cfg(test)]
mod tests;
