//! What a real server says of itself: the words of HAProxy's agent checks. Pure.
//!
//! A line has words between blanks or commas, in capitals or not, and later ones win. `75%` is a share of the
//! configured weight, a number alone a weight. `drain` and `maint` last until `ready`; `down`, `failed` and
//! `stopped`, with a reason behind `#`, last until `up`.

use thiserror::Error;

use super::state::Health;
use crate::model::Advice;

/// Largest weight, as everywhere.
const MAX_WEIGHT: u32 = 65_535;

/// What was said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    weight: Option<Advice>,
    drain: bool,
    maint: bool,
    down: Option<String>,
}

/// None of the words is known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "says {0:?}, which is none of: up, down, failed, stopped, ready, drain, maint, a share of the weight such as 75%, a weight"
)]
pub struct NotUnderstood(pub String);

/// What the words make of the real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Up, unless it says otherwise.
    pub health: Health,
    /// Why it is down.
    pub cause: Option<String>,
    /// Its weight, where it says something about it.
    pub advice: Option<Advice>,
}

impl Words {
    /// Takes a line. Nothing changes when no word of it is known.
    pub fn hear(&mut self, line: &str) -> Result<(), NotUnderstood> {
        let (words, reason) = match line.split_once('#') {
            Some((words, reason)) => (words, reason.trim()),
            None => (line, ""),
        };
        let mut known = false;
        for word in words.split([' ', '\t', ',', '\r', '\n']) {
            known |= self.take(word, reason);
        }
        if known {
            return Ok(());
        }
        // Enough to recognise it in a log.
        Err(NotUnderstood(line.chars().take(40).collect()))
    }

    fn take(&mut self, word: &str, reason: &str) -> bool {
        if let Some(weight) = weight(word) {
            self.weight = Some(weight);
            return true;
        }
        match word.to_ascii_lowercase().as_str() {
            "up" => self.down = None,
            "down" | "fail" | "failed" | "stopped" => {
                self.down = Some(match reason {
                    "" => format!("it says {word}"),
                    reason => format!("it says {word}: {reason}"),
                });
            }
            "ready" => (self.drain, self.maint) = (false, false),
            "drain" => self.drain = true,
            "maint" => self.maint = true,
            // HAProxy's limit of connections belongs to the configuration here.
            other => return other.starts_with("maxconn:"),
        }
        true
    }

    /// What all of it comes to.
    pub fn verdict(&self) -> Said {
        let cause = match (self.maint, &self.down) {
            (true, _) => Some("it says maint".to_owned()),
            (false, down) => down.clone(),
        };
        Said {
            health: cause.as_ref().map_or(Health::Up, |_| Health::Down),
            cause,
            advice: if self.drain {
                Some(Advice::Drain)
            } else {
                self.weight
            },
        }
    }
}

fn weight(word: &str) -> Option<Advice> {
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    match word.strip_suffix('%') {
        Some(share) => number(share).map(Advice::Percent),
        None => number(word)
            .filter(|weight| *weight <= MAX_WEIGHT)
            .map(Advice::Weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines in order, and what they come to: `u`p or `d`own, advice, cause.
    #[test]
    fn what_lines_come_to() {
        use Advice::{Drain, Percent, Weight};
        type Row<'a> = (&'a [&'a str], Health, Option<Advice>, Option<&'a str>);
        use Health::{Down, Up};
        let rows: &[Row<'_>] = &[
            (&["up"], Up, None, None),
            (&["75%"], Up, Some(Percent(75)), None),
            (&["75%\r"], Up, Some(Percent(75)), None),
            (&["up,50%"], Up, Some(Percent(50)), None),
            (&["50%", "up"], Up, Some(Percent(50)), None),
            (&["20"], Up, Some(Weight(20)), None),
            (&["down"], Down, None, Some("it says down")),
            (
                &["down #disk is full"],
                Down,
                None,
                Some("it says down: disk is full"),
            ),
            (
                &["stopped", "75%"],
                Down,
                Some(Percent(75)),
                Some("it says stopped"),
            ),
            (&["failed", "up"], Up, None, None),
            (&["up down"], Down, None, Some("it says down")),
            (&["down up"], Up, None, None),
            (&["drain"], Up, Some(Drain), None),
            (&["drain", "up 50%"], Up, Some(Drain), None),
            (&["drain", "50%", "ready"], Up, Some(Percent(50)), None),
            (&["maint"], Down, None, Some("it says maint")),
            (&["maint", "up"], Down, None, Some("it says maint")),
            (&["maint down", "ready"], Down, None, Some("it says down")),
            (&["maint", "ready up 100%"], Up, Some(Percent(100)), None),
            (&["UP 75%"], Up, Some(Percent(75)), None),
            (&["Down #Disk"], Down, None, Some("it says Down: Disk")),
            (&["DRAIN", "Ready"], Up, None, None),
            (&["MAXCONN:30"], Up, None, None),
            (&["maxconn:30"], Up, None, None),
            (&["ready unheard-of up"], Up, None, None),
        ];
        for (lines, health, advice, cause) in rows {
            let mut words = Words::default();
            for line in *lines {
                words.hear(line).unwrap();
            }
            let said = words.verdict();
            let seen = (said.health, said.advice, said.cause.as_deref());
            assert_eq!(seen, (*health, *advice, *cause), "{lines:?}");
        }
    }

    #[test]
    fn what_is_not_understood_changes_nothing() {
        let mut words = Words::default();
        words.hear("drain").unwrap();
        let before = words.clone();
        for line in [
            "", " ", "hello", "-5%", "+5%", "5.5%", "%", "99999", "UPPER", "# down",
        ] {
            assert!(words.hear(line).is_err(), "{line}");
            assert_eq!(words, before, "{line}");
        }
    }
}
