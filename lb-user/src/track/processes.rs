//! Follows processes: one task for all [`TrackProcess`]es. The kernel's process connector tells of
//! each death within milliseconds. Where it is refused, all of /proc is read at intervals, and the
//! deaths of what was found there are told by pidfds.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Finding, Findings, Order, Source,
    connector::{Batch, Connector},
    proc_event::ProcEvent,
    process::{ProcessState, is_meant},
    procfs,
};
use crate::{
    model::{Condition, TrackProcess},
    script::{self, Account, Outcome},
};

/// With the connector all processes are looked at this often, should an event have been missed.
const RESCAN: Duration = Duration::from_secs(30);
/// A number that changes without changing a state is told this often at most.
const COUNT_REPORT: Duration = Duration::from_secs(1);
/// Processes whose death a pidfd tells. The deaths of others are seen at the next look.
const MAX_PIDFDS: usize = 1024;
/// How long the first look through /proc is waited for.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// The followed processes, each with the account of its restart command.
pub struct Processes {
    orders: mpsc::Sender<Order<(TrackProcess, Account)>>,
}

impl Processes {
    /// Nothing is followed yet.
    pub fn new(findings: Findings) -> Self {
        Self::start(findings, true)
    }

    /// As [`Processes::new`]; the kernel need not be asked to tell of processes.
    fn start(findings: Findings, asks_kernel: bool) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        tokio::spawn(Task::new(findings, asks_kernel).run(inbox));
        Self { orders }
    }

    /// Makes these the followed ones. Unchanged ones are not disturbed. Tells how all of them are.
    pub async fn configure(&self, wanted: Vec<(TrackProcess, Account)>) -> Vec<Finding> {
        let (first, answer) = oneshot::channel();
        if self.orders.send(Order { wanted, first }).await.is_err() {
            return Vec::new();
        }
        match timeout(FIRST_LOOK, answer).await {
            Ok(Ok(findings)) => findings,
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

struct Followed {
    process: TrackProcess,
    account: Account,
    state: ProcessState,
    /// How the last try to restart ended.
    last_try: Option<String>,
    /// What was told last, and when.
    told: Option<(Condition, Option<String>, Instant)>,
}

struct Task {
    findings: Findings,
    epoch: Instant,
    followed: Vec<Followed>,
    /// Processes that are meant, and by whom: one bit for each of `followed`.
    found: HashMap<u32, u64>,
    asks_kernel: bool,
    connector: Option<Connector>,
    /// Ends with the id of a process that has ended.
    deaths: JoinSet<u32>,
    with_pidfd: HashMap<u32, tokio::task::AbortHandle>,
    restarts: JoinSet<(String, String)>,
    next_look: Instant,
}

impl Task {
    fn new(findings: Findings, asks_kernel: bool) -> Self {
        Self {
            findings,
            asks_kernel,
            epoch: Instant::now(),
            followed: Vec::new(),
            found: HashMap::new(),
            connector: None,
            deaths: JoinSet::new(),
            with_pidfd: HashMap::new(),
            restarts: JoinSet::new(),
            next_look: Instant::now(),
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order<(TrackProcess, Account)>>) {
        loop {
            let wait = self.wait();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        self.configure(order.wanted).await;
                        let _ = order.first.send(self.tell_all());
                    }
                    None => return,
                },
                batch = next_batch(&mut self.connector) => self.on_batch(batch),
                Some(Ok(pid)) = self.deaths.join_next() => {
                    self.with_pidfd.remove(&pid);
                    // Another one may have taken its place.
                    self.next_look = Instant::now();
                }
                Some(Ok((name, result))) = self.restarts.join_next() => self.on_restarted(&name, &result),
                () = sleep(wait) => {}
            }
            if !self.followed.is_empty() && self.next_look <= Instant::now() {
                self.look_at_all();
            }
            self.settle();
            if !self.tell_news().await {
                return;
            }
        }
    }

    fn wait(&self) -> Duration {
        let now = self.epoch.elapsed();
        let due = self
            .followed
            .iter()
            .filter_map(|f| f.state.due(&f.process, now))
            .map(|due| due.saturating_sub(now))
            .min();
        let news = self.followed.iter().filter_map(Followed::news_in).min();
        let look = self.next_look.saturating_duration_since(Instant::now());
        due.into_iter()
            .chain(news)
            .chain([look])
            .min()
            .unwrap_or(RESCAN)
    }

    async fn configure(&mut self, wanted: Vec<(TrackProcess, Account)>) {
        let mut before = std::mem::take(&mut self.followed);
        if wanted.is_empty() {
            self.connector = None;
        } else if self.connector.is_none() && self.asks_kernel {
            self.connector = match Connector::connect().await {
                Ok(connector) => Some(connector),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the kernel does not tell of processes here; looking for tracked ones at intervals"
                    );
                    None
                }
            };
        }
        let now = self.epoch.elapsed();
        let mut new = Vec::new();
        for (process, account) in wanted {
            let kept = before.iter().position(|f| f.process == process);
            if let Some(index) = kept {
                let mut followed = before.swap_remove(index);
                followed.account = account;
                self.followed.push(followed);
            } else {
                new.push(process.name.clone());
                let state = ProcessState::new(&process, 0, now);
                self.followed.push(Followed {
                    process,
                    account,
                    state,
                    last_try: None,
                    told: None,
                });
            }
        }
        self.look_at_all();
        for (index, followed) in self.followed.iter_mut().enumerate() {
            if new.contains(&followed.process.name) {
                let count = count(&self.found, index);
                followed.state = ProcessState::new(&followed.process, count, now);
            }
        }
        self.settle();
    }

    fn on_batch(&mut self, batch: io::Result<Batch>) {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(%error, "the kernel tells no more of processes; looking for tracked ones at intervals");
                self.connector = None;
                self.next_look = Instant::now();
                return;
            }
        };
        for event in batch.events {
            let changed = match event {
                ProcEvent::Answer(_) => false,
                // A child is what its parent is, until it runs another program.
                ProcEvent::Fork { parent, child } => {
                    let meant = self.found.get(&parent).copied().unwrap_or(0);
                    self.note(child, meant)
                }
                ProcEvent::Changed(pid) => self.look_at(pid),
                ProcEvent::Exit(pid) => self.note(pid, 0),
            };
            if changed {
                // Each number that there was counts, however short.
                self.recount();
            }
        }
        if batch.lost {
            tracing::warn!("events of processes were lost; looking at all of them");
            self.next_look = Instant::now();
        }
    }

    /// Says whether anything is new.
    fn look_at(&mut self, pid: u32) -> bool {
        let meant = procfs::read(pid).map_or(0, |process| {
            let mut meant = 0;
            for (index, followed) in self.followed.iter().enumerate() {
                if is_meant(
                    &followed.process.pattern,
                    &process.name,
                    &process.command_line,
                ) {
                    meant |= 1 << index;
                }
            }
            meant
        });
        self.note(pid, meant)
    }

    fn note(&mut self, pid: u32, meant: u64) -> bool {
        if meant == 0 {
            self.found.remove(&pid).is_some()
        } else {
            self.found.insert(pid, meant) != Some(meant)
        }
    }

    fn look_at_all(&mut self) {
        let pids = procfs::all();
        self.found.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            self.look_at(pid);
        }
        let interval = match self.connector {
            Some(_) => RESCAN,
            None => {
                self.wait_for_deaths();
                let intervals = self.followed.iter().map(|f| f.process.interval);
                intervals.min().unwrap_or(RESCAN)
            }
        };
        self.next_look = Instant::now() + interval;
    }

    /// A pidfd for each process that is meant.
    fn wait_for_deaths(&mut self) {
        self.with_pidfd.retain(|pid, task| {
            let kept = self.found.contains_key(pid);
            if !kept {
                task.abort();
            }
            kept
        });
        for pid in self.found.keys() {
            if self.with_pidfd.len() >= MAX_PIDFDS || self.with_pidfd.contains_key(pid) {
                continue;
            }
            let id = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            // One that has just ended has none.
            if let Some(Ok(fd)) = id.map(|id| pidfd_open(id, PidfdFlags::NONBLOCK)) {
                let task = self.deaths.spawn(death(*pid, fd));
                self.with_pidfd.insert(*pid, task);
            }
        }
    }

    fn recount(&mut self) {
        let now = self.epoch.elapsed();
        for (index, followed) in self.followed.iter_mut().enumerate() {
            let count = count(&self.found, index);
            followed.state.counted(&followed.process, count, now);
        }
    }

    fn settle(&mut self) {
        self.recount();
        let now = self.epoch.elapsed();
        for followed in &mut self.followed {
            let process = &followed.process;
            if !followed.state.must_restart(process, now) {
                continue;
            }
            let Some(restart) = process.restart.clone() else {
                continue;
            };
            tracing::warn!(
                process = process.name,
                running = followed.state.count(),
                "try {} of {} to start it again: {}",
                followed.state.tries(),
                restart.tries,
                restart.command.join(" ")
            );
            let (name, account) = (process.name.clone(), followed.account);
            self.restarts.spawn(async move {
                let outcome = script::run(&restart.command, restart.timeout, account).await;
                (name, words(outcome, restart.timeout))
            });
        }
    }

    fn on_restarted(&mut self, name: &str, result: &str) {
        tracing::info!(
            process = name,
            result,
            "the command that starts it again has ended"
        );
        for followed in self.followed.iter_mut().filter(|f| f.process.name == name) {
            followed.state.restarted();
            followed.last_try = Some(result.to_owned());
        }
        if self.connector.is_none() {
            self.next_look = Instant::now();
        }
    }

    fn tell_all(&mut self) -> Vec<Finding> {
        self.followed.iter_mut().map(Followed::finding).collect()
    }

    /// Says whether anybody listens.
    async fn tell_news(&mut self) -> bool {
        for followed in &mut self.followed {
            if followed.news_in() == Some(Duration::ZERO) {
                let finding = followed.finding();
                if self.findings.send(finding).await.is_err() {
                    return false;
                }
            }
        }
        true
    }
}

impl Followed {
    fn detail(&self) -> String {
        let mut text = match self.state.count() {
            0 => "none runs".to_owned(),
            1 => "1 runs".to_owned(),
            many => format!("{many} run"),
        };
        if self.state.tries() > 0 {
            let tries = self.process.restart.as_ref().map_or(0, |r| r.tries);
            text += &format!("; try {} of {tries} to restart", self.state.tries());
            if let Some(result) = &self.last_try {
                text += &format!(": {result}");
            }
        }
        if self.state.has_given_up(&self.process) {
            text += "; no more tries";
        }
        text
    }

    /// When there is something to tell.
    fn news_in(&self) -> Option<Duration> {
        let Some((condition, detail, at)) = &self.told else {
            return Some(Duration::ZERO);
        };
        if *condition != Condition::of(self.state.is_up()) {
            return Some(Duration::ZERO);
        }
        let changed = detail.as_deref() != Some(self.detail().as_str());
        changed.then(|| COUNT_REPORT.saturating_sub(at.elapsed()))
    }

    fn finding(&mut self) -> Finding {
        let condition = Condition::of(self.state.is_up());
        let detail = Some(self.detail());
        self.told = Some((condition, detail.clone(), Instant::now()));
        Finding {
            of: Source::Process(self.process.clone()),
            condition,
            detail,
        }
    }
}

fn count(found: &HashMap<u32, u64>, index: usize) -> u32 {
    let meant = found.values().filter(|meant| *meant & (1 << index) != 0);
    u32::try_from(meant.count()).unwrap_or(u32::MAX)
}

async fn next_batch(connector: &mut Option<Connector>) -> io::Result<Batch> {
    match connector {
        Some(connector) => connector.next().await,
        None => std::future::pending().await,
    }
}

/// A pidfd can be read when its process has ended.
async fn death(pid: u32, fd: OwnedFd) -> u32 {
    // SAFETY: `OwnedFd` owns one descriptor for all its life.
    match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
        Ok(fd) => {
            let _ = fd.readable().await;
        }
        // Without it the next look will tell.
        Err(_) => std::future::pending().await,
    }
    pid
}

fn words(outcome: io::Result<Outcome>, limit: Duration) -> String {
    match outcome {
        Ok(Outcome::Succeeded) => "succeeded".to_owned(),
        Ok(Outcome::Failed(status, stderr)) if stderr.is_empty() => status,
        Ok(Outcome::Failed(status, stderr)) => format!("{status}: {stderr}"),
        Ok(Outcome::Killed) => format!("killed after {}", humantime::format_duration(limit)),
        Err(error) => format!("cannot run: {error}"),
    }
}
