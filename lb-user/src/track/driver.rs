//! Runs one task per tracked script and tells the daemon of changes.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::state::ScriptState;
use crate::{
    model::TrackScript,
    script::{self, Account, Outcome},
};

/// Changes that may wait for the daemon; a script whose change finds no room waits with it.
const CHANGE_QUEUE: usize = 256;

/// A script changed its state.
#[derive(Clone, Debug)]
pub struct ScriptChange {
    /// The script, as it ran.
    pub script: TrackScript,
    /// Whether it is up now.
    pub up: bool,
    /// Why it is down.
    pub cause: Option<String>,
}

/// The running scripts.
pub struct Scripts {
    account: Account,
    tasks: Vec<(TrackScript, JoinHandle<()>)>,
    changes: mpsc::Sender<ScriptChange>,
}

impl Scripts {
    /// No scripts yet; they will run as `account`.
    pub fn new(account: Account) -> (Self, mpsc::Receiver<ScriptChange>) {
        let (changes, receiver) = mpsc::channel(CHANGE_QUEUE);
        let scripts = Self {
            account,
            tasks: Vec::new(),
            changes,
        };
        (scripts, receiver)
    }

    /// Makes `wanted` the running scripts. Unchanged ones are not disturbed; `is_up` says what is
    /// known of one that begins.
    pub fn configure(&mut self, wanted: &[TrackScript], is_up: impl Fn(&TrackScript) -> bool) {
        self.tasks.retain(|(script, task)| {
            let kept = wanted.contains(script);
            if !kept {
                task.abort();
            }
            kept
        });
        for script in wanted {
            if self.tasks.iter().any(|(running, _)| running == script) {
                continue;
            }
            let state = ScriptState::new(is_up(script));
            let task = run(script.clone(), state, self.account, self.changes.clone());
            self.tasks.push((script.clone(), tokio::spawn(task)));
        }
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        for (_, task) in &self.tasks {
            task.abort();
        }
    }
}

async fn run(
    script: TrackScript,
    mut state: ScriptState,
    account: Account,
    changes: mpsc::Sender<ScriptChange>,
) {
    let mut turns = interval(script.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let cause = attempt(&script.command, script.timeout, account)
            .await
            .err();
        let Some(up) = state.result(cause.is_none(), &script) else {
            continue;
        };
        let change = ScriptChange {
            script: script.clone(),
            up,
            cause,
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

async fn attempt(command: &[String], limit: Duration, account: Account) -> Result<(), String> {
    match script::run(command, limit, account).await {
        Ok(Outcome::Succeeded) => Ok(()),
        Ok(Outcome::Failed(status, stderr)) if stderr.is_empty() => Err(status),
        Ok(Outcome::Failed(status, stderr)) => Err(format!("{status}: {stderr}")),
        Ok(Outcome::Killed) => Err(format!(
            "killed after {}",
            humantime::format_duration(limit)
        )),
        Err(error) => Err(format!("cannot run: {error}")),
    }
}
