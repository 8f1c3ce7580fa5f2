//! What is known of each checked real server: it is up while all of its checks say so. Pure; times are
//! since 1970.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    memory::{Memory, Remembered},
    plan::{Job, Subject},
    state::Health,
};
use crate::model::{Advice, Advised, ServiceId};

/// A check changed what it says.
#[derive(Clone, Debug)]
pub struct Change {
    /// The check.
    pub job: Job,
    /// Its state now.
    pub health: Health,
    /// Why: the last attempt's error, or nothing on success.
    pub cause: Option<String>,
    /// What it says of the weight.
    pub advice: Option<Advice>,
    /// When the attempt ended that showed it.
    pub ended: Instant,
}

/// What is known of all.
#[derive(Debug, Default)]
pub struct Board {
    records: HashMap<Subject, Record>,
    /// What a daemon before this one knew, until the first checks are told. They may go another way to the
    /// real server than was known when it was read.
    remembered: HashMap<Subject, Remembered>,
    /// Services whose real servers are down until their checks pass.
    presumed_down: HashSet<ServiceId>,
}

/// Why a real server is down that was never up.
const NOT_YET: &str = "its checks have not passed yet";

/// What is known of a real server.
#[derive(Debug)]
pub struct Record {
    /// Up while all its checks are.
    pub health: Health,
    /// Since when.
    pub since: Duration,
    /// Why it is down: of the check that failed first.
    pub cause: Option<String>,
    /// It began down, and its checks have not passed since.
    never_up: bool,
    checks: Vec<CheckRecord>,
}

/// What is known by one check.
#[derive(Debug)]
pub struct CheckRecord {
    /// The check.
    pub job: Job,
    /// Its state.
    pub health: Health,
    /// Since when; since when it is checked, or known, where that is not known.
    pub since: Duration,
    /// Why it is down.
    pub cause: Option<String>,
    /// What it says of the weight.
    pub advice: Option<Advice>,
}

/// What became of a real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Which.
    pub subject: Subject,
    /// It changed its state; otherwise only what checks say of its weight has changed.
    pub turn: Option<Turn>,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What it is now.
    pub health: Health,
    /// Why it is down.
    pub cause: Option<String>,
    /// How long it was in the state before.
    pub lasted: Duration,
}

impl Board {
    /// Names the services whose real servers are down until their checks pass. [`Board::follow`] comes
    /// next.
    pub fn presume_down(&mut self, services: HashSet<ServiceId>) {
        self.presumed_down = services;
    }

    /// Makes these the checks that count. A check that is new of a real server begins in that one's
    /// state: one that is down needs a success of each new check. What is new altogether is up.
    /// Returns what changed by the going of checks that were down.
    pub fn follow(&mut self, jobs: &[Job], now: Duration) -> Vec<News> {
        let old = std::mem::take(&mut self.records);
        for job in jobs {
            let before = old.get(&job.subject);
            let begins = before.map_or(Health::Up, |record| record.health);
            let running = before.and_then(|record| record.checks.iter().find(|c| c.job == *job));
            let since = running.map(|c| c.since);
            let running = running.map(|c| (c.health, c.cause.clone(), c.advice));
            let known = running.or_else(|| {
                let check = self.remembered.get(&job.subject)?.by(job)?;
                Some((check.health, check.cause.clone(), check.advice))
            });
            let (health, cause, advice) = match (known, before) {
                (Some(known), _) => known,
                // Nobody knows whether it will ever say something.
                (None, _) if job.check.kind.may_be_silent() => (Health::Up, None, None),
                (None, Some(record)) => (begins, record.cause.clone(), None),
                (None, None) if self.presumed_down.contains(&job.subject.0) => {
                    (Health::Down, Some(NOT_YET.to_owned()), None)
                }
                (None, None) => (begins, None, None),
            };
            let record = self.records.entry(job.subject).or_insert_with(|| Record {
                health: begins,
                since: before.map_or(now, |record| record.since),
                cause: before.and_then(|record| record.cause.clone()),
                never_up: before.is_some_and(|record| record.never_up),
                checks: Vec::new(),
            });
            // What begins down does not go down.
            if before.is_none() && health == Health::Down {
                record.health = Health::Down;
                record.never_up = true;
                record.cause.clone_from(&cause);
            }
            record.checks.push(CheckRecord {
                job: job.clone(),
                health,
                since: since.unwrap_or(record.since),
                cause,
                advice,
            });
        }
        self.remembered.clear();
        let mut news = Vec::new();
        for (subject, record) in &mut self.records {
            let subject = *subject;
            let turn = record.sum_up(now);
            news.extend(turn.map(|turn| News {
                subject,
                turn: Some(turn),
            }));
        }
        news
    }

    /// Takes what a check says. Returns what became of its real server, if anything.
    pub fn take(&mut self, change: &Change, now: Duration) -> Option<News> {
        let record = self.records.get_mut(&change.job.subject)?;
        // What an ended check left in the queue is stale.
        let check = record.checks.iter_mut().find(|c| c.job == change.job)?;
        if check.health != change.health {
            check.since = now;
        }
        check.health = change.health;
        if change.health == Health::Up || change.cause.is_some() {
            check.cause.clone_from(&change.cause);
        }
        let before = std::mem::replace(&mut check.advice, change.advice);
        let turn = record.sum_up(now);
        let is_news = turn.is_some() || before != change.advice;
        is_news.then_some(News {
            subject: change.job.subject,
            turn,
        })
    }

    /// What is known of a real server; nothing of one without checks.
    pub fn get(&self, subject: &Subject) -> Option<&Record> {
        self.records.get(subject)
    }

    /// What is known of all, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Subject, &Record)> {
        self.records.iter()
    }

    /// What a check says now of the state and of the weight.
    pub fn known(&self, job: &Job) -> (Health, Option<Advice>) {
        self.records
            .get(&job.subject)
            .and_then(|record| record.checks.iter().find(|c| c.job == *job))
            .map_or((Health::Up, None), |check| (check.health, check.advice))
    }

    /// Takes what a daemon before this one knew, for the checks that are still the same and for the
    /// servers that are still there. [`Board::follow`] comes next.
    pub fn recall(&mut self, memory: &Memory, jobs: &[Job]) {
        let servers: HashMap<_, _> = memory.servers().iter().map(|s| (s.name(), s)).collect();
        for job in jobs {
            let (service, address) = job.subject;
            let name = service.to_string();
            let Some(server) = servers.get(&(name.as_str(), address)) else {
                continue;
            };
            self.remembered.insert(job.subject, (*server).clone());
            let record = self.records.entry(job.subject).or_insert_with(|| Record {
                health: server.health,
                since: Duration::from_millis(server.since_ms),
                cause: server.cause.clone(),
                never_up: server.never_up,
                checks: Vec::new(),
            });
            if let Some(known) = server.by(job) {
                record.checks.push(CheckRecord {
                    job: job.clone(),
                    health: known.health,
                    since: record.since,
                    cause: known.cause.clone(),
                    advice: known.advice,
                });
            }
        }
    }

    /// All that a later daemon should know.
    pub fn memory(&self) -> Memory {
        let mut servers = Vec::with_capacity(self.records.len());
        for ((service, address), record) in &self.records {
            let since = u64::try_from(record.since.as_millis()).unwrap_or(u64::MAX);
            let mut server = Remembered::new(*service, *address, record.health, since);
            server.cause.clone_from(&record.cause);
            server.never_up = record.never_up;
            for check in &record.checks {
                server.add(&check.job, check.health, check.cause.clone(), check.advice);
            }
            servers.push(server);
        }
        Memory::new(servers)
    }

    /// What the checks of a real server say of its weight.
    pub fn advised(&self, subject: &Subject) -> Advised {
        let mut advised = Advised::default();
        let checks = self.records.get(subject).map(Record::checks);
        for advice in checks.unwrap_or_default().iter().filter_map(|c| c.advice) {
            advised.add(advice);
        }
        advised
    }
}

impl Record {
    /// What is known by each of its checks.
    pub fn checks(&self) -> &[CheckRecord] {
        &self.checks
    }

    /// How long it has been down at `now`; nothing of one that is up or never was.
    pub fn down_for(&self, now: Duration) -> Option<Duration> {
        let failed = self.health == Health::Down && !self.never_up;
        failed.then(|| now.saturating_sub(self.since))
    }

    fn sum_up(&mut self, now: Duration) -> Option<Turn> {
        let failed = |check: &&CheckRecord| check.health == Health::Down;
        let down = self.checks.iter().find(failed);
        let health = down.map_or(Health::Up, |_| Health::Down);
        let cause = down.and_then(|check| check.cause.clone());
        if health == self.health {
            // One of several causes may be gone.
            let same = self
                .checks
                .iter()
                .filter(failed)
                .any(|check| check.cause == self.cause);
            if !same {
                self.cause = cause;
            }
            return None;
        }
        let lasted = now.saturating_sub(self.since);
        self.health = health;
        self.since = now;
        self.never_up = false;
        self.cause.clone_from(&cause);
        Some(Turn {
            health,
            cause,
            lasted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::plan::tests::job;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn says(job: &Job, cause: Option<&str>) -> Change {
        Change {
            job: job.clone(),
            health: cause.map_or(Health::Up, |_| Health::Down),
            cause: cause.map(str::to_owned),
            advice: None,
            ended: std::time::Instant::now(),
        }
    }

    #[test]
    fn all_checks_must_pass() {
        let (one, two) = (job(1, 5), job(1, 6));
        let mut board = Board::default();
        assert!(board.follow(&[one.clone(), two.clone()], at(0)).is_empty());
        let down = board
            .take(&says(&one, Some("a")), at(10))
            .unwrap()
            .turn
            .unwrap();
        assert_eq!(
            (down.health, down.cause.as_deref(), down.lasted),
            (Health::Down, Some("a"), at(10))
        );
        // The second adds nothing but its own cause, which shows when the first is gone.
        assert_eq!(board.take(&says(&two, Some("b")), at(11)), None);
        assert_eq!(board.get(&one.subject).unwrap().cause.as_deref(), Some("a"));
        assert_eq!(board.take(&says(&one, None), at(12)), None);
        assert_eq!(board.get(&one.subject).unwrap().cause.as_deref(), Some("b"));
        let up = board.take(&says(&two, None), at(15)).unwrap().turn.unwrap();
        assert_eq!((up.health, up.cause, up.lasted), (Health::Up, None, at(5)));
    }

    #[test]
    fn a_reload_keeps_what_is_known() {
        let (one, two, other) = (job(1, 5), job(1, 6), job(2, 5));
        let mut board = Board::default();
        board.follow(&[one.clone(), other.clone()], at(0));
        board.take(&says(&one, Some("a")), at(1));
        // A new check of a server that is down begins down, with the cause known so far.
        assert!(
            board
                .follow(&[two.clone(), other.clone()], at(5))
                .is_empty()
        );
        assert_eq!(board.known(&two).0, Health::Down);
        assert_eq!(board.known(&other).0, Health::Up);
        let record = board.get(&one.subject).unwrap();
        assert_eq!((record.since, record.cause.as_deref()), (at(1), Some("a")));
        // The old one is not listened to any more.
        assert_eq!(board.take(&says(&one, None), at(6)), None);
        assert_eq!(
            board
                .take(&says(&two, None), at(7))
                .unwrap()
                .turn
                .unwrap()
                .health,
            Health::Up
        );
        // One whose checks are gone is not known.
        board.follow(std::slice::from_ref(&other), at(8));
        assert!(board.get(&one.subject).is_none());
    }

    #[test]
    fn with_alpha_a_new_server_waits_for_its_first_success() {
        let (one, two, other) = (job(1, 5), job(1, 6), job(2, 5));
        let mut board = Board::default();
        board.follow(std::slice::from_ref(&other), at(0));
        board.presume_down(HashSet::from([one.subject.0]));
        // What begins down does not go down, and what is known stays.
        let all = [one.clone(), two.clone(), other.clone()];
        assert!(board.follow(&all, at(1)).is_empty());
        assert_eq!(board.get(&other.subject).unwrap().health, Health::Up);
        let record = board.get(&one.subject).unwrap();
        assert_eq!(
            (record.health, record.cause.as_deref()),
            (Health::Down, Some(NOT_YET))
        );
        assert_eq!(board.known(&one).0, Health::Down);
        assert_eq!(board.take(&says(&one, None), at(2)), None);
        let up = board.take(&says(&two, None), at(3)).unwrap().turn.unwrap();
        assert_eq!((up.health, up.lasted), (Health::Up, at(2)));
        // Once is enough.
        assert!(board.follow(&all, at(4)).is_empty());
        assert_eq!(board.get(&one.subject).unwrap().health, Health::Up);
    }

    #[test]
    fn who_was_never_up_has_not_failed_whatever_the_cause() {
        let one = job(1, 5);
        let jobs = std::slice::from_ref(&one);
        let mut board = Board::default();
        board.presume_down(HashSet::from([one.subject.0]));
        board.follow(jobs, at(1));
        let down_for = |board: &Board| board.get(&one.subject).unwrap().down_for(at(9));
        assert_eq!(down_for(&board), None);
        assert_eq!(board.take(&says(&one, Some("refused")), at(2)), None);
        let record = board.get(&one.subject).unwrap();
        assert_eq!(record.cause.as_deref(), Some("refused"));
        assert_eq!(down_for(&board), None);
        // Neither a reload nor a later daemon changes that.
        board.follow(jobs, at(3));
        assert_eq!(down_for(&board), None);
        let mut later = Board::default();
        later.recall(&board.memory(), jobs);
        later.follow(jobs, at(4));
        assert_eq!(down_for(&later), None);
        // Once is enough.
        assert!(later.take(&says(&one, None), at(5)).is_some());
        assert!(later.take(&says(&one, Some("refused")), at(7)).is_some());
        assert_eq!(down_for(&later), Some(at(2)));
    }

    #[test]
    fn a_failing_check_that_goes_makes_its_server_up() {
        let (one, two) = (job(1, 5), job(1, 6));
        let mut board = Board::default();
        board.follow(&[one.clone(), two.clone()], at(0));
        board.take(&says(&one, Some("a")), at(1));
        let news = board.follow(&[two], at(9));
        let turn = news[0].turn.clone().unwrap();
        assert_eq!((turn.health, turn.lasted), (Health::Up, at(8)));
    }

    #[test]
    fn the_least_of_the_advised_weights_counts() {
        let (one, two) = (job(1, 5), job(1, 6));
        let mut board = Board::default();
        board.follow(&[one.clone(), two.clone()], at(0));
        assert_eq!(board.advised(&one.subject).weight(10), None);
        let advises = |job: &Job, advice| Change {
            advice,
            ..says(job, None)
        };
        let news = board.take(&advises(&one, Some(Advice::Percent(50))), at(1));
        assert_eq!(news.unwrap().turn, None);
        board.take(&advises(&two, Some(Advice::Weight(7))), at(1));
        assert_eq!(board.advised(&one.subject).weight(10), Some(5));
        assert_eq!(
            board.take(&advises(&two, Some(Advice::Weight(7))), at(2)),
            None
        );
        board.take(&advises(&two, Some(Advice::Drain)), at(3));
        assert_eq!(board.advised(&one.subject).weight(10), Some(0));
        board.take(&advises(&two, None), at(4));
        assert_eq!(board.advised(&one.subject).weight(10), Some(5));
        // It lasts over a reload of what else is checked.
        board.follow(std::slice::from_ref(&one), at(5));
        assert_eq!(board.advised(&one.subject).weight(10), Some(5));
    }

    #[test]
    fn a_later_daemon_knows_what_was_known() {
        let (down, up, other) = (job(1, 5), job(1, 6), job(2, 5));
        let jobs = [down.clone(), up.clone(), other.clone()];
        let mut board = Board::default();
        board.follow(&jobs, at(0));
        board.take(&says(&down, Some("a")), at(1));
        let advice = Some(Advice::Percent(50));
        let advised = Change {
            advice,
            ..says(&other, None)
        };
        board.take(&advised, at(2));
        let memory = board.memory();

        let mut later = Board::default();
        later.recall(&memory, &jobs);
        assert!(later.follow(&jobs, at(9)).is_empty());
        assert_eq!(later.known(&down), (Health::Down, None));
        assert_eq!(later.known(&up), (Health::Up, None));
        assert_eq!(later.known(&other), (Health::Up, advice));
        let record = later.get(&down.subject).unwrap();
        assert_eq!((record.since, record.cause.as_deref()), (at(1), Some("a")));
        // One success of the check that had failed is all that is missing.
        assert!(
            later
                .take(&says(&down, None), at(10))
                .unwrap()
                .turn
                .is_some()
        );

        // Other checks of the same server: all of them must pass. Another server: nothing is known.
        let jobs = [job(1, 8), job(3, 5)];
        let mut other = Board::default();
        other.recall(&memory, &jobs);
        other.follow(&jobs, at(9));
        assert_eq!(other.known(&jobs[0]).0, Health::Down);
        assert_eq!(other.known(&jobs[1]).0, Health::Up);
    }
}
