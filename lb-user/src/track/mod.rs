//! What VRRP instances watch besides their own interface. `state`, `process`, `proc_event`, `file` and
//! `damping` are pure; `driver` runs scripts, `processes` follows processes by `connector` and
//! `procfs`, `files` follows files. What they find they [report](Finding) to the daemon, which knows
//! the rest: interfaces, routes, services.

use tokio::sync::{mpsc, oneshot};

use crate::model::{Condition, TrackFile, TrackProcess, TrackScript, Tracked};

mod connector;
pub mod damping;
pub mod driver;
pub mod file;
pub mod files;
pub mod proc_event;
pub mod process;
pub mod processes;
mod procfs;
pub mod state;

/// Findings that may wait for the daemon; whoever finds no room waits with its own.
const FINDING_QUEUE: usize = 256;

/// What became of a script, of processes or of a file.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Of what, as it was configured.
    pub of: Source,
    /// How it is.
    pub condition: Condition,
    /// What an operator should know besides: the last error, how many run.
    pub detail: Option<String>,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A script.
    Script(TrackScript),
    /// Processes.
    Process(TrackProcess),
    /// A file.
    File(TrackFile),
}

impl Source {
    /// By what instances know it.
    pub fn tracked(&self) -> Tracked {
        match self {
            Source::Script(script) => Tracked::Script(script.name.clone()),
            Source::Process(process) => Tracked::Process(process.name.clone()),
            Source::File(file) => Tracked::File(file.name.clone()),
        }
    }
}

/// Where findings go.
pub type Findings = mpsc::Sender<Finding>;

/// Both ends of the queue of findings.
pub fn findings() -> (Findings, mpsc::Receiver<Finding>) {
    mpsc::channel(FINDING_QUEUE)
}

/// What a task shall watch from now on, and where it tells what it has found at first.
struct Order<T> {
    wanted: Vec<T>,
    first: oneshot::Sender<Vec<Finding>>,
}
