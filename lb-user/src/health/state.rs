//! One checked real server: when to ask again, and when it is up or down. Pure.
//!
//! As keepalived's checkers: a server counts as up until a check fails; one failed attempt and all
//! its retries make it down; one success makes it up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Check;

/// What is believed of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It works, or nobody has asked yet.
    Up,
    /// It failed an attempt and every retry.
    Down,
}

/// State of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckState {
    health: Health,
    failures: u32,
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
    /// A check that begins in `health`.
    pub fn new(health: Health) -> Self {
        Self {
            health,
            failures: 0,
        }
    }

    /// Present belief.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes the result of one attempt.
    pub fn attempt(&mut self, succeeded: bool, check: &Check) -> Next {
        if succeeded {
            self.failures = 0;
            return Next {
                change: self.turn(Health::Up),
                wait: check.interval,
            };
        }
        if self.health == Health::Down {
            return Next {
                change: None,
                wait: check.interval,
            };
        }
        self.failures += 1;
        if self.failures <= check.retries {
            return Next {
                change: None,
                wait: check.delay_before_retry,
            };
        }
        self.failures = 0;
        Next {
            change: self.turn(Health::Down),
            wait: check.interval,
        }
    }

    fn turn(&mut self, health: Health) -> Option<Health> {
        (std::mem::replace(&mut self.health, health) != health).then_some(health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CheckKind;

    const INTERVAL: Duration = Duration::from_secs(5);
    const RETRY: Duration = Duration::from_millis(300);

    fn check(retries: u32) -> Check {
        Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: INTERVAL,
            connect_timeout: Duration::from_secs(1),
            retries,
            delay_before_retry: RETRY,
        }
    }

    /// Attempts as `+` and `-`, what each changes (`u`, `d`, `.`), and what it waits for (`r`etry
    /// or `i`nterval).
    #[test]
    fn runs_of_attempts() {
        let rows = [
            (0, "-", "d", "i"),
            (0, "+-+", ".du", "iii"),
            (2, "---", "..d", "rri"),
            (2, "--+--", ".....", "rrirr"),
            (2, "---++", "..du.", "rriii"),
            (1, "-----", ".d...", "riiii"),
            (1, "--+--", ".du.d", "riiri"),
        ];
        for (retries, attempts, changes, waits) in rows {
            let check = check(retries);
            let mut state = CheckState::new(Health::Up);
            let (mut seen_changes, mut seen_waits) = (String::new(), String::new());
            for attempt in attempts.chars() {
                let next = state.attempt(attempt == '+', &check);
                seen_changes.push(match next.change {
                    Some(Health::Up) => 'u',
                    Some(Health::Down) => 'd',
                    None => '.',
                });
                seen_waits.push(if next.wait == RETRY { 'r' } else { 'i' });
            }
            assert_eq!(
                (seen_changes.as_str(), seen_waits.as_str()),
                (changes, waits),
                "{attempts} {retries}"
            );
        }
    }

    #[test]
    fn a_server_known_to_be_down_needs_one_success() {
        let mut state = CheckState::new(Health::Down);
        assert_eq!(
            state.attempt(false, &check(3)),
            Next {
                change: None,
                wait: INTERVAL
            }
        );
        assert_eq!(state.attempt(true, &check(3)).change, Some(Health::Up));
    }
}
