//! One check of a real server: when to ask again, and when it is up or down. Pure.
//!
//! ```text
//!            failure (an attempt and all its retries failed), `fall` of them in a row
//!       UP ─────────────────────────────────────────────────────────────────────────► DOWN
//!          ◄─────────────────────────────────────────────────────────────────────────
//!                                  success, `rise` of them in a row
//! ```
//!
//! With the defaults, `rise` and `fall` of 1, this is what keepalived's checkers do: one failed
//! attempt and all its retries make a server down, one success makes it up. A server that says
//! itself what it is, as an agent does, is believed at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Timing;

/// What is believed of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It works, or nobody has asked yet.
    Up,
    /// It failed its check.
    Down,
}

/// What an attempt showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The answer was the right one.
    Passed,
    /// It was not, or none came.
    Failed,
    /// The server said of itself what it is.
    Told(Health),
    /// Nothing of the server: the director could not ask, or silence means nothing.
    Nothing,
}

/// State of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckState {
    health: Health,
    /// Successes or failures in a row that contradict it.
    against: u32,
    /// Retries made since the first failed attempt.
    retried: u32,
    random: u64,
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The new state, if it changed.
    pub change: Option<Health>,
    /// Until the next attempt.
    pub wait: Duration,
}

impl CheckState {
    /// A check that begins in `health`; `seed` makes its jitter.
    pub fn new(health: Health, seed: u64) -> Self {
        Self {
            health,
            against: 0,
            retried: 0,
            random: seed,
        }
    }

    /// Present belief.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes the result of one attempt.
    pub fn attempt(&mut self, attempt: Attempt, timing: &Timing) -> Next {
        let before = self.health;
        let wait = match (attempt, self.health) {
            (Attempt::Nothing, Health::Up) => timing.interval,
            (Attempt::Nothing, Health::Down) => timing.down_interval,
            (Attempt::Told(health), _) => {
                self.turn(health);
                match health {
                    Health::Up => timing.interval,
                    Health::Down => timing.down_interval,
                }
            }
            (Attempt::Passed, Health::Up) => {
                self.turn(Health::Up);
                timing.interval
            }
            (Attempt::Passed, Health::Down) => {
                self.against += 1;
                if self.against < timing.rise {
                    timing.rising_interval
                } else {
                    self.turn(Health::Up);
                    timing.interval
                }
            }
            (Attempt::Failed, Health::Down) => {
                self.turn(Health::Down);
                timing.down_interval
            }
            (Attempt::Failed, Health::Up) if self.retried < timing.retries => {
                self.retried += 1;
                timing.delay_before_retry
            }
            (Attempt::Failed, Health::Up) => {
                self.retried = 0;
                self.against += 1;
                if self.against < timing.fall {
                    timing.interval
                } else {
                    self.turn(Health::Down);
                    timing.down_interval
                }
            }
        };
        Next {
            change: (self.health != before).then_some(self.health),
            wait: self.jittered(wait, timing.jitter),
        }
    }

    fn turn(&mut self, health: Health) {
        self.health = health;
        self.against = 0;
        self.retried = 0;
    }

    /// `wait`, longer or shorter by `percent` at most.
    fn jittered(&mut self, wait: Duration, percent: u8) -> Duration {
        if percent == 0 {
            return wait;
        }
        // SplitMix64 (Steele, Lea, Flood 2014): one addition a step, and every seed is a good one.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        // Minus one to one, in steps of 2^-31.
        let share = (word >> 32) as f64 / f64::from(1u32 << 31) - 1.0;
        wait.mul_f64((1.0 + share * f64::from(percent) / 100.0).max(0.0))
    }
}

#[cfg(test)]
mod tests;
