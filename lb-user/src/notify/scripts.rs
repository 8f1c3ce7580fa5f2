//! Scripts of one instance or group: in order and one at a time, without a shell, as an unprivileged
//! account, killed with their process group when they take too long, and counted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{backlog::Backlog, unix};
use crate::{
    api::proto::{ScriptCounts, ScriptFailure},
    script::{self, Account, Outcome},
};

/// Commands of one instance that wait for their turn. An instance that changes its state so often
/// that a hundred wait has a problem no script solves; the oldest are dropped and counted.
const QUEUE: usize = 100;

/// Runs scripts one after the other.
pub struct ScriptQueue {
    calls: Arc<Backlog<Queued>>,
    counts: Arc<Mutex<ScriptCounts>>,
    task: JoinHandle<()>,
}

/// A script to run.
pub struct Call {
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may run.
    pub limit: Duration,
    /// What must have ended before.
    pub after: Vec<Ended>,
}

/// Tells when a script has ended, or will never run.
pub struct Ended(oneshot::Receiver<()>);

/// A call with the mark of its end, which a dropped one leaves too.
struct Queued {
    call: Call,
    _ends: oneshot::Sender<()>,
}

impl ScriptQueue {
    /// An empty queue whose scripts run as `account`.
    pub fn new(account: Account) -> Self {
        let calls = Arc::new(Backlog::new(QUEUE));
        let counts = Arc::new(Mutex::new(ScriptCounts::default()));
        let task = tokio::spawn(work(calls.clone(), counts.clone(), account));
        Self {
            calls,
            counts,
            task,
        }
    }

    /// Adds a script to the end of the queue.
    pub fn push(&self, call: Call) -> Ended {
        let (ends, ended) = oneshot::channel();
        let name = call.command.join(" ");
        if !self.calls.push(Queued { call, _ends: ends }) {
            tracing::error!(
                script = name,
                "too many notify scripts wait; the oldest is dropped"
            );
        }
        Ended(ended)
    }

    /// What became of them.
    pub fn counts(&self) -> ScriptCounts {
        let mut counts = lock(&self.counts).clone();
        counts.waiting = self.calls.waiting();
        counts.dropped = self.calls.dropped();
        counts
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.calls.close();
    }

    /// Whether everything has run after [`ScriptQueue::close`].
    pub fn is_done(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for what is queued, and kills what still runs at `end`. Whether nothing did.
    pub async fn finish(mut self, end: Instant) -> bool {
        self.close();
        let done = timeout_at(end, &mut self.task).await.is_ok();
        if !done {
            self.task.abort();
            let _ = (&mut self.task).await;
        }
        done
    }
}

async fn work(calls: Arc<Backlog<Queued>>, counts: Arc<Mutex<ScriptCounts>>, account: Account) {
    while let Some(queued) = calls.next().await {
        let Queued { call, _ends } = queued;
        for Ended(ended) in call.after {
            // Its sender is never used: it goes when the script has ended.
            let _ = ended.await;
        }
        let name = call.command.join(" ");
        let outcome = script::run(&call.command, call.limit, account).await;
        let mut counts = lock(&counts);
        counts.runs += 1;
        counts.failing = true;
        let what = match outcome {
            Ok(Outcome::Succeeded) => {
                tracing::debug!(script = name, "notify script: exit status: 0");
                counts.failing = false;
                continue;
            }
            Ok(Outcome::Failed(status, stderr)) => {
                counts.failed += 1;
                tracing::warn!(script = name, status, stderr, "notify script failed");
                match stderr.as_str() {
                    "" => status,
                    stderr => format!("{status}: {stderr}"),
                }
            }
            Ok(Outcome::Killed) => {
                counts.timed_out += 1;
                let limit = humantime::format_duration(call.limit);
                tracing::warn!(script = name, %limit, "notify script killed: it ran too long");
                format!("killed after {limit}")
            }
            Err(error) => {
                counts.failed += 1;
                tracing::warn!(script = name, %error, "cannot run a notify script");
                format!("cannot run: {error}")
            }
        };
        counts.last_failure = Some(ScriptFailure {
            command: name,
            what,
            at: unix(SystemTime::now()),
        });
    }
}

fn lock(counts: &Mutex<ScriptCounts>) -> MutexGuard<'_, ScriptCounts> {
    // Every change is complete before anything could panic.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn call(text: &str, limit: Duration) -> Call {
        Call {
            command: ["sh", "-c", text].map(str::to_owned).to_vec(),
            limit,
            after: Vec::new(),
        }
    }

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lbd-scripts-{name}-{}", std::process::id()))
    }

    fn read_and_remove(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    }

    fn in_a_while() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn one_at_a_time_in_order_and_counted() {
        let log = log("order");
        let queue = ScriptQueue::new(Account::own());
        let path = log.display();
        queue.push(call(&format!("sleep 0.3; echo one >> {path}"), LONG));
        queue.push(call(
            &format!("echo two >> {path}; echo no >&2; exit 3"),
            LONG,
        ));
        queue.push(call("sleep 1000", Duration::from_millis(100)));
        queue.push(call(&format!("echo three >> {path}"), LONG));
        let missing = Call {
            command: vec!["/no/such/script".to_owned()],
            limit: LONG,
            after: Vec::new(),
        };
        queue.push(missing);
        let counts = queue.counts.clone();
        assert!(queue.finish(in_a_while()).await);
        assert_eq!(read_and_remove(&log), "one\ntwo\nthree\n");
        let counts = lock(&counts).clone();
        assert_eq!(
            (counts.runs, counts.failed, counts.timed_out, counts.failing),
            (5, 2, 1, true)
        );
        let last = counts.last_failure.unwrap();
        assert_eq!(last.command, "/no/such/script");
        assert!(last.what.starts_with("cannot run: "), "{}", last.what);
    }

    #[tokio::test]
    async fn a_script_waits_for_those_of_others() {
        let log = log("after");
        let path = log.display();
        let [first, second, group] = [(); 3].map(|()| ScriptQueue::new(Account::own()));
        let after = vec![
            first.push(call(&format!("sleep 0.5; echo slow >> {path}"), LONG)),
            second.push(call(&format!("echo quick >> {path}"), LONG)),
        ];
        group.push(Call {
            after,
            ..call(&format!("echo group >> {path}"), LONG)
        });
        // Scripts of the others go on meanwhile.
        second.push(call(&format!("echo next >> {path}"), LONG));
        for queue in [group, first, second] {
            assert!(queue.finish(in_a_while()).await);
        }
        assert_eq!(read_and_remove(&log), "quick\nnext\nslow\ngroup\n");
    }

    #[tokio::test]
    async fn too_many_lose_the_oldest_and_nobody_waits_for_them() {
        let queue = ScriptQueue::new(Account::own());
        let mut ended = Vec::new();
        for n in 0..QUEUE + 5 {
            ended.push(queue.push(call(&format!("exit {n}"), LONG)));
        }
        // The task had no turn yet.
        let counts = queue.counts();
        assert_eq!((counts.waiting, counts.dropped), (QUEUE as u64, 5));
        for Ended(receiver) in ended.drain(..5) {
            assert!(receiver.await.is_err());
        }
        queue.task.abort();
    }

    #[tokio::test]
    async fn what_runs_at_the_end_is_killed() {
        let queue = ScriptQueue::new(Account::own());
        queue.push(call("sleep 1000", Duration::from_secs(2000)));
        let began = Instant::now();
        let done = queue
            .finish(Instant::now() + Duration::from_millis(200))
            .await;
        assert!(!done && began.elapsed() < Duration::from_secs(5));
    }
}
