//! Runs one task per check and tells the daemon of changes.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    board::Change,
    lateness::Lateness,
    plan::{Job, Subject, difference, first_attempt},
    probe::{Probe, ProbeError, Verdict},
    state::{Attempt, CheckState, Health},
};
use crate::{
    model::{Advice, Spread},
    script::Account,
};

/// Changes that may wait for the daemon; a check whose change finds no room waits with it.
const CHANGE_QUEUE: usize = 1024;

/// The running checks.
pub struct Checks {
    account: Account,
    tasks: HashMap<Job, Running>,
    lateness: Arc<Lateness>,
    changes: mpsc::Sender<Change>,
}

struct Running {
    task: JoinHandle<()>,
    gauge: Arc<Gauge>,
    /// Wakes it before its time.
    hurry: Arc<Notify>,
    /// When that was done last.
    hurried: Option<Instant>,
}

/// What a check has done so far.
#[derive(Debug, Default)]
pub struct Gauge {
    attempts: AtomicU64,
    failures: AtomicU64,
    /// The last attempt showed nothing of the server.
    blind: AtomicBool,
    /// Why the last attempt failed, or showed nothing.
    trouble: Mutex<Option<String>>,
}

/// A reading of a [`Gauge`].
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Attempts that have ended.
    pub attempts: u64,
    /// Those that failed.
    pub failures: u64,
    /// The last one showed nothing of the server: its state may be old.
    pub blind: bool,
    /// Why the last one failed, or showed nothing.
    pub trouble: Option<String>,
}

impl Checks {
    /// No checks yet; commands will run as `account`.
    pub fn new(account: Account) -> (Self, mpsc::Receiver<Change>) {
        allow_descriptors();
        let (changes, receiver) = mpsc::channel(CHANGE_QUEUE);
        let checks = Self {
            account,
            tasks: HashMap::new(),
            lateness: Arc::default(),
            changes,
        };
        (checks, receiver)
    }

    /// Makes `wanted` the running checks. Unchanged ones are not disturbed; `known` says what is
    /// known by one that begins.
    pub fn configure(&mut self, wanted: &[Job], known: impl Fn(&Job) -> (Health, Option<Advice>)) {
        let running: HashSet<Job> = self.tasks.keys().cloned().collect();
        let (ending, beginning) = difference(&running, wanted);
        for job in ending {
            if let Some(running) = self.tasks.remove(&job) {
                running.task.abort();
            }
        }
        let count = beginning.len();
        for (index, job) in beginning.into_iter().enumerate() {
            let (health, advice) = known(&job);
            let state = CheckState::new(health, seed());
            let delay = first_attempt(index, count, job.check.timing.warmup);
            let gauge = Arc::new(Gauge::default());
            let hurry = Arc::new(Notify::new());
            let probe = Probe::new(&job, self.account, seed());
            let task = run(
                job.clone(),
                probe,
                (state, advice),
                (delay, hurry.clone()),
                (gauge.clone(), self.lateness.clone()),
                self.changes.clone(),
            );
            let task = tokio::spawn(task);
            let running = Running {
                task,
                gauge,
                hurry,
                hurried: None,
            };
            self.tasks.insert(job, running);
        }
    }

    /// Lets the checks of a real server make their next attempt at once: each at most once in its interval.
    /// Says whether any does.
    pub fn hurry(&mut self, subject: &Subject) -> bool {
        let now = Instant::now();
        let mut any = false;
        for (job, running) in &mut self.tasks {
            let interval = job.check.timing.interval;
            let rests = running.hurried.is_some_and(|at| now < at + interval);
            if job.subject == *subject && !rests {
                running.hurried = Some(now);
                running.hurry.notify_one();
                any = true;
            }
        }
        any
    }

    /// How late all attempts began so far.
    pub fn lateness(&self) -> Spread {
        self.lateness.read()
    }

    /// What a check has done so far.
    pub fn reading(&self, job: &Job) -> Reading {
        self.tasks
            .get(job)
            .map(|running| running.gauge.read())
            .unwrap_or_default()
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for running in self.tasks.values() {
            running.task.abort();
        }
    }
}

impl Gauge {
    fn note(&self, attempt: Attempt, trouble: Option<&str>) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if attempt == Attempt::Failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.blind
            .store(attempt == Attempt::Nothing, Ordering::Relaxed);
        if let Ok(mut last) = self.trouble.lock()
            && last.as_deref() != trouble
        {
            *last = trouble.map(str::to_owned);
        }
    }

    fn read(&self) -> Reading {
        Reading {
            attempts: self.attempts.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            blind: self.blind.load(Ordering::Relaxed),
            trouble: self.trouble.lock().ok().and_then(|last| last.clone()),
        }
    }
}

/// Every attempt needs a descriptor or two, and 1,024 is the usual limit of a process: as many as the
/// administrator allows at most.
fn allow_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "cannot raise the limit of open files; many checks may need more");
    }
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

async fn run(
    job: Job,
    mut probe: Probe,
    (mut state, mut advice): (CheckState, Option<Advice>),
    (delay, hurry): (Duration, Arc<Notify>),
    (gauge, lateness): (Arc<Gauge>, Arc<Lateness>),
    changes: mpsc::Sender<Change>,
) {
    let mut due = Instant::now() + delay;
    loop {
        tokio::select! {
            () = sleep_until(due) => lateness.note(due.elapsed()),
            () = hurry.notified() => {}
        }
        let failed = |attempt, error: &ProbeError| Verdict {
            attempt,
            advice,
            cause: Some(error.to_string()),
        };
        let verdict = match probe.attempt().await {
            Ok(verdict) => verdict,
            Err(error) if error.is_local() => failed(Attempt::Nothing, &error),
            Err(error) => failed(Attempt::Failed, &error),
        };
        let ended = Instant::now();
        gauge.note(verdict.attempt, verdict.cause.as_deref());
        let next = state.attempt(verdict.attempt, &job.check.timing);
        // What says nothing says nothing of the weight either.
        let advised = match verdict.attempt {
            Attempt::Nothing => advice,
            _ => verdict.advice,
        };
        if next.change.is_some() || advised != advice {
            advice = advised;
            let change = Change {
                job: job.clone(),
                health: state.health(),
                cause: verdict.cause,
                ended: ended.into_std(),
                advice,
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
        due = ended + next.wait;
    }
}
