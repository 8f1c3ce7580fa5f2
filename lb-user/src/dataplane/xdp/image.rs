//! One generation of the configuration as the program reads it: service entries and ring chunks.
//! Pure.

use std::collections::BTreeMap;

use lb_common::{
    RingChunk, Service, ServiceKey,
    limits::{RING_CHUNK_SLOTS, RING_CHUNKS_PER_GENERATION},
};

use crate::{dataplane::Plan, model::ServiceId, schedule::ring};

/// Service entries by key, and the chunks their rings lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Keys carry generation 0; [`Image::placed`] moves them.
    services: BTreeMap<(u32, u16, u8), Service>,
    /// Chunks from the generation's first on.
    pub chunks: Vec<RingChunk>,
}

impl Image {
    /// Lays out `plan`. `service_id` and `backend_id` name what was assigned to service `s` and to
    /// its backend `b`.
    pub fn build(
        plan: &Plan,
        service_id: impl Fn(usize) -> u16,
        backend_id: impl Fn(usize, usize) -> u16,
    ) -> Self {
        let mut image = Self::default();
        for (s, service) in plan.services.iter().enumerate() {
            let ring = ring::build(&service.ring_weights());
            let first_chunk = image.chunks.len();
            for slots in ring.chunks(RING_CHUNK_SLOTS as usize) {
                let mut chunk = RingChunk {
                    slots: [0; RING_CHUNK_SLOTS as usize],
                };
                for (place, backend) in chunk.slots.iter_mut().zip(slots) {
                    *place = backend_id(s, usize::from(*backend));
                }
                image.chunks.push(chunk);
            }
            let entry = Service {
                id: service_id(s),
                role: service.role,
                ring_first: first_chunk as u32 * RING_CHUNK_SLOTS,
                ring_len: ring.len() as u32,
                reserved: 0,
            };
            image.services.insert(key_parts(service.id), entry);
        }
        image
    }

    /// The entries as they stand in generation `generation`.
    pub fn placed(&self, generation: u32) -> impl Iterator<Item = (ServiceKey, Service)> + '_ {
        let offset = generation * RING_CHUNKS_PER_GENERATION * RING_CHUNK_SLOTS;
        self.services
            .iter()
            .map(move |((address_be, port_be, protocol), service)| {
                let key = ServiceKey {
                    address_be: *address_be,
                    port_be: *port_be,
                    protocol: *protocol,
                    generation: generation as u8,
                };
                (
                    key,
                    Service {
                        ring_first: service.ring_first + offset,
                        ..*service
                    },
                )
            })
    }
}

fn key_parts(id: ServiceId) -> (u32, u16, u8) {
    let address_be = u32::from_ne_bytes(id.address.ip().octets());
    (address_be, id.address.port().to_be(), id.protocol.number())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::{
        dataplane::plan::{BackendState, PlannedBackend, PlannedService},
        model::{Protocol, Scheduler, Target},
    };

    fn service(port: u16, weights: &[u32]) -> PlannedService {
        let backend = |(last, weight): (u8, &u32)| PlannedBackend {
            target: Target::Host(Ipv4Addr::new(10, 0, 0, last)),
            sorry: false,
            weight: *weight,
            state: BackendState::Up,
        };
        PlannedService {
            id: ServiceId {
                protocol: Protocol::Tcp,
                address: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), port),
            },
            role: 3,
            scheduler: Scheduler::Wrr,
            backends: (1..).zip(weights).map(backend).collect(),
        }
    }

    #[test]
    fn rings_begin_at_chunks_and_generations_do_not_overlap() {
        let plan = Plan {
            services: vec![service(80, &[20, 13]), service(81, &[0]), service(82, &[1])],
        };
        let image = Image::build(&plan, |s| s as u16 + 1, |s, b| (s * 100 + b + 1) as u16);
        assert_eq!(image.chunks.len(), 3);
        let entries: Vec<_> = image.placed(1).collect();
        let find = |port: u16| {
            entries
                .iter()
                .find(|(key, _)| u16::from_be(key.port_be) == port)
                .map(|(_, s)| *s)
                .unwrap()
        };
        let base = RING_CHUNKS_PER_GENERATION * RING_CHUNK_SLOTS;
        assert_eq!((find(80).ring_first, find(80).ring_len), (base, 33));
        assert_eq!(find(81).ring_len, 0);
        assert_eq!((find(82).ring_first, find(82).ring_len), (base + 64, 1));
        assert_eq!(image.chunks[2].slots[0], 201);
        assert!(entries.iter().all(|(key, _)| key.generation == 1));
        assert_eq!(entries[0].0.address_be.to_ne_bytes(), [192, 0, 2, 1]);
    }
}
