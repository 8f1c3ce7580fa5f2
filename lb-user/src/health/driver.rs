//! Runs one task per check and tells the daemon of changes.

use std::collections::{HashMap, HashSet};

use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use super::{
    plan::{Job, Subject, difference, first_attempt},
    probe,
    state::{CheckState, Health},
};

/// Changes that may wait for the daemon; a check whose change finds no room waits with it.
const CHANGE_QUEUE: usize = 1024;

/// A real server changed its state.
#[derive(Clone, Debug)]
pub struct Change {
    /// The check that noticed.
    pub job: Job,
    /// The new state.
    pub health: Health,
    /// Why: the last attempt's error, or nothing on success.
    pub cause: Option<String>,
}

/// The running checks.
pub struct Checks {
    tasks: HashMap<Job, JoinHandle<()>>,
    changes: mpsc::Sender<Change>,
}

impl Checks {
    /// No checks yet.
    pub fn new() -> (Self, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(CHANGE_QUEUE);
        (
            Self {
                tasks: HashMap::new(),
                changes,
            },
            receiver,
        )
    }

    /// Makes `wanted` the running checks. Unchanged ones are not disturbed; `health` says what is
    /// known of a subject whose check begins.
    pub fn configure(&mut self, wanted: &[Job], health: impl Fn(&Subject) -> Health) {
        let running: HashSet<Job> = self.tasks.keys().cloned().collect();
        let (ending, beginning) = difference(&running, wanted);
        for job in ending {
            if let Some(task) = self.tasks.remove(&job) {
                task.abort();
            }
        }
        let count = beginning.len();
        for (index, job) in beginning.into_iter().enumerate() {
            let state = CheckState::new(health(&job.subject));
            let delay = first_attempt(index, count, job.check.interval);
            let task = tokio::spawn(run(job.clone(), state, delay, self.changes.clone()));
            self.tasks.insert(job, task);
        }
    }
}

impl Checks {
    /// Whether this check still runs: a change that an ended one left in the queue is stale.
    pub fn is_running(&self, job: &Job) -> bool {
        self.tasks.contains_key(job)
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

async fn run(
    job: Job,
    mut state: CheckState,
    delay: std::time::Duration,
    changes: mpsc::Sender<Change>,
) {
    sleep(delay).await;
    loop {
        let result = probe::attempt(job.target, &job.check).await;
        let next = state.attempt(result.is_ok(), &job.check);
        if let Some(health) = next.change {
            let cause = result.err().map(|error| error.to_string());
            let change = Change {
                job: job.clone(),
                health,
                cause,
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
        sleep(next.wait).await;
    }
}
