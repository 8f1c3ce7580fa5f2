//! What VRRP instances watch.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use super::{IpPrefix, ServiceId};

/// A program whose exit status tells whether this director is fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackScript {
    /// Unique name.
    pub name: String,
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Account that it runs as; the one of all scripts when absent.
    pub user: Option<String>,
    /// Between the beginnings of two runs.
    pub interval: Duration,
    /// A run that takes longer is killed, and counts as failed.
    pub timeout: Duration,
    /// Successes in a row that make it up, 1 or more.
    pub rise: u32,
    /// Failures in a row that make it down, 1 or more.
    pub fall: u32,
    /// Whether it counts as up before its first run. If so, the first run decides alone; if not,
    /// `rise` successes are needed (keepalived's `init_fail`).
    pub initially_up: bool,
}

/// Processes that must run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackProcess {
    /// Unique name.
    pub name: String,
    /// Which processes.
    pub pattern: ProcessPattern,
    /// How many at least.
    pub quorum: u32,
    /// How many at most.
    pub quorum_max: Option<u32>,
    /// Between two looks through all processes, where the kernel does not tell of each.
    pub interval: Duration,
    /// How long a number that rose must last before it changes the state.
    pub fork_delay: Duration,
    /// How long a number that fell must last before it changes the state.
    pub terminate_delay: Duration,
    /// What starts them again.
    pub restart: Option<Restart>,
}

/// Which processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessPattern {
    /// Those of this name: the kernel's (the first 15 bytes of the program's file name, unless the
    /// process changed it), or the last part of the path that it was called by.
    Name(String),
    /// Those with this command line.
    CommandLine {
        /// Program and arguments.
        words: Vec<String>,
        /// What more there may be.
        rest: Rest,
    },
}

/// What a command line may have beyond the configured words, in keepalived's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// More words (`partial`).
    Words,
    /// More words, and the last configured one may be the beginning of one (`initial`).
    Letters,
}

/// How processes are started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Account that it runs as; the one of all scripts when absent.
    pub user: Option<String>,
    /// Between the beginnings of two tries, at least.
    pub interval: Duration,
    /// Tries in a row, 1 or more.
    pub tries: u32,
    /// A command that takes longer is killed.
    pub timeout: Duration,
}

/// A file that holds a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackFile {
    /// Unique name.
    pub name: String,
    /// Absolute path.
    pub path: PathBuf,
    /// Weight where [`Watch`] gives none, -254 to 254.
    pub weight: i16,
    /// Value to be written when the file is watched for the first time.
    pub init: Option<InitialValue>,
}

/// What is written into a tracked file at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialValue {
    /// The number.
    pub value: i32,
    /// Whether a file that exists already is overwritten.
    pub overwrite: bool,
}

/// A route of the kernel, of whatever origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrackRoute {
    /// Its destination, exactly.
    pub prefix: IpPrefix,
    /// A router that it must lead to; any when absent.
    pub via: Option<IpAddr>,
    /// An interface that it must lead out of; any when absent.
    pub dev: Option<String>,
    /// Its table; 254 is "main".
    pub table: u32,
}

impl TrackRoute {
    /// The table of routes that name none (RT_TABLE_MAIN).
    pub const MAIN: u32 = 254;
}

impl fmt::Display for TrackRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        match self.table {
            Self::MAIN => Ok(()),
            table => write!(f, " table {table}"),
        }
    }
}

/// One thing that an instance watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What.
    pub what: Tracked,
    /// -253 to 253. Added to the priority, where it is positive while the thing is up, where it is
    /// negative while it is down. With 0, down means FAULT. Of a file, -254 to 254: its value is
    /// multiplied by it.
    pub weight: i16,
}

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracked {
    /// A script, by its name.
    Script(String),
    /// Another interface, by its name: up with carrier.
    Interface(String),
    /// Processes, by the name of their [`TrackProcess`].
    Process(String),
    /// A file, by the name of its [`TrackFile`].
    File(String),
    /// A route.
    Route(TrackRoute),
    /// A service: up with at least this many live real servers.
    Service(ServiceId, u32),
}

impl fmt::Display for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tracked::Script(name) => write!(f, "script {name}"),
            Tracked::Interface(name) => write!(f, "interface {name}"),
            Tracked::Process(name) => write!(f, "process {name}"),
            Tracked::File(name) => write!(f, "file {name}"),
            Tracked::Route(route) => write!(f, "route {route}"),
            Tracked::Service(id, 1) => write!(f, "service {id}"),
            Tracked::Service(id, quorum) => write!(f, "service {id} (quorum {quorum})"),
        }
    }
}

/// How a watched thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Fit.
    Up,
    /// Unfit.
    Down,
    /// A file's number.
    Value(i32),
}

impl Condition {
    /// Up or down.
    pub fn of(up: bool) -> Self {
        if up { Condition::Up } else { Condition::Down }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Up => f.write_str("up"),
            Condition::Down => f.write_str("down"),
            Condition::Value(value) => write!(f, "value {value}"),
        }
    }
}

/// What one watched thing does to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It cannot be master.
    Fault,
    /// Its priority moves by so much.
    Priority(i32),
}

/// What everything that an instance watches makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be added to the configured priority; 1 to 254 come of it.
    pub difference: i32,
    /// The instance is not fit to be master at all.
    pub fault: bool,
}

/// When an interface that was down is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkDamping {
    /// How long it must have been up without interruption.
    pub up_delay: Duration,
    /// How many losses within `window` are borne; one more, and it must be up for `hold`. 0: any
    /// number.
    pub flaps: u32,
    /// Time in which losses are counted.
    pub window: Duration,
    /// How long it must then be up. Doubles each time.
    pub hold: Duration,
    /// The most that it doubles to.
    pub hold_max: Duration,
}

impl Default for LinkDamping {
    fn default() -> Self {
        Self {
            up_delay: Duration::ZERO,
            flaps: 0,
            window: Duration::from_secs(60),
            hold: Duration::from_secs(10),
            hold_max: Duration::from_secs(300),
        }
    }
}
