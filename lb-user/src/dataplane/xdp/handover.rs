//! Giving the connections that the flow tables know to another data plane, and taking some from one.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use lb_common::{
    Address, BackendFlags,
    flow::{FlowKey, FlowTable, FlowValue, ticks},
    table::StickyKey,
    wide::WideKey,
};

use super::{
    Xdp,
    flows::{Flow, Homeless},
    generation::wait_for_all_readers,
    map_error,
    maps::{PodStickyKey, PodWideKey},
};
use crate::{
    dataplane::{
        DataPlaneError,
        carried::{Carried, Phase},
    },
    model::{
        Protocol, ServiceId,
        address::{from_wire, wire},
    },
};

impl Xdp {
    /// Forgets links that somebody took off interfaces which are still there. Returns their names.
    pub fn take_lost(&mut self) -> Vec<String> {
        self.object.take_lost()
    }

    /// Why the last attempt to attach was refused on an interface that is there, if it was.
    pub fn refusal(&self) -> Option<&str> {
        self.object.refusal()
    }

    /// Stops forwarding. Program, maps and flows stay as they are, and no packet is in the program any
    /// more when this returns.
    pub fn release(&mut self) {
        if self.object.attachments().is_empty() {
            return;
        }
        if let Err(error) = self.object.release() {
            tracing::warn!(%error, "cannot remove the pin of an XDP link");
        }
        wait_for_all_readers();
    }

    /// Forwards again, on all of the present interfaces or on none.
    pub fn attach_again(&mut self, present: &[(String, u32)]) -> Result<(), DataPlaneError> {
        self.object.attach_again(present)
    }

    /// The classifiers of health checks and of the slow path run on these interfaces, whether or not the program does.
    pub fn follow_classifiers(&mut self, present: &[(String, u32)]) {
        for (interface, _) in present {
            self.object.follow_classifiers(interface);
        }
    }

    /// While this is on, packets that begin no connection and belong to no known flow are passed to the
    /// kernel, which may know their connection.
    pub fn set_handover(&self, on: bool) {
        self.control
            .set_feature(lb_common::control::Features::HANDOVER, on);
    }

    /// Every connection that the flow tables know, and every client that sticks.
    pub fn connections(&self) -> Vec<Carried> {
        let now = self.clock.now();
        let mut services: HashMap<u16, Option<ServiceId>> = HashMap::new();
        let mut service = |id: u16| {
            let known = services.entry(id);
            *known.or_insert_with(|| self.identities.service(id))
        };
        let mut flows = self.flows.list(now, |_| true);
        flows.extend(self.all_spilled(&mut service));
        let mut all = Vec::with_capacity(flows.len());
        for flow in &flows {
            let carried = service(flow.service).and_then(|id| self.carried(flow, id, now));
            all.extend(carried);
        }
        if self.plan.services.iter().any(|s| s.persistence.is_some()) {
            all.extend(self.bonds(now));
        }
        all
    }

    /// Every flow that found no room in its bucket.
    pub(super) fn all_spilled(
        &self,
        mut service: impl FnMut(u16) -> Option<ServiceId>,
    ) -> Vec<Flow> {
        let narrow = self.spill.iter().flatten().map(|(key, value)| {
            let key = FlowKey(key);
            (key.service(), Homeless::Narrow(key, FlowValue(value)))
        });
        let wide = self.wide_spill.iter().flatten();
        let wide = wide
            .map(|(PodWideKey(key), value)| (key.service(), Homeless::Wide(key, FlowValue(value))));
        let now = self.clock.now();
        narrow
            .chain(wide)
            .filter_map(|(id, flow)| {
                let is_udp = service(id)?.protocol == Protocol::Udp;
                Some(Flow::spilled(flow, is_udp))
            })
            .filter(|flow| !flow.value.is_free(now))
            .collect()
    }

    fn carried(&self, flow: &Flow, service: ServiceId, now: u32) -> Option<Carried> {
        let id = flow.value.backend();
        let (_, target, sorry) = self.identities.backend(id)?;
        let element = self.backends.load(usize::from(id));
        if element.flags() & BackendFlags::ALIVE == 0 {
            return None;
        }
        Some(Carried {
            service,
            client: SocketAddr::new(flow.client, flow.client_port),
            vip_port: service.ports.single().unwrap_or(flow.vip_port),
            target,
            sorry,
            phase: flow.phase(),
            left: self.left(flow.value, now),
        })
    }

    fn bonds(&self, now: u32) -> Vec<Carried> {
        let (old, new) = (self.sticky.iter(), self.sticky_new.iter());
        old.chain(new)
            .flatten()
            .filter_map(|(PodStickyKey(key), value)| {
                let value = FlowValue(value);
                if value.is_free(now) {
                    return None;
                }
                let service = self.identities.service(key.service as u16)?;
                let (_, target, sorry) = self.identities.backend(value.backend())?;
                Some(Carried {
                    service,
                    client: SocketAddr::new(from_wire(key.client), 0),
                    vip_port: service.ports.single().unwrap_or(0),
                    target,
                    sorry,
                    phase: Phase::Sticks,
                    left: self.left(value, now),
                })
            })
            .collect()
    }

    fn left(&self, value: FlowValue, now: u32) -> Duration {
        Duration::from_secs(self.clock.seconds(value.expires().wrapping_sub(now)))
    }

    /// Forgets every connection: they went on elsewhere since. Only while the program runs nowhere.
    pub fn forget_connections(&mut self) {
        self.flows.forget_all();
        let narrow: Vec<u64> = self.spill.keys().flatten().collect();
        let wide: Vec<PodWideKey> = self.wide_spill.keys().flatten().collect();
        for key in narrow {
            let _ = self.spill.remove(&key);
        }
        for key in wide {
            let _ = self.wide_spill.remove(&key);
        }
    }

    /// Takes connections that somebody else forwarded so far. Those that the tables know already stay as
    /// they are; a client that sticks goes where it is said to, whatever was known. Returns how many are known
    /// now.
    pub fn take_over(&mut self, connections: &[Carried]) -> Result<usize, DataPlaneError> {
        let (secret, now) = (self.control.load().hash_secret, self.clock.now());
        let networks = self.sticky_networks();
        let mut known = 0;
        for carried in connections {
            let key = (carried.service, carried.target, carried.sorry);
            let ids = self
                .service_ids
                .get(&carried.service)
                .zip(self.backend_ids.get(&key));
            // One of a service that is no more, or of a real server that is down.
            let Some((service, backend)) = ids else {
                continue;
            };
            let left = ticks(carried.seconds_left(), self.clock.tick_ns());
            let expires = now.wrapping_add(left);
            let value = FlowValue::new(backend, expires, carried.phase == Phase::Closing);
            match (carried.phase, networks.get(&carried.service)) {
                (Phase::Sticks, Some(bits)) => self.take_bond(carried, service, *bits, value)?,
                (Phase::Sticks, None) => {}
                (_, _) => self.take_flow(carried, service, value, secret, now)?,
            }
            known += 1;
        }
        Ok(known)
    }

    fn take_flow(
        &mut self,
        carried: &Carried,
        service: u16,
        value: FlowValue,
        secret: [u64; 2],
        now: u32,
    ) -> Result<(), DataPlaneError> {
        let client: Address = wire(carried.client.ip());
        let port_be = carried.client.port().to_be();
        let single = carried.service.ports.single().is_some();
        let flow = match client.as_v4() {
            Some(client_be) if single => {
                Homeless::Narrow(FlowKey::new(client_be, port_be, service), value)
            }
            _ => {
                let key = WideKey::new(client, port_be, carried.vip_port.to_be(), service);
                Homeless::Wide(key, value)
            }
        };
        let promoted = FlowTable::promoted(flow.is_wide(), carried.phase == Phase::Datagrams);
        let table = match carried.phase {
            Phase::Opening => promoted.half_open(),
            Phase::Established | Phase::Closing | Phase::Datagrams | Phase::Sticks => promoted,
        };
        if self.flows.put(table, flow, secret, now) {
            return Ok(());
        }
        // As the program does with one that finds no room.
        match flow {
            Homeless::Narrow(key, value) => self.spill.insert(key.0, value.0, 0),
            Homeless::Wide(key, value) => self.wide_spill.insert(PodWideKey(key), value.0, 0),
        }
        .map_err(|e| map_error("take over a connection", &e))
    }

    /// Bits of the network that sticks together, of each service with persistence.
    fn sticky_networks(&self) -> HashMap<ServiceId, u8> {
        let services = self.plan.services.iter();
        services
            .filter_map(|planned| {
                let bits = super::image::sticky_bits(planned.id, planned.persistence?);
                Some((planned.id, bits as u8))
            })
            .collect()
    }

    fn take_bond(
        &mut self,
        carried: &Carried,
        service: u16,
        bits: u8,
        value: FlowValue,
    ) -> Result<(), DataPlaneError> {
        let key = StickyKey {
            client: wire(carried.client.ip()).network(bits),
            service: u64::from(service),
        };
        self.sticky
            .insert(PodStickyKey(key), value.0, 0)
            .map_err(|e| map_error("take over a client that sticks", &e))
    }
}
