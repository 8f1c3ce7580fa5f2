//! One generation of the configuration as the program reads it. Pure.
//!
//! Offsets count from the generation's own start; whoever writes the image adds where it lies.

mod services;

use lb_common::{
    RingChunk,
    control::{Generation, Rate},
    limits::{RING_CHUNK_SLOTS, RING_CHUNKS_PER_GENERATION},
    service::{Method, PortRange, ServiceBucket, ServiceDetail, VipBucket},
};

use super::placement;
use crate::{
    dataplane::{
        Plan,
        plan::{BackendState, PlannedService},
    },
    model::{Hashing, Persistence, RateLimit, Scheduler, ServiceId},
};

/// Everything that a generation consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// What the control element says of it.
    pub generation: Generation,
    /// Buckets of services.
    pub services: Vec<ServiceBucket>,
    /// Buckets of IPv6 addresses.
    pub vips: Vec<VipBucket>,
    /// Ranges of ports.
    pub ranges: Vec<PortRange>,
    /// Details by service id.
    pub details: Vec<(u16, ServiceDetail)>,
    /// Chunks of rings.
    pub chunks: Vec<RingChunk>,
}

/// A plan has more than the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(pub &'static str);

impl Image {
    /// Lays out `plan`. `service_id` and `backend_id` name what was assigned to service `s` and to
    /// its backend `b`; a tick has `tick_ns` nanoseconds.
    pub fn build(
        plan: &Plan,
        service_id: impl Fn(usize) -> u16,
        backend_id: impl Fn(usize, usize) -> u16,
        tick_ns: u64,
    ) -> Result<Self, Full> {
        let mut image = Self::default();
        for (s, service) in plan.services.iter().enumerate() {
            let table = placement::table(service);
            let first_chunk = image.chunks.len();
            let id = |b: u16| backend_id(s, usize::from(b));
            image.append(&table, id);
            let members = if service.is_counted() {
                let first = image.chunks.len() as u32 * RING_CHUNK_SLOTS;
                let mut once: Vec<Option<u16>> = table.clone();
                once.sort_unstable();
                once.dedup();
                image.append(&once, id);
                (first, once.len() as u32)
            } else {
                (0, 0)
            };
            let detail = ServiceDetail {
                ring_first: first_chunk as u32 * RING_CHUNK_SLOTS,
                ring_len: table.len() as u32,
                method: method(service),
                role: u32::from(service.role),
                sticky_bits: service
                    .persistence
                    .map_or(0, |p| sticky_bits(service.id, p)),
                sticky_ticks: service.persistence.map_or(0, |p| sticky_ticks(p, tick_ns)),
                rate: service.rate.map_or(Rate::default(), rate),
                members_first: members.0,
                members_len: members.1,
                reserved: [0; 2],
            };
            image.details.push((service_id(s), detail));
        }
        if image.chunks.len() > RING_CHUNKS_PER_GENERATION as usize {
            return Err(Full(
                "table of turns; make weights smaller or less different",
            ));
        }
        image.details.sort_by_key(|(id, _)| *id);
        services::lay_out(&mut image, &plan.services, service_id)?;
        Ok(image)
    }
}

impl Image {
    /// Puts a table of backends at the end.
    fn append(&mut self, table: &[Option<u16>], id: impl Fn(u16) -> u16) {
        for slots in table.chunks(RING_CHUNK_SLOTS as usize) {
            let mut chunk = RingChunk {
                slots: [0; RING_CHUNK_SLOTS as usize],
            };
            for (place, backend) in chunk.slots.iter_mut().zip(slots) {
                *place = backend.map_or(0, &id);
            }
            self.chunks.push(chunk);
        }
    }
}

/// A limit as the program has it.
pub fn rate(limit: RateLimit) -> Rate {
    Rate::new(limit.per_second, limit.burst)
}

fn method(service: &PlannedService) -> u32 {
    let sorry = service
        .backends
        .iter()
        .any(|b| b.sorry && b.state == BackendState::Up);
    let Hashing { port, fallback } = service.hashing;
    let options = if port { Method::PORT } else { 0 } | if fallback { Method::FALLBACK } else { 0 };
    match service.scheduler {
        _ if sorry => Method::RING,
        Scheduler::Rr | Scheduler::Wrr => Method::RING,
        // Refused before it gets here (`xdp_lacks`).
        Scheduler::Ovf
        | Scheduler::Lblc
        | Scheduler::Lblcr
        | Scheduler::Dh
        | Scheduler::Sed
        | Scheduler::Nq
        | Scheduler::Twos => Method::RING,
        Scheduler::Lc => Method::LEAST,
        Scheduler::Wlc => Method::WEIGHTED_LEAST,
        Scheduler::Fo => Method::FIRST,
        Scheduler::Sh => Method::SOURCE | options,
        Scheduler::Mh => Method::MAGLEV | options,
    }
}

/// IPv4 prefixes are counted as mapped into IPv6.
pub fn sticky_bits(service: ServiceId, persistence: Persistence) -> u32 {
    let offset = if service.address.is_ipv4() { 96 } else { 0 };
    u32::from(persistence.prefix) + offset
}

fn sticky_ticks(persistence: Persistence, tick_ns: u64) -> u32 {
    let seconds = u32::try_from(persistence.timeout.as_secs()).unwrap_or(u32::MAX);
    lb_common::flow::ticks(seconds, tick_ns).max(1)
}

#[cfg(test)]
mod tests;
