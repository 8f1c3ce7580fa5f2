//! Pools of real servers: what checks and operators say becomes quorum, panic and growing weights, which are
//! told to operators and to commands. The rules are `health::pool`'s.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use super::{Daemon, views::unix};
use crate::{
    api::proto::{Growing, PoolStatus},
    dataplane::plan::Condition,
    events::Kind,
    health::{
        pool::{Pool, Server, Turn},
        state::Health,
    },
    model::{RAMP_STEPS, ServiceId, Target, VirtualService, VrrpState},
};

/// The pools of all services.
#[derive(Default)]
pub(super) struct Pools {
    pools: HashMap<ServiceId, Pool>,
    /// When a weight grows next.
    pub(super) due: Option<Instant>,
}

impl Daemon {
    /// Lets every pool look at its real servers, and tells what became of it.
    pub(super) fn follow_pools(&mut self) {
        let (now, today) = (self.started.elapsed(), super::health::now());
        let mut pools = std::mem::take(&mut self.pools.pools);
        pools.retain(|id, _| self.config.services.iter().any(|s| s.id == *id));
        let mut turns: Vec<(ServiceId, Turn)> = Vec::new();
        let mut due: Option<Duration> = None;
        for service in &self.config.services {
            let servers: Vec<Server> = service
                .backends
                .iter()
                .map(|server| {
                    let condition = self.without_pool(service, server.address);
                    Server {
                        address: server.address,
                        weight: condition.live_weight(server),
                        up: condition.up,
                        down_for: self
                            .health
                            .get(&(service.id, server.address))
                            .and_then(|record| record.down_for(today)),
                    }
                })
                .collect();
            let pool = pools.entry(service.id).or_default();
            let news = pool.look(&service.pool, &servers, now);
            turns.extend(news.into_iter().map(|turn| (service.id, turn)));
            let next = pool.next_step(&service.pool, now);
            due = due.into_iter().chain(next).min();
        }
        self.pools.pools = pools;
        self.pools.due = due.map(|due| self.started + due);
        for (service, turn) in turns {
            self.tell_of_pool(service, turn);
        }
    }

    /// What is known of a real server of a service.
    pub(super) fn condition(&self, service: &VirtualService, target: Target) -> Condition {
        let Target::Host(address) = target else {
            return Condition::default();
        };
        let alone = self.without_pool(service, address);
        let Some(pool) = self.pools.pools.get(&service.id) else {
            return alone;
        };
        Condition {
            up: alone.up || pool.is_in_use(address) == Some(true),
            no_quorum: !pool.has_quorum(),
            step: pool.step(&service.pool, address, self.started.elapsed()),
            ..alone
        }
    }

    fn without_pool(&self, service: &VirtualService, address: IpAddr) -> Condition {
        let subject = (service.id, address);
        let record = self.health.get(&subject);
        Condition {
            advised: self.health.advised(&subject),
            up: match record {
                Some(record) => record.health == Health::Up,
                None => !begins_down(service, address),
            },
            resolved: self.is_resolved(service, address),
            steered: self.steered.get(&subject).copied(),
            ..Condition::default()
        }
    }

    /// Services whose real servers are down until their checks pass.
    pub(super) fn presumed_down(&self) -> HashSet<ServiceId> {
        let services = self.config.services.iter();
        services.filter(|s| s.pool.alpha).map(|s| s.id).collect()
    }

    /// Whether checks of a service run: on a BACKUP they may not.
    pub(super) fn is_checked(&self, id: ServiceId) -> bool {
        let Some(service) = self.config.services.iter().find(|s| s.id == id) else {
            return true;
        };
        let Some(instance) = service.instance.as_ref() else {
            return true;
        };
        let record = self.instances.get(instance);
        service.pool.check_on_backup
            || self.resumed.contains(instance)
            || record.is_some_and(|record| record.state == VrrpState::Master)
    }

    /// An instance has changed its state: checks may begin or end with that.
    pub(super) fn follow_role_with_checks(&mut self, instance: &str) {
        let depends = |service: &VirtualService| {
            !service.pool.check_on_backup && service.instance.as_deref() == Some(instance)
        };
        if self.config.services.iter().any(depends) {
            self.start_checks();
        }
    }

    fn tell_of_pool(&mut self, id: ServiceId, turn: Turn) {
        let Some(service) = self.config.services.iter().find(|s| s.id == id).cloned() else {
            return;
        };
        let rules = &service.pool;
        let (quorum, hysteresis) = (rules.quorum, rules.hysteresis);
        // Who begins well is no news.
        let is_news = !matches!(turn, Turn::QuorumGained { lasted, .. } if lasted.is_zero());
        let text = match turn {
            Turn::QuorumGained { live, lasted } => format!(
                "quorum gained after {} s: live weight {live}, {} needed",
                lasted.as_secs(),
                quorum + hysteresis
            ),
            Turn::QuorumLost { live, lasted } => {
                let sorry = match service.sorry.len() {
                    0 => "",
                    1 => "; the sorry server answers",
                    _ => "; the sorry servers answer",
                };
                let needed = quorum.saturating_sub(hysteresis).max(1);
                let lasted = lasted.as_secs();
                format!("quorum lost after {lasted} s: live weight {live}, {needed} needed{sorry}")
            }
            Turn::Panic { failed, all } => format!(
                "panic: {failed} of {all} real servers failed at once, more than {} %: they stay in use, \
                 because their checks are more likely to be broken than they",
                rules.panic_threshold.unwrap_or_default()
            ),
            Turn::Calm { failed, lasted } => format!(
                "panic over after {} s: {failed} real servers still fail, and are taken out",
                lasted.as_secs()
            ),
        };
        if is_news {
            match turn {
                Turn::QuorumGained { .. } => tracing::info!("{id}: {text}"),
                _ => tracing::warn!("{id}: {text}"),
            }
            self.event(Kind::Health, &id.to_string(), text);
        }
        match turn {
            Turn::QuorumGained { live, .. } => self.tell_of_quorum(&service, true, live, is_news),
            Turn::QuorumLost { live, .. } => self.tell_of_quorum(&service, false, live, is_news),
            Turn::Panic { .. } | Turn::Calm { .. } => {}
        }
    }

    fn tell_of_quorum(&mut self, service: &VirtualService, up: bool, live: u64, is_news: bool) {
        let notify = &service.pool.notify;
        let own = match up {
            true => &notify.quorum_up,
            false => &notify.quorum_down,
        };
        if let Some(notifier) = &self.notifier {
            notifier.quorum(service, up, live, is_news);
        }
        let arguments = ["VS".to_owned(), name(service.id, None), word(up)];
        self.run_commands(service, own.as_ref(), &arguments);
    }

    /// Runs the commands that tell of a real server.
    pub(super) fn run_member_commands(&mut self, id: ServiceId, address: IpAddr, up: bool) {
        let services = &self.config.services;
        let Some(service) = services.iter().find(|s| s.id == id).cloned() else {
            return;
        };
        let Some(server) = service.backends.iter().find(|b| b.address == address) else {
            return;
        };
        let own = match up {
            true => &server.member.notify_up,
            false => &server.member.notify_down,
        };
        let server = name(id, Some((address, server.port)));
        let arguments = ["RS".to_owned(), server, name(id, None), word(up)];
        self.run_commands(&service, own.as_ref(), &arguments);
    }

    /// The change's own command as it is, then the general one with arguments.
    fn run_commands(
        &mut self,
        service: &VirtualService,
        own: Option<&Vec<String>>,
        arguments: &[String],
    ) {
        let notify = &service.pool.notify;
        let general = notify.any.as_ref().map(|command| {
            let words = command.iter().chain(arguments);
            words.cloned().collect::<Vec<_>>()
        });
        let Some(notifier) = &mut self.notifier else {
            return;
        };
        for command in own.cloned().into_iter().chain(general) {
            notifier.command(service.id, command, notify.timeout);
        }
    }

    /// The end: what those that want it are told as if all real servers failed.
    pub(super) fn tell_of_the_end(&mut self) {
        for service in self.config.services.clone() {
            if !service.pool.omega {
                continue;
            }
            for server in &service.backends {
                if self.without_pool(&service, server.address).up {
                    self.run_member_commands(service.id, server.address, false);
                }
            }
            let pool = self.pools.pools.get(&service.id);
            if pool.is_some_and(Pool::has_quorum) {
                self.tell_of_quorum(&service, false, 0, false);
            }
        }
    }

    /// What an operator should know of a pool.
    pub(super) fn pool_problems(&self, service: &VirtualService) -> Vec<String> {
        let Some(pool) = self.pools.pools.get(&service.id) else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        if pool.panic_since().is_some() {
            let kept: Vec<String> = pool.held().iter().map(IpAddr::to_string).collect();
            problems.push(format!(
                "{}: panic: more than {} % of the real servers failed at once; in use although their checks fail: {}",
                service.id,
                service.pool.panic_threshold.unwrap_or_default(),
                kept.join(", ")
            ));
        }
        // That nothing is alive is said already.
        if !pool.has_quorum() && pool.live() > 0 {
            problems.push(format!(
                "{}: no quorum: live weight {}, {} needed",
                service.id,
                pool.live(),
                service.pool.quorum + service.pool.hysteresis
            ));
        }
        problems
    }

    /// Every pool.
    pub(super) fn pool_statuses(&self) -> Vec<PoolStatus> {
        let now = self.started.elapsed();
        let since = |time: Duration| {
            let ago = now.saturating_sub(time);
            unix(
                SystemTime::now()
                    .checked_sub(ago)
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            )
        };
        let status = |service: &VirtualService| {
            let pool = self.pools.pools.get(&service.id)?;
            let growing = service.backends.iter().filter_map(|server| {
                let step = pool.step(&service.pool, server.address, now);
                (step < RAMP_STEPS).then(|| Growing {
                    backend: server.address.to_string(),
                    percent: step * 100 / RAMP_STEPS,
                })
            });
            Some(PoolStatus {
                service: service.id.to_string(),
                quorum: service.pool.quorum,
                hysteresis: service.pool.hysteresis,
                live_weight: pool.live(),
                has_quorum: pool.has_quorum(),
                since: since(pool.quorum_since()),
                panic_since: pool.panic_since().map(since),
                kept: pool.held().iter().map(IpAddr::to_string).collect(),
                growing: growing.collect(),
                checks_paused: !self.is_checked(service.id),
            })
        };
        self.config.services.iter().filter_map(status).collect()
    }
}

/// Whether a real server of which nothing is known is down.
fn begins_down(service: &VirtualService, address: IpAddr) -> bool {
    let mut servers = service.backends.iter();
    let checked = |server: &crate::model::RealServer| {
        server.address == address && server.checks.iter().any(|c| !c.kind.may_be_silent())
    };
    service.pool.alpha && servers.any(checked)
}

/// As keepalived's FIFO names services and real servers: `[10.1.15.45]:tcp:80`.
fn name(id: ServiceId, server: Option<(IpAddr, Option<u16>)>) -> String {
    let protocol = id.protocol.to_string().to_lowercase();
    match server {
        Some((address, Some(port))) => format!("[{address}]:{protocol}:{port}"),
        Some((address, None)) => format!("[{address}]:{protocol}:{}", id.ports),
        None => format!("[{}]:{protocol}:{}", id.address, id.ports),
    }
}

fn word(up: bool) -> String {
    if up { "UP" } else { "DOWN" }.to_owned()
}
