//! What the API shows.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::Receiver;

use super::{Daemon, tracking_view};
use crate::{
    api::{
        proto::{
            DataPlaneSnapshot, Disagreement, Generation, InstanceStatus, MapDump, Peer, Reloads,
            Status,
        },
        server::Request,
    },
    dataplane::DataPlane,
    health::state::Health,
    model::{Auth, HmacMode, VrrpState, network::Item},
    notify::Notifier,
    vrrp::{driver::Report, oddities::Oddity, packet::Rejection, runner},
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
            Request::Events(since, answer) => drop(answer.send(self.journal.since(since))),
            Request::Steer(steer, answer) => drop(answer.send(self.steer(&steer))),
            Request::DataPlane(order, answer) => drop(answer.send(self.order_data_plane(&order))),
            Request::Vrrp(order, answer) => drop(answer.send(self.order(&order).await)),
            Request::Flows(query, answer) => drop(answer.send(self.data_plane.flows(&query))),
            Request::Capture(query, answer) => drop(answer.send(self.data_plane.capture(&query))),
            Request::Doctor(answer) => self.diagnose(answer).await,
            Request::Why(query, answer) => drop(answer.send(self.data_plane.why(&query))),
            Request::Reload { dry_run, answer } => {
                let result = self.answer_reload(dry_run, reports).await;
                drop(answer.send(result));
            }
        }
    }

    pub(super) async fn status(&mut self) -> Status {
        let snapshots = match &self.vrrp {
            Some(vrrp) => vrrp.snapshot().await,
            None => Vec::new(),
        };
        let instances: Vec<InstanceStatus> = snapshots
            .into_iter()
            .filter_map(|s| self.instance_status(s))
            .collect();
        let checks = self.check_statuses();
        let mut data_plane = self.data_plane.snapshot();
        data_plane.switching.unguarded.clone_from(&self.unguarded);
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
            problems: self.problems(&instances, &data_plane),
            steered: self.steered_lines(),
            reloads: Reloads {
                applied: self.reloads.applied,
                refused: self.reloads.refused,
            },
            sync_groups: self
                .notifier
                .as_ref()
                .map(Notifier::groups)
                .unwrap_or_default(),
            fifo: self.notifier.as_ref().and_then(Notifier::fifo),
            mail: self.notifier.as_ref().and_then(Notifier::mail),
            instances,
            checks,
            probes: self.probes_status(),
            pools: self.pool_statuses(),
            data_plane,
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
            version: instance.version,
            priority: snapshot.priority,
            configured_priority: instance.priority,
            manual: snapshot.is_manual,
            state: snapshot.state,
            reason: snapshot.reason,
            since: unix(snapshot.since),
            generation: self
                .instances
                .get(&snapshot.name)
                .map_or(0, |record| record.generation),
            addresses: instance.addresses.iter().map(ToString::to_string).collect(),
            excluded_addresses: instance.excluded.iter().map(ToString::to_string).collect(),
            virtual_mac: instance.network.virtual_mac.as_ref().map(|device| {
                let mac = instance.virtual_mac_address().map(|b| format!("{b:02x}"));
                format!("{} on {device}", mac.join(":"))
            }),
            accept: instance.network.accept || instance.priority == 255,
            placed: instance
                .items()
                .iter()
                .filter(|item| !matches!(item, Item::Address(_)))
                .map(ToString::to_string)
                .collect(),
            unicast_peers: instance.peers.iter().map(ToString::to_string).collect(),
            advert_interval_ms: millis(instance.advert_interval),
            master_interval_ms: millis(snapshot.master_interval),
            worst_lateness_us: u64::try_from(snapshot.worst_lateness.as_micros())
                .unwrap_or(u64::MAX),
            timer_ms: snapshot.timer.map(millis),
            source: snapshot.source.map(|address| address.to_string()),
            peer: snapshot.peer.map(|(address, priority, ago)| Peer {
                addresses_differ: snapshot.addresses_differ,
                address: address.to_string(),
                priority,
                heard_ms_ago: millis(ago),
            }),
            watched: self.watched(instance),
            link_wait: self.link_wait(&instance.name),
            scripts: self
                .notifier
                .as_ref()
                .map(|notifier| notifier.instance_scripts(&snapshot.name))
                .unwrap_or_default(),
            sent: snapshot.sent,
            received: snapshot.received,
            send_errors: snapshot.send_errors,
            announcements: self.addresses.announced(&snapshot.name),
            rejected: rejected(&snapshot.oddities),
            disagreements: snapshot
                .oddities
                .iter()
                .map(|(oddity, sender, count)| Disagreement {
                    what: oddity.to_string(),
                    advice: oddity.advice().to_owned(),
                    peer: sender.map(|sender| sender.to_string()),
                    count: *count,
                })
                .collect(),
            authentication: authentication(&instance.auth),
            entered: VrrpState::ALL.into_iter().zip(snapshot.entered).collect(),
            name: snapshot.name,
        })
    }

    /// What an operator should look at first. What only follows from something named before is left
    /// out.
    fn problems(&self, instances: &[InstanceStatus], plane: &DataPlaneSnapshot) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(error) = &self.refused {
            problems.push(format!(
                "the last reload was refused, the configuration before it is running: {error}"
            ));
        }
        for instance in instances.iter().filter(|i| i.manual) {
            problems.push(format!(
                "{}: priority {} is an operator's, {} is configured; `lbctl vrrp reset {}` ends that",
                instance.name, instance.priority, instance.configured_priority, instance.name
            ));
        }
        for instance in instances {
            tracking_view::problems(instance, &mut problems);
        }
        if let Some(trouble) = &plane.trouble {
            problems.push(format!("the data plane is not as it should be: {trouble}"));
        }
        if plane.kind == "ipvs" && plane.switching.retry_in_ms.is_some() {
            problems.push(format!(
                "IPVS forwards in the place of XDP: {}",
                plane.choice
            ));
        }
        if let Some(lacking) = &plane.switching.lacking {
            problems.push(format!(
                "IPVS may not be able to take over from XDP: {lacking}"
            ));
        }
        problems.extend(self.not_in_force(plane));
        for section in &self.waiting {
            problems.push(format!(
                "changes of [{section}] in the configuration wait for a restart"
            ));
        }
        problems.extend(self.not_closed.clone());
        problems.extend(self.addresses.placed.problems());
        problems.extend(self.addresses.virtual_macs.problems());
        let untold = self.untold.iter();
        problems.extend(untold.map(|(what, error)| format!("{what} is not known: {error}")));
        for name in &self.config.dataplane.interfaces {
            if plane.kind == "xdp" && !plane.interfaces.iter().any(|runs| runs.interface == *name) {
                problems.push(format!("the XDP program does not run on {name}"));
            }
        }
        let mut ill = Vec::new();
        for instance in instances {
            ill.extend(instance_problems(instance));
        }
        problems.append(&mut ill);
        if let Some(notifier) = &self.notifier {
            problems.extend(notifier.problems());
        }
        for (service, live) in self.config.services.iter().zip(&plane.services) {
            let at = |i: &&InstanceStatus| Some(&i.name) == service.instance.as_ref();
            if instances
                .iter()
                .find(at)
                .is_some_and(|i| i.state == VrrpState::Fault)
            {
                continue;
            }
            if !live.backends.iter().any(|b| b.state == "up" && !b.sorry) {
                let sorry = live.backends.iter().any(|b| b.state == "up" && b.sorry);
                let who = if sorry {
                    "the sorry server answers"
                } else {
                    "nobody answers"
                };
                problems.push(format!(
                    "{}: no real server takes new connections; {who}",
                    service.id
                ));
            }
            problems.extend(self.pool_problems(service));
            for backend in &service.backends {
                match self.health.get(&(service.id, backend.address)) {
                    Some(record) if record.health == Health::Down => {
                        let cause = record.cause.as_deref().unwrap_or("no reason recorded");
                        problems.push(format!(
                            "{}: real server {} is down: {cause}",
                            service.id, backend.address
                        ));
                    }
                    Some(_) | None => {}
                }
            }
            problems.extend(self.dead_sorry(service));
            for lost in live.backends.iter().filter(|b| b.state == "unresolved") {
                problems.push(format!(
                    "{}: the MAC address of {} is not known, so nothing is sent to it: it (or the router to it) answers neither ARP nor neighbour discovery",
                    service.id, lost.address
                ));
            }
        }
        problems.append(&mut self.silence_problems());
        problems.append(&mut self.blind_checks());
        problems
    }
}

impl Daemon {
    /// What the configuration demands and this data plane does not have.
    fn not_in_force(&self, plane: &DataPlaneSnapshot) -> Option<String> {
        let protection = &self.config.dataplane.protection;
        let limits = !protection.sources.is_empty()
            || protection.source_rate.is_some()
            || self.config.services.iter().any(|s| s.rate.is_some());
        if plane.kind == "xdp" && self.config.sync_daemon.is_some() {
            return Some(
                "XDP forwards, whose connections the kernel does not share: [lvs_sync_daemon] is not in force"
                    .to_owned(),
            );
        }
        (plane.kind == "ipvs" && limits).then(|| {
            "IPVS forwards, which has neither lists of sources nor limits of new connections: [protection] and `new_connections_per_second` are not in force"
                .to_owned()
        })
    }
}

fn authentication(auth: &Auth) -> String {
    match auth {
        Auth::None => "none".to_owned(),
        Auth::Pass(_) => "pass".to_owned(),
        Auth::Ah(_) => "ah".to_owned(),
        Auth::Hmac(hmac) => {
            let mode = match hmac.mode {
                HmacMode::Enforce => "",
                HmacMode::Permissive => ", permissive",
                HmacMode::ReceiveOnly => ", receive-only",
            };
            format!("hmac with key {} of {}{mode}", hmac.active, hmac.keys.len())
        }
    }
}

/// Adverts that were not believed, by reason.
fn rejected(oddities: &[(Oddity, Option<IpAddr>, u64)]) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<Rejection, u64> = BTreeMap::new();
    for (oddity, _, count) in oddities {
        if let Oddity::Rejected(reason) = oddity {
            *sums.entry(*reason).or_default() += count;
        }
    }
    sums.into_iter()
        .map(|(reason, count)| (reason.to_string(), count))
        .collect()
}

fn instance_problems(instance: &InstanceStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if instance.state == VrrpState::Fault {
        problems.push(format!(
            "{} is in FAULT: {}",
            instance.name, instance.reason
        ));
    }
    if let Some(peer) = &instance.peer {
        let recent = peer.heard_ms_ago <= 3 * instance.advert_interval_ms;
        if recent && instance.state == VrrpState::Master {
            problems.push(format!(
                "{} is MASTER here, and {} advertises it too, with priority {}: two masters, or one of them does not hear the other",
                instance.name, peer.address, peer.priority
            ));
        }
        if peer.addresses_differ {
            problems.push(format!(
                "{}: {} advertises other virtual addresses than are configured here; make the lists equal",
                instance.name, peer.address
            ));
        }
    }
    // Other routers of the segment are no problem.
    let odd = instance
        .rejected
        .iter()
        .filter(|(reason, _)| reason != "wrong_vrid");
    let list: Vec<String> = odd
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    if !list.is_empty() {
        problems.push(format!(
            "{}: adverts ignored since the start: {}",
            instance.name,
            list.join(", ")
        ));
    }
    problems
}

pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
