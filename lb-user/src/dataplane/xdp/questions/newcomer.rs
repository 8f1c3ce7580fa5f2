//! What would become of a new connection: limits, persistence, thresholds, the scheduler, in the
//! program's order (`schedule` and `protect` there). Reads the maps and changes nothing, so two answers
//! in a row are the same where two connections would not be.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    BackendFlags,
    control::Features,
    flow::FlowValue,
    hashing::{self, MAGLEV_OFFSET_KEY},
    limits::{MAX_COMPARED, MAX_SERVICES, RING_CHUNK_SLOTS},
    service::{Method, ServiceDetail},
    table::{Load, StickyKey},
};

use super::{Xdp, host};
use crate::{
    dataplane::{
        Why,
        plan::{BackendState, PlannedService},
        xdp::maps::{PodAddress, PodStickyKey},
    },
    model::{SourceRule, address::wire},
};

/// As many ring slots as the program tries before the list of all real servers decides.
const RING_ATTEMPTS: u64 = 16;
/// As many other places as the program's fallback tries.
const FALLBACK_ATTEMPTS: u32 = 64;

/// A backend, and the word for how it was found.
type Found = (u16, &'static str);

/// The scheduler of one service, and the real servers that it would have passed over.
struct Choice<'a> {
    xdp: &'a Xdp,
    detail: &'a ServiceDetail,
    /// Whether the service's connections are counted, as thresholds need.
    counted: bool,
    passed_over: Vec<u16>,
}

impl Xdp {
    /// Whom a new connection would get. `Err` is a reason's name.
    pub(super) fn newcomer(
        &self,
        service: &PlannedService,
        client: SocketAddr,
        id: u16,
        why: &mut Why,
    ) -> Result<Found, &'static str> {
        let index = self.control.live() * MAX_SERVICES + u32::from(id);
        let detail = self.details.load(index as usize);
        if detail.ring_len == 0 {
            why.steps
                .push("no real server and no sorry server takes it: the packet passes".to_owned());
            return Err("no_backend");
        }
        if wire(client.ip()).is_martian() {
            why.steps.push(format!(
                "{} is no address that a host can send from: the packet passes",
                client.ip()
            ));
            return Err("martian_source");
        }
        let is_vip = |service: &PlannedService| service.id.address == client.ip();
        if self.plan.services.iter().any(is_vip) {
            why.steps
                .push("the client's address is a VIP: the packet passes".to_owned());
            let is_land = client.ip() == service.id.address;
            return Err(if is_land { "land" } else { "source_is_vip" });
        }
        self.admit(&detail, client.ip(), id, why)?;
        if detail.sticky_ticks != 0
            && let Some(backend) = self.stuck_to(&detail, client.ip(), id)
        {
            why.steps.push(format!(
                "persistence: the client sticks to {}",
                host(self, backend)
            ));
            return Ok((backend, "persistence"));
        }
        let mut choice = Choice {
            xdp: self,
            detail: &detail,
            counted: service.is_counted(),
            passed_over: Vec::new(),
        };
        let (found, text) = choice.by_method(service, client, id);
        why.steps.push(text);
        let passed_over = choice.passed_over;
        for backend in passed_over {
            why.steps.push(self.why_not(backend));
        }
        found.ok_or_else(|| {
            why.steps
                .push("nobody takes it: the packet passes to the kernel".to_owned());
            "no_backend"
        })
    }

    /// Whether the limits of new connections let it in.
    fn admit(
        &self,
        detail: &ServiceDetail,
        client: IpAddr,
        id: u16,
        why: &mut Why,
    ) -> Result<(), &'static str> {
        let control = self.control.load();
        let is_limited = control.features & Features::SOURCE_RATE != 0;
        if !is_limited && detail.rate.interval_ns == 0 {
            return Ok(());
        }
        if self.sources.rule_of(client) == Some(SourceRule::Allow) {
            why.steps
                .push(format!("{client} is on the allow-list: no limit holds"));
            return Ok(());
        }
        let now = self.clock.nanoseconds();
        // IPv6 sources are counted by their /64.
        let subject = match client {
            IpAddr::V4(_) => wire(client),
            IpAddr::V6(_) => wire(client).network(64),
        };
        if is_limited
            && let Ok(state) = self.source_rates.get(&PodAddress(subject), 0)
            && control.source_rate.admit(state, now).is_none()
        {
            why.steps.push(format!(
                "{client} opens connections faster than `source_rate` allows: the packet is dropped"
            ));
            return Err("source_rate");
        }
        let state = self.cursors.load(usize::from(id)).arrival;
        if detail.rate.interval_ns != 0 && detail.rate.admit(state, now).is_none() {
            why.steps.push(
                "the service gets connections faster than its `rate` allows: the packet is dropped"
                    .to_owned(),
            );
            return Err("service_rate");
        }
        Ok(())
    }

    fn stuck_to(&self, detail: &ServiceDetail, client: IpAddr, service: u16) -> Option<u16> {
        let key = PodStickyKey(StickyKey {
            client: wire(client).network(detail.sticky_bits as u8),
            service: u64::from(service),
        });
        let now = self.clock.now();
        let usable = |value: u64| {
            let value = FlowValue(value);
            let flags = self.backends.load(usize::from(value.backend())).flags();
            let stays =
                flags & (BackendFlags::ALIVE | BackendFlags::PASSING) == BackendFlags::ALIVE;
            (stays && !value.is_free(now)).then_some(value.backend())
        };
        let bonds = [self.sticky.get(&key, 0), self.sticky_new.get(&key, 0)];
        bonds.into_iter().flatten().find_map(usable)
    }

    /// What keeps new connections from a backend that keeps its flows.
    fn why_drained(&self, backend: u16) -> &'static str {
        let planned = self.identities.backend(backend).and_then(|identity| {
            let (service, target, sorry) = identity;
            let id = self.identities.service(service)?;
            let service = self.plan.services.iter().find(|s| s.id == id)?;
            let mut backends = service.backends.iter();
            backends.find(|b| (b.target, b.sorry) == (target, sorry))
        });
        match planned.map(|backend| (backend.state, backend.sorry)) {
            Some((BackendState::Unresolved, _)) => "its MAC address is not known",
            Some((BackendState::Inhibited, _)) => "it fails its checks, and keeps its connections",
            Some((BackendState::Resetting, _)) => {
                "it fails its checks, and its connections are reset"
            }
            Some((BackendState::Standby, _)) => "the pool has no quorum: sorry servers answer",
            Some((BackendState::Draining, true)) => "a sorry server that is not needed",
            Some((_, _)) => "it is drained, or its weight is 0",
            None => "it is not in the configuration any more",
        }
    }

    /// Why a backend takes no new connections.
    fn why_not(&self, backend: u16) -> String {
        let flags = self.backends.load(usize::from(backend)).flags();
        let name = host(self, backend);
        if flags & BackendFlags::ALIVE == 0 {
            format!("not {name}: it is down")
        } else if flags & BackendFlags::DRAINING != 0 {
            format!("not {name}: {}", self.why_drained(backend))
        } else {
            let load = self.loads.load(usize::from(backend));
            let (active, inactive) = load.connections();
            format!(
                "not {name}: it has {} connections, and its upper threshold is {}",
                active + inactive,
                load.upper
            )
        }
    }
}

impl Choice<'_> {
    /// The choice, and what led to it.
    fn by_method(
        &mut self,
        service: &PlannedService,
        client: SocketAddr,
        id: u16,
    ) -> (Option<Found>, String) {
        let length = self.detail.ring_len;
        match self.detail.method & Method::KIND {
            Method::SOURCE | Method::MAGLEV => self.hashed(client),
            Method::FIRST => {
                let turns = u64::from(length).min(RING_ATTEMPTS);
                let found = (0..turns).find_map(|turn| self.taking(self.at(turn)));
                let found = found.or_else(|| self.any());
                (named(found, "first"), "fo: the highest weight".to_owned())
            }
            Method::LEAST | Method::WEIGHTED_LEAST => {
                let weighted = self.detail.method & Method::KIND == Method::WEIGHTED_LEAST;
                let text = format!("{}: the fewest connections", service.scheduler);
                (named(self.least(weighted), "least"), text)
            }
            _ => {
                let turn = self.xdp.cursors.load(usize::from(id)).next;
                let slot = turn % u64::from(length);
                let text = format!("ring slot {slot} of {length} is next");
                let found = (0..RING_ATTEMPTS)
                    .find_map(|more| self.taking(self.at(turn.wrapping_add(more))));
                (named(found.or_else(|| self.any()), "ring"), text)
            }
        }
    }

    fn hashed(&mut self, client: SocketAddr) -> (Option<Found>, String) {
        let port = if self.detail.method & Method::PORT != 0 {
            client.port()
        } else {
            0
        };
        let subject = hashing::subject(wire(client.ip()), port);
        let length = self.detail.ring_len;
        let is_source = self.detail.method & Method::KIND == Method::SOURCE;
        let place = |subject: u32| match is_source {
            true => hashing::source_bucket(subject),
            false => hashing::maglev(subject, MAGLEV_OFFSET_KEY) % length,
        };
        let first = place(subject);
        let mut text = match is_source {
            true => format!("sh: bucket {first} of 256"),
            false => format!("mh: place {first} of {length}"),
        };
        let mut found = self.taking(self.at(u64::from(first)));
        if found.is_none() && self.detail.method & Method::FALLBACK != 0 {
            text += ", and the fallback looks for another";
            found = (0..FALLBACK_ATTEMPTS).find_map(|offset| {
                let offset = first.wrapping_add(offset) % length;
                let other = match is_source {
                    true => place(subject).wrapping_add(offset),
                    false => place(subject.wrapping_add(offset)),
                };
                self.taking(self.at(u64::from(other)))
            });
        }
        (named(found, "hash"), text)
    }

    fn least(&mut self, weighted: bool) -> Option<u16> {
        let slots = self.detail.ring_len.min(MAX_COMPARED);
        let all: Vec<u16> = (0..u64::from(slots)).map(|turn| self.at(turn)).collect();
        let taking: Vec<u16> = all.into_iter().filter_map(|id| self.taking(id)).collect();
        let load = |id: u16| self.xdp.loads.load(usize::from(id));
        let weight = |load: &Load| if weighted { u64::from(load.weight) } else { 1 };
        let sum = |load: &Load| {
            let (active, inactive) = load.connections();
            (active << 8).wrapping_add(inactive)
        };
        taking
            .into_iter()
            .filter(|id| load(*id).weight != 0)
            .min_by(|a, b| {
                let (a, b) = (load(*a), load(*b));
                let (of_a, of_b) = (
                    sum(&a).wrapping_mul(weight(&b)),
                    sum(&b).wrapping_mul(weight(&a)),
                );
                of_a.cmp(&of_b)
            })
    }

    /// Any real server that takes connections, where they are counted.
    fn any(&mut self) -> Option<u16> {
        let members = self.detail.members_len.min(MAX_COMPARED);
        (0..members).find_map(|member| self.taking(self.slot(self.detail.members_first + member)))
    }

    /// The backend, if it takes new connections.
    fn taking(&mut self, backend: u16) -> Option<u16> {
        if backend == 0 {
            return None;
        }
        let flags = self.xdp.backends.load(usize::from(backend)).flags();
        let usable = BackendFlags::ALIVE | BackendFlags::DRAINING;
        let is_full = self.counted && is_overloaded(&self.xdp.loads.load(usize::from(backend)));
        if flags & usable == BackendFlags::ALIVE && !is_full {
            return Some(backend);
        }
        if !self.passed_over.contains(&backend) {
            self.passed_over.push(backend);
        }
        None
    }

    fn at(&self, turn: u64) -> u16 {
        self.slot(self.detail.ring_first + (turn % u64::from(self.detail.ring_len)) as u32)
    }

    fn slot(&self, slot: u32) -> u16 {
        let chunk = self.xdp.rings.load((slot / RING_CHUNK_SLOTS) as usize);
        chunk.slots[(slot % RING_CHUNK_SLOTS) as usize]
    }
}

fn named(backend: Option<u16>, because: &'static str) -> Option<Found> {
    backend.map(|backend| (backend, because))
}

/// As the program's: over the upper threshold, or not yet down to the lower one.
fn is_overloaded(load: &Load) -> bool {
    let (active, inactive) = load.connections();
    let total = active + inactive;
    if load.upper == 0 {
        false
    } else if load.overloaded == 0 {
        total >= u64::from(load.upper)
    } else if load.lower != 0 {
        total >= u64::from(load.lower)
    } else {
        total * 4 >= u64::from(load.upper) * 3
    }
}
