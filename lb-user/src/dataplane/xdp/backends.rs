//! Backends in the maps: ids, elements, tunnels, connection counts.

use std::{collections::HashMap, sync::atomic::Ordering};

use aya::maps::PerCpuValues;
use lb_common::{
    Backend, BackendCounters, BackendFlags,
    flow::{FlowKey, FlowValue},
    table::{Load, Tunnel},
};

use super::{
    Xdp,
    flows::Homeless,
    map_error,
    maps::{PodCounters, PodWideKey},
};
use crate::{
    dataplane::{
        BackendKey, DataPlaneError, Plan,
        plan::{BackendState, PlannedBackend, PlannedService},
    },
    model::{Forwarding, Hop, Neighbour, Protocol, Target, address::wire},
};

/// Lengths of outer headers.
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

impl Xdp {
    /// Gives every service and backend of the plan its id, and fresh ones clean counters.
    pub(super) fn assign_ids(&mut self, plan: &Plan) -> Result<(), DataPlaneError> {
        let now = self.now();
        for service in &plan.services {
            let (service_id, _) = self
                .service_ids
                .assign(service.id, now)
                .map_err(|_| DataPlaneError::Exhausted("service"))?;
            self.identities.set_service(service_id, service.id);
            for key in keys(service) {
                let (id, fresh) = self
                    .backend_ids
                    .assign(key, now)
                    .map_err(|_| DataPlaneError::Exhausted("real server"))?;
                let (_, target, sorry) = key;
                self.identities.set_backend(id, service_id, target, sorry);
                if fresh {
                    self.zero_counters(id)?;
                    self.loads.store(usize::from(id), &Load::default());
                }
            }
        }
        Ok(())
    }

    fn zero_counters(&mut self, id: u16) -> Result<(), DataPlaneError> {
        let fails =
            |e: &(dyn std::error::Error + 'static)| map_error("clear a backend's counters", e);
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| fails(&e))?;
        let zeros = PerCpuValues::try_from(vec![PodCounters(BackendCounters::default()); cpus])
            .map_err(|e| fails(&e))?;
        self.stats
            .set(u32::from(id), zeros, 0)
            .map_err(|e| fails(&e))
    }

    pub(super) fn backend_id(&self, key: &BackendKey) -> u16 {
        self.backend_ids.get(key).unwrap_or_default()
    }

    /// Writes a backend's element as plan and neighbour are now.
    pub(super) fn write_backend(&mut self, service: &PlannedService, backend: &PlannedBackend) {
        let id = self.backend_id(&(service.id, backend.target, backend.sorry));
        let mut flags = match backend.state {
            BackendState::Down => 0,
            BackendState::Draining
            | BackendState::Unresolved
            | BackendState::Inhibited
            | BackendState::Standby => BackendFlags::ALIVE | BackendFlags::DRAINING,
            // Nothing is sent there, wherever it is.
            BackendState::Resetting => {
                BackendFlags::ALIVE
                    | BackendFlags::DRAINING
                    | BackendFlags::RESET
                    | BackendFlags::RESOLVED
            }
            BackendState::Up => BackendFlags::ALIVE,
        };
        if backend.sorry || backend.state.only_known_flows() {
            flags |= BackendFlags::PASSING;
        }
        let neighbour = match backend.target {
            Target::Local => {
                flags |= BackendFlags::LOCAL;
                None
            }
            Target::Host(address) => self.neighbours.get(&address).copied(),
        };
        let tunnelled = matches!(service.forwarding, Forwarding::Tunnel(_));
        let element = match neighbour {
            Some(Neighbour::ThisHost) if backend.state != BackendState::Resetting => {
                Backend::new([0; 6], [0; 6], 0, 0, flags | BackendFlags::LOCAL)
            }
            // The device is known to the kernel before any packet is sent to it, and so is the tunnel.
            Some(Neighbour::Host(hop))
                if (hop.on_link || tunnelled)
                    && self.register(hop.ifindex)
                    && (!tunnelled || self.write_tunnel(id, backend.target, &hop)) =>
            {
                let tunnel = if tunnelled { BackendFlags::TUNNEL } else { 0 };
                let redirects = self.ways.sends(hop.ifindex);
                let redirect = match redirects || backend.state == BackendState::Resetting {
                    true => 0,
                    false => BackendFlags::NO_REDIRECT,
                };
                let flags = flags | BackendFlags::RESOLVED | tunnel | redirect;
                let [outer, inner] = hop.vlans.map(tag);
                let limit = match tunnelled {
                    // The tunnel has one of its own.
                    true => 0,
                    false => self.ways.limit(hop.ifindex, hop.mtu),
                };
                Backend {
                    inner_vlan: u64::from(inner),
                    ifindex: u64::from(hop.ifindex) | u64::from(limit) << 32,
                    ..Backend::new(hop.mac, hop.source_mac, outer, hop.ifindex, flags)
                }
            }
            Some(_) | None => {
                // Only the flags go: a packet that saw them a moment ago finds the rest intact.
                let old = self.backends.load(usize::from(id));
                Backend {
                    destination: Backend::new(old.destination_mac(), [0; 6], 0, 0, flags)
                        .destination,
                    ..old
                }
            }
        };
        let element = element.marked();
        if self.backends.load(usize::from(id)) != element {
            self.backends.store(usize::from(id), &element);
        }
        let offset = std::mem::offset_of!(Load, weight);
        let words = [backend.share, backend.upper, backend.lower];
        for (index, value) in words.into_iter().enumerate() {
            self.loads
                .half_word(usize::from(id), offset + index * 4)
                .store(value, Ordering::Relaxed);
        }
    }

    /// Writes the way into a tunnel. Says whether there is one.
    fn write_tunnel(&self, id: u16, target: Target, hop: &Hop) -> bool {
        let (Target::Host(destination), Some(source)) = (target, hop.source) else {
            return false;
        };
        let header = if destination.is_ipv4() {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        };
        let tunnel = Tunnel {
            source: wire(source),
            destination: wire(destination),
            inner_mtu: hop.mtu.saturating_sub(header),
            reserved: [0; 3],
        };
        if self.tunnels.load(usize::from(id)) != tunnel {
            self.tunnels.store(usize::from(id), &tunnel);
        }
        true
    }

    /// Makes an interface known as a way out. Says whether that worked.
    fn register(&mut self, ifindex: u32) -> bool {
        if !self.ways.knows(ifindex) {
            self.look_at_ways();
        }
        if self.devices.get(ifindex, 0).is_ok() {
            return true;
        }
        let result = self.devices.insert(ifindex, ifindex, None, 0);
        if let Err(error) = &result {
            tracing::error!(ifindex, %error, "cannot register an interface for redirection; its packets pass");
        }
        result.is_ok()
    }

    /// Asks which interfaces to real servers send redirected frames; that changes with programs on them.
    fn look_at_ways(&mut self) {
        // Generic XDP sends by any interface, and what comes in and leaves by the only one is not redirected.
        // Frames of a bond come in by its ports.
        let native = !self.object.native().is_empty();
        let hops = self.neighbours.values();
        let interfaces = hops.filter_map(|neighbour| match neighbour {
            Neighbour::Host(hop) => Some(hop.ifindex),
            Neighbour::ThisHost => None,
        });
        let entries = &self.entries;
        self.ways.look(&interfaces.collect(), |ifindex| {
            native && !entries.iter().eq([&ifindex])
        });
    }

    /// Follows changes of that.
    pub(super) fn follow_ways(&mut self) {
        self.look_at_ways();
        if !self.ways.take_changed() {
            return;
        }
        let plan = std::mem::take(&mut self.plan);
        for service in &plan.services {
            for backend in &service.backends {
                self.write_backend(service, backend);
            }
        }
        self.plan = plan;
        if let Some(trouble) = self.trouble() {
            tracing::error!("{trouble}");
        }
    }

    /// What keeps packets from real servers.
    pub(super) fn trouble(&self) -> Option<String> {
        let deaf: Vec<String> = self.ways.deaf().map(super::ways::name).collect();
        if deaf.is_empty() {
            return None;
        }
        let fate = match self.has_slow_path() {
            true => "take the slow path through IPVS",
            false => "pass to the kernel",
        };
        Some(format!(
            "the driver of interface {} cannot send what XDP redirects: packets for real \
             servers behind it that came in by another interface {fate} (`no_redirect`). Name the interface \
             in `interfaces` of [dataplane] if clients come in by it, give a veth's other end an XDP program, put \
             the real servers on another interface, or set `mode = \"ipvs\"`",
            deaf.join(", ")
        ))
    }

    /// Puts spilled flows back where there is room by now, after a table has grown or others have ended:
    /// where their bucket is not full any more, the program does not look for them in the spill table.
    pub(super) fn bring_spilled_home(&mut self) {
        let (secret, now) = (self.control.load().hash_secret, self.clock.now());
        let is_udp = |service: u16| {
            let id = self.identities.service(service);
            id.is_some_and(|id| id.protocol == Protocol::Udp)
        };
        let narrow: Vec<(u64, u64)> = self.spill.iter().flatten().collect();
        let wide: Vec<(PodWideKey, u64)> = self.wide_spill.iter().flatten().collect();
        let mut home = Vec::new();
        for (key, value) in narrow {
            let flow = Homeless::Narrow(FlowKey(key), FlowValue(value));
            let udp = is_udp(FlowKey(key).service());
            if self.flows.bring_home(flow, udp, secret, now) {
                home.push(flow);
            }
        }
        for (PodWideKey(key), value) in wide {
            let flow = Homeless::Wide(key, FlowValue(value));
            let udp = is_udp(key.service());
            if self.flows.bring_home(flow, udp, secret, now) {
                home.push(flow);
            }
        }
        for flow in home {
            let _ = match flow {
                Homeless::Narrow(key, _) => self.spill.remove(&key.0),
                Homeless::Wide(key, _) => self.wide_spill.remove(&PodWideKey(key)),
            };
        }
    }

    /// Connection counts of the backends that need them, as the program has them now.
    pub(super) fn loads_before(&self) -> HashMap<u16, Load> {
        let counted = self.plan.services.iter().filter(|s| s.is_counted());
        counted
            .flat_map(keys)
            .map(|key| {
                let id = self.backend_id(&key);
                (id, self.loads.load(usize::from(id)))
            })
            .collect()
    }

    /// Corrects them by what was counted since. What the program adds meanwhile is not lost.
    pub(super) fn correct_loads(
        &self,
        before: &HashMap<u16, Load>,
        counts: &HashMap<u16, (u64, u64)>,
    ) {
        for (id, load) in before {
            let (active, inactive) = counts.get(id).copied().unwrap_or_default();
            for (offset, old, new) in [
                (std::mem::offset_of!(Load, active), load.active, active),
                (
                    std::mem::offset_of!(Load, inactive),
                    load.inactive,
                    inactive,
                ),
            ] {
                self.loads
                    .word(usize::from(*id), offset)
                    .fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
            }
        }
    }
}

/// A VLAN id as elements have it.
fn tag(id: u16) -> u16 {
    match id {
        0 => 0,
        id => Backend::TAGGED | id,
    }
}

/// What identifies each backend of a service, in plan order.
pub(super) fn keys(service: &PlannedService) -> impl Iterator<Item = BackendKey> + '_ {
    service
        .backends
        .iter()
        .map(|backend| (service.id, backend.target, backend.sorry))
}
