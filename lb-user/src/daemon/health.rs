//! What health checks lead to.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::Receiver;

use super::Daemon;
use crate::{
    api::proto::{CheckStatus, ProbeStatus, ProbesStatus},
    events::Kind,
    health::{
        board::{Change, CheckRecord, News},
        memory::Memory,
        plan::Subject,
        probe::Asked,
        state::Health,
    },
    model::{Advised, Config, VirtualService},
};

/// Changes of health that are followed by one change of the data plane.
const MAX_AT_ONCE: usize = 1_024;
/// Most that is read of what the daemon before this one knew, in bytes: two kilobytes for each of
/// the 8,192 real servers that there may be.
const MAX_MEMORY: u64 = 16 << 20;

impl Daemon {
    /// Learns what the daemon before this one knew, so that a real server that was down stays down until
    /// its checks pass.
    pub(super) fn recall(&mut self) {
        let path = memory_path(&self.config);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what was known of real servers cannot be read");
                return;
            }
        };
        match Memory::decode(&text) {
            Ok(memory) => {
                let jobs = crate::health::plan::jobs(&self.config);
                self.health.recall(&memory, &jobs);
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what was known of real servers is of no use");
            }
        }
    }

    /// Writes down what is known, where that has changed. A file that is there is always whole.
    pub(super) fn remember(&mut self) {
        if !std::mem::take(&mut self.memory_is_old) {
            return;
        }
        let path = memory_path(&self.config);
        let written = self
            .health
            .memory()
            .encode()
            .map_err(io::Error::other)
            .and_then(|text| {
                let new = path.with_extension("health.new");
                std::fs::write(&new, text)?;
                std::fs::rename(&new, &path)
            });
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "what is known of real servers cannot be written down");
        }
    }

    /// Makes the configuration's checks the running ones.
    pub(super) fn start_checks(&mut self) {
        let mut jobs = crate::health::plan::jobs(&self.config);
        self.lead_to_vips(&mut jobs);
        self.health.presume_down(self.presumed_down());
        let news = self.health.follow(&jobs, now());
        jobs.retain(|job| self.is_checked(job.subject.0));
        let health = &self.health;
        self.checks.configure(&jobs, |job| health.known(job));
        self.memory_is_old = true;
        let reasons = news.iter().map(|news| self.tell(news)).collect();
        self.follow_health(reasons);
    }

    /// Many servers may change at once, as when a switch dies: what has come meanwhile is done together.
    pub(super) fn on_health(&mut self, first: Change, more: &mut Receiver<Change>) {
        let waiting = std::iter::from_fn(|| more.try_recv().ok()).take(MAX_AT_ONCE - 1);
        let (mut reasons, mut ends) = (Vec::new(), Vec::new());
        for change in std::iter::once(first).chain(waiting) {
            if let Some(news) = self.health.take(&change, now()) {
                reasons.push(self.tell(&news));
                ends.push(change.ended);
            }
        }
        self.follow_health(reasons);
        for ended in ends {
            self.reactions.note(ended.elapsed());
        }
    }

    /// What all attempts have in common.
    pub(super) fn probes_status(&self) -> ProbesStatus {
        ProbesStatus {
            lateness: self.checks.lateness(),
            reaction: self.reactions.read(),
        }
    }

    fn follow_health(&mut self, reasons: Vec<String>) {
        let more = reasons.len().saturating_sub(1);
        if let Some(mut reason) = reasons.into_iter().next() {
            if more > 0 {
                reason = format!("{reason}; and {more} more");
            }
            self.memory_is_old = true;
            self.apply_or_stay(&reason);
            self.follow_watches();
        }
    }

    /// Checked real servers, in the order of their names.
    pub(super) fn check_statuses(&self) -> Vec<CheckStatus> {
        let mut all: Vec<CheckStatus> = self
            .health
            .iter()
            .map(|((service, address), record)| CheckStatus {
                service: service.to_string(),
                backend: address.to_string(),
                sorry: self.is_sorry(&(*service, *address)),
                up: record.health == Health::Up,
                since: record.since.as_secs(),
                cause: record.cause.clone(),
                advised_weight: self.advised_weight(&(*service, *address)),
                checks: record
                    .checks()
                    .iter()
                    .map(|check| self.probe_status(check))
                    .collect(),
            })
            .collect();
        all.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        all
    }

    /// The weight that its checks want a real server to have.
    fn advised_weight(&self, subject: &Subject) -> Option<u32> {
        let advised = self.health.advised(subject);
        if advised == Advised::default() {
            return None;
        }
        let (service, address) = *subject;
        let service = self.config.services.iter().find(|s| s.id == service)?;
        let server = service.backends.iter().find(|b| b.address == address)?;
        advised.weight(server.weight)
    }

    /// Whether a checked host is a sorry server.
    fn is_sorry(&self, (id, address): &Subject) -> bool {
        let service = self.config.services.iter().find(|s| s.id == *id);
        service.is_some_and(|s| s.sorry_hosts().any(|host| host == *address))
            && service.is_some_and(|s| !s.backends.iter().any(|b| b.address == *address))
    }

    /// Sorry servers of a service that are down, in words.
    pub(super) fn dead_sorry(&self, service: &VirtualService) -> Vec<String> {
        let down = |address: IpAddr| {
            let subject = (service.id, address);
            let record = self.health.get(&subject)?;
            let cause = record.cause.as_deref().unwrap_or("no reason recorded");
            (record.health == Health::Down && self.is_sorry(&subject))
                .then(|| format!("{}: sorry server {address} is down: {cause}", service.id))
        };
        service.sorry_hosts().filter_map(down).collect()
    }

    /// Checks that say nothing at present, in words.
    pub(super) fn blind_checks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((service, address), record) in self.health.iter() {
            for check in record.checks() {
                let reading = self.checks.reading(&check.job);
                if let (true, Some(trouble)) = (reading.blind, reading.trouble) {
                    let kind = check.job.check.kind.name();
                    lines.push(format!(
                        "{service}: the {kind} check of {address} says nothing: {trouble}"
                    ));
                }
            }
        }
        lines.sort();
        lines
    }

    fn probe_status(&self, check: &CheckRecord) -> ProbeStatus {
        let job = &check.job;
        let reading = self.checks.reading(job);
        ProbeStatus {
            kind: job.check.kind.name().to_owned(),
            target: match job.via {
                Some(via) => format!("{} on {}", Asked(job.target), via.host),
                None => Asked(job.target).to_string(),
            },
            up: check.health == Health::Up,
            since: check.since.as_secs(),
            cause: check.cause.clone().filter(|_| check.health == Health::Down),
            attempts: reading.attempts,
            failures: reading.failures,
            blind: reading.blind,
            trouble: reading.trouble,
        }
    }

    /// Logs what became of a real server, and says it in words.
    fn tell(&mut self, news: &News) -> String {
        let (service, address) = news.subject;
        let is_sorry = self.is_sorry(&news.subject);
        let kind = match is_sorry {
            true => "sorry server",
            false => "real server",
        };
        let server = format!("{kind} {address}");
        let text = match &news.turn {
            Some(turn) => {
                let lasted = turn.lasted.as_secs();
                match turn.health {
                    Health::Up => format!("{server} is up after {lasted} s"),
                    Health::Down => format!(
                        "{server} is down after {lasted} s: {}",
                        turn.cause.as_deref().unwrap_or_default()
                    ),
                }
            }
            None => match self.advised_weight(&news.subject) {
                Some(weight) => format!("{server}: its checks want weight {weight}"),
                None => format!("{server}: its checks leave its weight as configured"),
            },
        };
        let reason = format!("{service}: {text}");
        match &news.turn {
            Some(turn) if turn.health == Health::Down => tracing::warn!("{reason}"),
            Some(_) | None => tracing::info!("{reason}"),
        }
        self.event(Kind::Health, &service.to_string(), text);
        // Readers of the FIFO and of mails count real servers.
        let turn = news.turn.as_ref().filter(|_| !is_sorry);
        let found = self.config.services.iter().find(|s| s.id == service);
        if let (Some(notifier), Some(found), Some(turn)) = (&self.notifier, found, turn) {
            let cause = match turn.health {
                Health::Up => None,
                Health::Down => Some(turn.cause.clone().unwrap_or_default()),
            };
            notifier.real_server(found, address, cause);
        }
        if let Some(turn) = turn {
            self.run_member_commands(service, address, turn.health == Health::Up);
        }
        reason
    }
}

/// Beside the socket, in the directory of what lives as long as the system runs.
fn memory_path(config: &Config) -> PathBuf {
    config.runtime.socket.with_extension("health")
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_MEMORY)
        .read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
