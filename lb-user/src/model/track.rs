//! What VRRP instances watch besides their own interface.

use std::{fmt, time::Duration};

/// A program whose exit status tells whether this director is fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackScript {
    /// Unique name.
    pub name: String,
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Between the beginnings of two runs.
    pub interval: Duration,
    /// A run that takes longer is killed, and counts as failed.
    pub timeout: Duration,
    /// Successes in a row that make it up, 1 or more.
    pub rise: u32,
    /// Failures in a row that make it down, 1 or more.
    pub fall: u32,
    /// Whether it counts as up before its first run.
    pub initially_up: bool,
}

/// One thing that an instance watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What.
    pub what: Tracked,
    /// -253 to 253. Added to the priority, where it is positive while the thing is up, where it is
    /// negative while it is down. With 0, down means FAULT.
    pub weight: i16,
}

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracked {
    /// A script, by its name.
    Script(String),
    /// Another interface, by its name: up with carrier.
    Interface(String),
}

impl fmt::Display for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tracked::Script(name) => write!(f, "script {name}"),
            Tracked::Interface(name) => write!(f, "interface {name}"),
        }
    }
}

/// What everything that an instance watches makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be added to the configured priority; 1 to 254 come of it.
    pub difference: i32,
    /// The instance is not fit to be master at all.
    pub fault: bool,
}
