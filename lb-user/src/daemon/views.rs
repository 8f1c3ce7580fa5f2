//! What the API shows.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Receiver;

use super::Daemon;
use crate::{
    api::{
        proto::{CheckStatus, Generation, InstanceStatus, MapDump, Peer, Status},
        server::Request,
    },
    health::state::Health,
    model::VrrpState,
    vrrp::{driver::Report, runner},
};

impl Daemon {
    pub(super) async fn on_request(&mut self, request: Request, reports: &mut Receiver<Report>) {
        // Whoever asked may be gone by now; that is their business.
        match request {
            Request::Status(answer) => drop(answer.send(self.status().await)),
            Request::Maps(answer) => drop(answer.send(self.data_plane.tables())),
            Request::Map(name, answer) => {
                let entries = self.data_plane.dump(&name);
                drop(answer.send(entries.map(|entries| MapDump { name, entries })));
            }
            Request::Reload { dry_run, answer } => {
                let result = self.answer_reload(dry_run, reports).await;
                drop(answer.send(result));
            }
        }
    }

    async fn status(&mut self) -> Status {
        let snapshots = match &self.vrrp {
            Some(vrrp) => vrrp.snapshot().await,
            None => Vec::new(),
        };
        let instances: Vec<InstanceStatus> = snapshots
            .into_iter()
            .filter_map(|s| self.instance_status(s))
            .collect();
        let mut checks: Vec<CheckStatus> = self
            .health
            .iter()
            .map(|((service, address), record)| CheckStatus {
                service: service.to_string(),
                backend: address.to_string(),
                up: record.health == Health::Up,
                since: unix(record.since),
                cause: record.cause.clone(),
            })
            .collect();
        checks.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            router_id: self.config.router_id.clone(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            config: self.path.display().to_string(),
            generation: Generation {
                number: self.switch.generation,
                reason: self.switch.reason.clone(),
                at: unix(self.switch.at),
            },
            problems: self.problems(&instances, &checks),
            instances,
            checks,
            data_plane: self.data_plane.snapshot(),
        }
    }

    fn instance_status(&self, snapshot: runner::Snapshot) -> Option<InstanceStatus> {
        let instance = self
            .config
            .instances
            .iter()
            .find(|i| i.name == snapshot.name)?;
        Some(InstanceStatus {
            interface: instance.interface.clone(),
            virtual_router_id: instance.vrid,
            priority: instance.priority,
            state: snapshot.state,
            reason: snapshot.reason,
            since: unix(snapshot.since),
            generation: self
                .instances
                .get(&snapshot.name)
                .map_or(0, |record| record.generation),
            addresses: instance.addresses.iter().map(ToString::to_string).collect(),
            advert_interval_ms: millis(instance.advert_interval),
            timer_ms: snapshot.timer.map(millis),
            source: snapshot.source.map(|address| address.to_string()),
            peer: snapshot.peer.map(|(address, priority, ago)| Peer {
                address: address.to_string(),
                priority,
                heard_ms_ago: millis(ago),
            }),
            sent: snapshot.sent,
            received: snapshot.received,
            send_errors: snapshot.send_errors,
            rejected: snapshot
                .rejected
                .iter()
                .map(|(reason, count)| (reason.to_string(), *count))
                .collect(),
            name: snapshot.name,
        })
    }

    /// What an operator should look at first.
    fn problems(&self, instances: &[InstanceStatus], checks: &[CheckStatus]) -> Vec<String> {
        let mut problems = Vec::new();
        for instance in instances.iter().filter(|i| i.state == VrrpState::Fault) {
            problems.push(format!(
                "{} is in FAULT: {}",
                instance.name, instance.reason
            ));
        }
        for service in &self.config.services {
            let up = service.backends.iter().filter(|backend| {
                self.health
                    .get(&(service.id, backend.address))
                    .is_none_or(|r| r.health == Health::Up)
            });
            if up.count() == 0 {
                let who = if service.sorry.is_some() {
                    "the sorry server answers"
                } else {
                    "nobody answers"
                };
                problems.push(format!("{}: no real server is up; {who}", service.id));
            }
        }
        for check in checks.iter().filter(|check| !check.up) {
            let cause = check.cause.as_deref().unwrap_or("no reason recorded");
            problems.push(format!(
                "{}: real server {} is down: {cause}",
                check.service, check.backend
            ));
        }
        for (address, _) in self.neighbours.unresolved() {
            problems.push(format!(
                "the MAC address of real server {address} is not known: it does not answer ARP"
            ));
        }
        for instance in instances {
            // Other routers of the segment are no problem.
            let odd: Vec<_> = instance
                .rejected
                .iter()
                .filter(|(reason, _)| reason != "wrong_vrid")
                .collect();
            if odd.is_empty() {
                continue;
            }
            let list: Vec<String> = odd
                .iter()
                .map(|(reason, n)| format!("{n} {reason}"))
                .collect();
            problems.push(format!(
                "{}: adverts ignored: {}",
                instance.name,
                list.join(", ")
            ));
        }
        problems
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
