//! What became of notifications.

use serde::{Deserialize, Serialize};

use crate::model::VrrpState;

/// A sync group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its instances.
    pub members: Vec<String>,
    /// The state that all of them entered last.
    pub state: Option<VrrpState>,
    /// Its notify scripts.
    pub scripts: ScriptCounts,
}

/// What became of the notify scripts of an instance or group since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScriptCounts {
    /// Runs that have ended, and attempts to begin one.
    pub runs: u64,
    /// Of those: ended with another status than 0, or could not begin.
    pub failed: u64,
    /// Of those: killed because they ran too long.
    pub timed_out: u64,
    /// Never begun, because too many waited.
    pub dropped: u64,
    /// Waiting for their turn.
    pub waiting: u64,
    /// The last one that failed or was killed.
    pub last_failure: Option<ScriptFailure>,
    /// Whether that was the last run.
    pub failing: bool,
}

/// A script that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScriptFailure {
    /// Program and arguments.
    pub command: String,
    /// What happened.
    pub what: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// The FIFO of notifications.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FifoStatus {
    /// Where it is.
    pub path: String,
    /// Lines written.
    pub written: u64,
    /// Lines that found no room, because nobody reads.
    pub dropped: u64,
    /// Lines that wait for room.
    pub waiting: u64,
    /// Why nothing is written any more.
    pub error: Option<String>,
    /// The program that reads it.
    pub reader: Option<ReaderStatus>,
}

/// The program that reads the FIFO.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReaderStatus {
    /// Program and arguments.
    pub command: String,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// How often it was started.
    pub starts: u64,
    /// How it ended last, or why it could not start.
    pub last_end: Option<String>,
}

/// Mails since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MailStatus {
    /// The server with its port.
    pub server: String,
    /// Mails that the server took, for one recipient at least.
    pub sent: u64,
    /// Mails given up.
    pub failed: u64,
    /// Mails that found no room in the queue.
    pub dropped: u64,
    /// Mails that wait, with the one being sent.
    pub waiting: u64,
    /// Attempts that did not succeed.
    pub failed_attempts: u64,
    /// Recipients refused for good.
    pub refused_recipients: u64,
    /// Whether the last attempt failed, or left a recipient out.
    pub failing: bool,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When, in seconds since 1970.
    pub last_error_at: Option<u64>,
    /// When the server took one last, in seconds since 1970.
    pub last_sent_at: Option<u64>,
}
