//! From configuration and health to what the data plane should hold. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use crate::model::{
    Advised, Config, Forwarding, Hashing, OnDown, Persistence, Protocol, RAMP_STEPS, RateLimit,
    RealServer, Scheduler, ServiceId, SyncDaemonConfig, Target, VirtualService, engine_in_xdp,
    ipvs_lacks, xdp_lacks,
};

/// What the data plane should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Services in file order.
    pub services: Vec<PlannedService>,
    /// Synchronisation of connections, and the mastership flag that decides which end this is.
    pub sync: Option<(SyncDaemonConfig, u16)>,
}

impl Plan {
    /// Services and nothing else.
    pub const fn of(services: Vec<PlannedService>) -> Self {
        Self {
            services,
            sync: None,
        }
    }

    /// Fills in what depends on the plan `before` this one: the latest shares of backends that are given
    /// nothing now. One that was down begins anew.
    pub fn remember(&mut self, before: &Self) {
        let earlier: HashMap<ServiceId, &PlannedService> =
            before.services.iter().map(|s| (s.id, s)).collect();
        for service in &mut self.services {
            let earlier = earlier.get(&service.id).map(|s| s.backends.as_slice());
            for backend in &mut service.backends {
                let is_same = |old: &&PlannedBackend| {
                    (old.target, old.port, old.sorry)
                        == (backend.target, backend.port, backend.sorry)
                        && !old.state.is_out()
                };
                let old = earlier.and_then(|list| list.iter().find(is_same));
                backend.last_share = match (backend.given(), old) {
                    (0, Some(old)) => old.last_share,
                    (given, _) => given,
                };
            }
        }
    }
}

/// A service of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedService {
    /// Protocol, VIP and ports.
    pub id: ServiceId,
    /// The mark of its packets, where that is what they are known by.
    pub fwmark: Option<u32>,
    /// Mastership flag that it depends on; 0 is always set.
    pub role: u16,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// Options of hashing schedulers.
    pub hashing: Hashing,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// Whether clients stick.
    pub persistence: Option<Persistence>,
    /// Whether each packet is scheduled for itself.
    pub one_packet: bool,
    /// Limit of new connections.
    pub rate: Option<RateLimit>,
    /// Backends in file order, sorry servers last.
    pub backends: Vec<PlannedBackend>,
}

/// A backend of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedBackend {
    /// Where its packets go.
    pub target: Target,
    /// Its port where that is not the service's.
    pub port: Option<u16>,
    /// Whether it is a sorry server.
    pub sorry: bool,
    /// As configured, or as an operator set it since.
    pub weight: u32,
    /// Its part of new connections beside the others': the weight, unless weights grow after a return.
    pub share: u32,
    /// The latest share above 0 that it was given since it was last put in: it decides the places of `mh`,
    /// whose other clients must not move when this one is drained (`last_weight` in ip_vs_mh.c).
    pub last_share: u32,
    /// Connection thresholds: see [`RealServer`](crate::model::RealServer).
    pub upper: u32,
    /// As above.
    pub lower: u32,
    /// What it may be given.
    pub state: BackendState,
}

impl PlannedBackend {
    /// A real server without thresholds.
    pub const fn new(target: Target, weight: u32, state: BackendState) -> Self {
        Self {
            target,
            port: None,
            sorry: false,
            weight,
            share: weight,
            last_share: match state {
                BackendState::Up => weight,
                _ => 0,
            },
            upper: 0,
            lower: 0,
            state,
        }
    }

    /// The share that it is given now: the weight that IPVS holds.
    pub const fn given(&self) -> u32 {
        match self.state {
            BackendState::Up => self.share,
            _ => 0,
        }
    }
}

impl PlannedService {
    /// A service in its simplest form.
    pub const fn new(
        id: ServiceId,
        role: u16,
        scheduler: Scheduler,
        backends: Vec<PlannedBackend>,
    ) -> Self {
        Self {
            id,
            fwmark: None,
            role,
            scheduler,
            hashing: Hashing {
                port: false,
                fallback: false,
            },
            forwarding: Forwarding::Dr,
            persistence: None,
            one_packet: false,
            rate: None,
            backends,
        }
    }

    /// What ipvsadm prints behind the scheduler, with a blank in front of each part.
    pub fn flags(&self) -> String {
        let scheduler = self.scheduler;
        let mut text = String::new();
        let options = [
            ("fallback", self.hashing.fallback),
            ("port", self.hashing.port),
        ];
        let set: Vec<String> = options
            .iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| format!("{scheduler}-{name}"))
            .collect();
        if !set.is_empty() {
            text += &format!(" ({})", set.join(","));
        }
        if let Some(persistence) = self.persistence {
            text += &format!(" persistent {}", persistence.timeout.as_secs());
            let prefix = u32::from(persistence.prefix);
            match self.id.address {
                IpAddr::V4(_) if prefix < 32 => {
                    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
                    text += &format!(" mask {}", Ipv4Addr::from(mask));
                }
                IpAddr::V6(_) if prefix < 128 => text += &format!(" mask {prefix}"),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
            if let Some(engine) = persistence.engine {
                text += &format!(" pe {}", engine.name());
            }
        }
        if self.one_packet {
            text += " ops";
        }
        text
    }

    /// What of it the XDP program cannot do.
    pub fn xdp_lacks(&self) -> Option<String> {
        let (scheduler, forwarding) = (self.scheduler, self.forwarding);
        let lacks = xdp_lacks(scheduler, forwarding, self.one_packet, self.fwmark);
        lacks.or_else(|| engine_in_xdp(self.persistence))
    }

    /// What of it IPVS cannot do.
    pub fn ipvs_lacks(&self) -> Option<String> {
        ipvs_lacks(&self.id, self.persistence, self.fwmark)
    }

    /// Turns of each backend in a ring.
    pub fn ring_weights(&self) -> Vec<u32> {
        let turns = |backend: &PlannedBackend| match (backend.state, self.scheduler) {
            (BackendState::Up, Scheduler::Wrr) => backend.share,
            (BackendState::Up, _) => 1,
            (_, _) => 0,
        };
        self.backends.iter().map(turns).collect()
    }

    /// Whether a sorry server answers.
    pub fn is_sorry(&self) -> bool {
        let answers = |b: &PlannedBackend| b.sorry && b.state == BackendState::Up;
        self.backends.iter().any(answers)
    }

    /// Whether connections must be counted as they come.
    pub fn is_counted(&self) -> bool {
        matches!(self.scheduler, Scheduler::Lc | Scheduler::Wlc)
            || self.backends.iter().any(|backend| backend.upper != 0)
    }
}

/// What a backend may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// New connections by its weight.
    Up,
    /// Its flows, but no new ones.
    Draining,
    /// The same, because its MAC address is not known: what it was sent would reach the director's
    /// own stack.
    Unresolved,
    /// The same, because it fails its checks: its flows stay.
    Inhibited,
    /// The same, because the pool has no quorum and sorry servers answer.
    Standby,
    /// Nothing: its flows are reset at their next packet. IPVS cannot, and lets them move.
    Resetting,
    /// Nothing: its flows move at their next packet.
    Down,
}

impl BackendState {
    /// The word in `lbctl`.
    pub const fn label(self) -> &'static str {
        match self {
            BackendState::Up => "up",
            BackendState::Draining => "draining",
            BackendState::Unresolved => "unresolved",
            BackendState::Inhibited => "inhibited",
            BackendState::Standby => "standby",
            BackendState::Resetting => "resetting",
            BackendState::Down => "down",
        }
    }

    /// Whether it gets nothing any more: IPVS does not hold it, and its places in tables are others'.
    pub const fn is_out(self) -> bool {
        matches!(self, BackendState::Down | BackendState::Resetting)
    }

    /// Whether it keeps the flows that it has and gets none but those, not even of clients that stick
    /// to it.
    pub const fn only_known_flows(self) -> bool {
        matches!(
            self,
            BackendState::Unresolved
                | BackendState::Inhibited
                | BackendState::Standby
                | BackendState::Resetting
        )
    }
}

/// What is known of a backend besides its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its health check says so, or it has none, or the panic guard keeps it.
    pub up: bool,
    /// Its MAC address is known, or it is this host.
    pub resolved: bool,
    /// An operator set its weight, or drained it.
    pub steered: Option<Steering>,
    /// What its health checks say of its weight; an operator's counts more.
    pub advised: Advised,
    /// The pool has lost its quorum.
    pub no_quorum: bool,
    /// How much of its weight it has, in parts of [`RAMP_STEPS`].
    pub step: u32,
}

impl Default for Condition {
    fn default() -> Self {
        Self {
            up: true,
            resolved: true,
            steered: None,
            advised: Advised::default(),
            no_quorum: false,
            step: RAMP_STEPS,
        }
    }
}

impl Condition {
    /// The weight of a real server in force.
    pub fn weight(&self, server: &RealServer) -> u32 {
        match self.steered {
            Some(Steering::Weight(weight)) => weight,
            Some(Steering::Drain) | None => {
                self.advised.weight(server.weight).unwrap_or(server.weight)
            }
        }
    }

    /// The weight that counts for the quorum.
    pub fn live_weight(&self, server: &RealServer) -> u32 {
        match self.steered {
            Some(Steering::Drain) => 0,
            Some(Steering::Weight(_)) | None => self.weight(server),
        }
    }
}

/// What an operator told of a real server. Lasts until changed, or until a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// It keeps its flows and gets no new ones.
    Drain,
    /// It has this weight.
    Weight(u32),
}

/// Builds the plan, as the first one: see [`Plan::remember`]. `roles` has the mastership flag of each instance; `condition` answers for a
/// backend of a service.
pub fn build(
    config: &Config,
    roles: &HashMap<String, u16>,
    condition: impl Fn(&VirtualService, Target) -> Condition,
) -> Plan {
    let services = config
        .services
        .iter()
        .map(|service| {
            let condition = |target| condition(service, target);
            let role = service.instance.as_ref().and_then(|name| roles.get(name));
            PlannedService {
                id: service.id,
                fwmark: service.fwmark,
                role: role.copied().unwrap_or(0),
                scheduler: service.scheduler,
                hashing: service.hashing,
                forwarding: service.forwarding,
                persistence: service.persistence,
                one_packet: service.one_packet,
                rate: service.rate,
                backends: backends(service, &condition),
            }
        })
        .collect();
    let sync = config.sync_daemon.as_ref().map(|sync| {
        let role = roles.get(&sync.instance).copied();
        (sync.clone(), role.unwrap_or(0))
    });
    let mut plan = Plan { services, sync };
    plan.remember(&Plan::default());
    plan
}

fn backends(
    service: &VirtualService,
    condition: &dyn Fn(Target) -> Condition,
) -> Vec<PlannedBackend> {
    // Sorry servers that nobody can reach are no reason to send everybody away.
    let sorry = service.sorry.iter();
    let answers = |target: &Target| condition(*target).resolved && condition(*target).up;
    let is_sorry_there = sorry.clone().any(answers);
    let mut steps = Vec::with_capacity(service.backends.len());
    let mut backends: Vec<PlannedBackend> = service
        .backends
        .iter()
        .map(|server| {
            let target = Target::Host(server.address);
            let condition = condition(target);
            steps.push(condition.step);
            let weight = condition.weight(server);
            let drained = condition.live_weight(server) == 0;
            let state = if !condition.up && keeps_flows(service, server) {
                BackendState::Inhibited
            } else if !condition.up && service.pool.on_down == OnDown::Reset {
                BackendState::Resetting
            } else if !condition.up {
                BackendState::Down
            } else if drained {
                BackendState::Draining
            } else if !condition.resolved {
                BackendState::Unresolved
            } else if condition.no_quorum && is_sorry_there {
                BackendState::Standby
            } else {
                BackendState::Up
            };
            PlannedBackend {
                target,
                port: server.port,
                sorry: false,
                weight,
                share: weight,
                last_share: 0,
                upper: server.upper,
                lower: server.lower,
                state,
            }
        })
        .collect();
    grow(&mut backends, &steps);
    let needed = !backends
        .iter()
        .any(|backend| backend.state == BackendState::Up);
    for target in sorry {
        let state = match (needed, condition(*target).resolved) {
            (_, true) if is_sorry_there && !condition(*target).up => BackendState::Down,
            (true, true) => BackendState::Up,
            (true, false) => BackendState::Unresolved,
            // Who was served the sorry page may finish reading it when the real servers are back.
            (false, _) => BackendState::Draining,
        };
        backends.push(PlannedBackend {
            target: *target,
            port: None,
            sorry: true,
            weight: 1,
            share: 1,
            last_share: 0,
            upper: 0,
            lower: 0,
            state,
        });
    }
    backends
}

/// Whether flows stay with a real server that is down. UDP has none that would notice.
fn keeps_flows(service: &VirtualService, server: &RealServer) -> bool {
    let kept = service.pool.on_down == OnDown::Keep && service.id.protocol != Protocol::Udp;
    server.member.inhibit || kept
}

/// The largest share: what IPVS and the scheduler of fewest connections take for a weight.
const MAX_SHARE: u32 = 65_535;

/// Gives those whose weight grows their part of it, exactly where the numbers allow it: the weights of
/// all are multiplied, and divided by what they have in common.
fn grow(backends: &mut [PlannedBackend], steps: &[u32]) {
    let up = |backend: &PlannedBackend| backend.state == BackendState::Up;
    let growing = |(backend, step): (&PlannedBackend, &u32)| up(backend) && *step < RAMP_STEPS;
    if !backends.iter().zip(steps).any(growing) {
        return;
    }
    for (backend, step) in backends.iter_mut().zip(steps) {
        backend.share = backend.weight * step;
    }
    let shares = || backends.iter().filter(|b| up(b)).map(|b| b.share);
    let divisor = shares().fold(0, crate::schedule::ring::gcd).max(1);
    let largest = shares().max().unwrap_or(0) / divisor;
    for backend in backends {
        let mut share = backend.share / divisor;
        if largest > MAX_SHARE {
            let scaled = u64::from(share) * u64::from(MAX_SHARE) / u64::from(largest);
            share = u32::try_from(scaled).unwrap_or(MAX_SHARE);
        }
        // Whoever has a weight has a part.
        backend.share = share.max(u32::from(backend.weight > 0)).min(MAX_SHARE);
    }
}

#[cfg(test)]
mod tests;
