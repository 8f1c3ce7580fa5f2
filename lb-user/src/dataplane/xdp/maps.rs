//! The maps' Rust faces: types that aya may copy, expected shapes, and what an earlier daemon left in
//! them.

use aya::{
    Pod,
    maps::{Map, MapData},
};
use lb_common::{
    Address, BackendCounters, RingChunk,
    control::VlanSet,
    flow::Bucket,
    limits::{
        FLOW_CHUNKS, GENERATIONS, HALF_OPEN_BUCKETS, MAX_BACKENDS, MAX_FRAGMENTED, MAX_INTERFACES,
        MAX_OWN_VLANS, MAX_PORT_RANGES, MAX_PREFIXES, MAX_SERVICES, MAX_SOURCES, MAX_STICKY,
        MAX_STICKY_NEW, RING_CHUNKS_PER_GENERATION, SPILL_FLOWS, VLAN_SETS, WIDE_CHUNKS,
    },
    memory,
    probe::{MAX_PROBE_FLOWS, MAX_PROBES, ProbeFlow, ProbeTarget, Waiting},
    reason::REASON_SLOTS,
    service::{PortRange, ServiceDetail},
    slow::SlowWay,
    table::{Cursor, FragmentKey, Identity, Load, StickyKey, Tunnel},
    wide::{WideBucket, WideKey},
};

use super::{ids::Ids, mapped::MappedArray, object::map_error};
use crate::{
    dataplane::{BackendKey, DataPlaneError},
    model::{
        Ports, Protocol, ServiceId, Target,
        address::{from_wire, wire},
    },
};

macro_rules! pods {
    ($($name:ident($inner:ty);)*) => { $(
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        pub struct $name(pub $inner);
        // SAFETY: the wrapped type is `repr(C)`, made of integers, and asserted to be unpadded.
        unsafe impl Pod for $name {}
    )* };
}

pods! {
    PodCounters(BackendCounters);
    PodWideKey(WideKey);
    PodStickyKey(StickyKey);
    PodAddress(Address);
}

/// Key size, value size and capacity that a map must have; `None` where the kernel decides.
pub fn shape(name: &str) -> Option<(u32, u32, u32)> {
    let of = |key: usize, value: usize, entries: u32| Some((key as u32, value as u32, entries));
    if let Some(memory) = memory::ALL.into_iter().find(|memory| memory.name == name) {
        return Some((4, memory.bytes, 1));
    }
    match name {
        "port_ranges" => of(4, size_of::<PortRange>(), MAX_PORT_RANGES * GENERATIONS),
        "details" => of(4, size_of::<ServiceDetail>(), MAX_SERVICES * GENERATIONS),
        "tunnels" => of(4, size_of::<Tunnel>(), MAX_BACKENDS),
        "loads" => of(4, size_of::<Load>(), MAX_BACKENDS),
        "identities" => of(4, size_of::<Identity>(), MAX_BACKENDS + MAX_SERVICES),
        "rings" => of(
            4,
            size_of::<RingChunk>(),
            RING_CHUNKS_PER_GENERATION * GENERATIONS,
        ),
        "cursors" => of(4, size_of::<Cursor>(), MAX_SERVICES),
        "flows" => of(4, 4, FLOW_CHUNKS),
        "wide_flows" => of(4, 4, WIDE_CHUNKS),
        "half_open_tcp" | "half_open_udp" => of(4, size_of::<Bucket>(), HALF_OPEN_BUCKETS),
        "wide_open_tcp" | "wide_open_udp" => of(4, size_of::<WideBucket>(), HALF_OPEN_BUCKETS),
        "spill" => of(8, 8, SPILL_FLOWS),
        "wide_spill" => of(size_of::<WideKey>(), 8, SPILL_FLOWS),
        "fragments" => of(size_of::<FragmentKey>(), 8, MAX_FRAGMENTED),
        "sticky" => of(size_of::<StickyKey>(), 8, MAX_STICKY),
        "sticky_new" => of(size_of::<StickyKey>(), 8, MAX_STICKY_NEW),
        "source_rates" => of(size_of::<Address>(), 8, MAX_SOURCES),
        "sources4" => of(8, 4, MAX_PREFIXES),
        "sources6" => of(20, 4, MAX_PREFIXES),
        "vlan_sets" => of(4, size_of::<VlanSet>(), VLAN_SETS),
        "own_vlans" => of(8, 4, MAX_OWN_VLANS),
        "devices" => of(4, 8, MAX_INTERFACES),
        "backend_stats" => of(4, size_of::<BackendCounters>(), MAX_BACKENDS),
        "reasons" => of(4, 8, MAX_SERVICES * REASON_SLOTS),
        "probe_targets" => of(4, size_of::<ProbeTarget>(), MAX_PROBES),
        "probe_flows" => of(
            size_of::<ProbeFlow>(),
            size_of::<Waiting>(),
            MAX_PROBE_FLOWS,
        ),
        "slow_ways" => of(4, size_of::<SlowWay>(), MAX_BACKENDS),
        _ => None,
    }
}

pub fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ArrayOfMaps(data)
        | Map::LpmTrie(data)
        | Map::PerfEventArray(data)
        | Map::DevMapHash(data) => Some(data),
        _ => None,
    }
}

/// Maps an array.
pub fn mapped<T: Copy>(map: &Map, length: u32) -> Result<MappedArray<T>, DataPlaneError> {
    let data = map_data(map)
        .ok_or_else(|| map_error("map an array", &std::io::Error::other("not an array")))?;
    MappedArray::new(data.fd(), length).map_err(|e| map_error("map an array", &e))
}

/// Whose ids are whose, as the maps remember it: backends first, then services.
pub struct Identities(pub MappedArray<Identity>);

impl Identities {
    fn service_place(id: u16) -> usize {
        MAX_BACKENDS as usize + usize::from(id)
    }

    /// Writes down whose a service id is.
    pub fn set_service(&self, id: u16, service: ServiceId) {
        let identity = Identity {
            address: wire(service.address),
            service: 1,
            first_port: service.ports.first,
            last_port: service.ports.last,
            protocol: service.protocol.number(),
            kind: 0,
        };
        self.0.store(Self::service_place(id), &identity);
    }

    /// Whose service id this is, or was.
    pub fn service(&self, id: u16) -> Option<ServiceId> {
        let identity = self.0.load(Self::service_place(id % MAX_SERVICES as u16));
        if identity.service == 0 {
            return None;
        }
        Some(ServiceId {
            protocol: Protocol::from_number(identity.protocol)?,
            address: from_wire(identity.address),
            ports: Ports {
                first: identity.first_port,
                last: identity.last_port,
            },
        })
    }

    /// Writes down whose a backend id is.
    pub fn set_backend(&self, id: u16, service: u16, target: Target, sorry: bool) {
        let (address, local) = match target {
            Target::Local => (Address::default(), Identity::LOCAL),
            Target::Host(address) => (wire(address), 0),
        };
        let identity = Identity {
            address,
            service,
            kind: local | if sorry { Identity::SORRY } else { 0 },
            ..Identity::default()
        };
        self.0.store(usize::from(id), &identity);
    }

    /// Service id, target and whether it is the sorry server, of an id that was ever given.
    pub fn backend(&self, id: u16) -> Option<(u16, Target, bool)> {
        let identity = self.0.load(usize::from(id) % MAX_BACKENDS as usize);
        if identity.service == 0 {
            return None;
        }
        let target = if identity.kind & Identity::LOCAL != 0 {
            Target::Local
        } else {
            Target::Host(from_wire(identity.address))
        };
        Some((
            identity.service,
            target,
            identity.kind & Identity::SORRY != 0,
        ))
    }

    /// Learns from pinned maps which ids flows may hold.
    pub fn adopt(&self, service_ids: &mut Ids<ServiceId>, backend_ids: &mut Ids<BackendKey>) {
        for id in 1..MAX_SERVICES as u16 {
            if let Some(service) = self.service(id) {
                service_ids.restore(service, id);
            }
        }
        for id in 1..MAX_BACKENDS as u16 {
            if let Some((service, target, sorry)) = self.backend(id)
                && let Some(service) = self.service(service)
            {
                backend_ids.restore((service, target, sorry), id);
            }
        }
    }
}
