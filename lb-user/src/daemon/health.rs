//! What health checks lead to.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Daemon;
use crate::{
    api::proto::{CheckStatus, ProbeStatus},
    events::Kind,
    health::{
        board::{Change, News},
        plan::{Job, Subject},
        probe::Asked,
        state::Health,
    },
    model::Neighbour,
};

impl Daemon {
    /// Makes the configuration's checks the running ones.
    pub(super) fn start_checks(&mut self) {
        let mut jobs = crate::health::plan::jobs(&self.config);
        self.lead_to_vips(&mut jobs);
        let news = self.health.follow(&jobs, now());
        let health = &self.health;
        self.checks.configure(&jobs, |job| health.health_of(job));
        for news in &news {
            self.on_news(news);
        }
    }

    /// Lets checks ask for the VIP on the real server, where the data plane can do that.
    fn lead_to_vips(&mut self, jobs: &mut Vec<Job>) {
        let at_home = jobs.clone();
        let on_data_plane = |index: u32| {
            let mut interfaces = self.config.dataplane.interfaces.iter();
            interfaces.any(|name| {
                let interface = self.interfaces.by_name(name);
                interface.is_some_and(|interface| interface.ifindex == index)
            })
        };
        let is_virtual = |address: IpAddr| {
            let mut services = self.config.services.iter();
            services.any(|service| service.id.address == address)
        };
        let source = |host: IpAddr| self.interfaces.beside(host, is_virtual);
        let sees = |host: IpAddr| match self.neighbours.locate(host, &self.interfaces) {
            Some(Neighbour::ThisHost) => false,
            Some(Neighbour::Host(hop)) => on_data_plane(hop.ifindex),
            // Not resolved yet: most likely where its network is.
            None => true,
        };
        let paths = self.paths.lead(&self.config, jobs, sees, source);
        if let Err(error) = self.data_plane.set_probes(&paths) {
            tracing::debug!(%error, "checks ask the real servers' own addresses");
            *jobs = at_home;
        }
    }

    pub(super) fn on_health(&mut self, change: &Change) {
        if let Some(news) = self.health.take(change, now()) {
            self.on_news(&news);
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
                up: record.health == Health::Up,
                since: record.since.as_secs(),
                cause: record.cause.clone(),
                advised_weight: self.advised_weight(&(*service, *address)),
                checks: record
                    .checks()
                    .iter()
                    .map(|check| self.probe_status(&check.job, check.health))
                    .collect(),
            })
            .collect();
        all.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        all
    }

    /// The weight that its checks want a real server to have.
    fn advised_weight(&self, subject: &Subject) -> Option<u32> {
        let (service, address) = *subject;
        let service = self.config.services.iter().find(|s| s.id == service)?;
        let server = service.backends.iter().find(|b| b.address == address)?;
        self.health.advised_weight(subject, server.weight)
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

    fn probe_status(&self, job: &Job, health: Health) -> ProbeStatus {
        let reading = self.checks.reading(job);
        ProbeStatus {
            kind: job.check.kind.name().to_owned(),
            target: match job.via {
                Some(via) => format!("{} on {}", Asked(job.target), via.host),
                None => Asked(job.target).to_string(),
            },
            up: health == Health::Up,
            attempts: reading.attempts,
            failures: reading.failures,
            blind: reading.blind,
            trouble: reading.trouble,
        }
    }

    fn on_news(&mut self, news: &News) {
        let (service, address) = news.subject;
        let server = format!("real server {address}");
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
        self.apply_or_stay(&reason);
        self.follow_watches();
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
