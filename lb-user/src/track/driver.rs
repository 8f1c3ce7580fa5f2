//! Runs one task per tracked script and tells the daemon what it finds.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{Finding, Findings, Source, state::ScriptState};
use crate::{
    model::{Condition, TrackScript},
    script::{self, Account, Outcome},
};

/// The running scripts.
pub struct Scripts {
    tasks: Vec<(TrackScript, JoinHandle<()>)>,
    findings: Findings,
}

impl Scripts {
    /// No scripts yet.
    pub fn new(findings: Findings) -> Self {
        Self {
            tasks: Vec::new(),
            findings,
        }
    }

    /// Makes `wanted` the running scripts, each as its account. Unchanged ones are not disturbed;
    /// `known` says what is known of one that begins.
    pub fn configure(
        &mut self,
        wanted: &[(TrackScript, Account)],
        known: impl Fn(&TrackScript) -> Option<bool>,
    ) {
        self.tasks.retain(|(script, task)| {
            let kept = wanted.iter().any(|(wanted, _)| wanted == script);
            if !kept {
                task.abort();
            }
            kept
        });
        for (script, account) in wanted {
            if self.tasks.iter().any(|(running, _)| running == script) {
                continue;
            }
            let state = known(script).map_or_else(|| ScriptState::new(script), ScriptState::known);
            let task = run(script.clone(), state, *account, self.findings.clone());
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

async fn run(script: TrackScript, mut state: ScriptState, account: Account, findings: Findings) {
    let mut turns = interval(script.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        turns.tick().await;
        let error = attempt(&script.command, script.timeout, account)
            .await
            .err();
        state.result(error.is_none(), &script);
        // One failure of several that are needed is worth to be seen, too.
        let new = (state.is_up(), error);
        if told.as_ref() == Some(&new) {
            continue;
        }
        let finding = Finding {
            of: Source::Script(script.clone()),
            condition: Condition::of(state.is_up()),
            detail: new.1.clone(),
        };
        if findings.send(finding).await.is_err() {
            return;
        }
        told = Some(new);
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
