//! The maps' Rust faces: types that aya may copy, expected shapes, and what an earlier daemon left in
//! them.

use std::{collections::HashMap, net::Ipv4Addr};

use aya::{
    Pod,
    maps::{HashMap as BpfHash, Map, MapData},
};
use lb_common::{
    Backend, BackendCounters, Control, RingChunk, Service, ServiceKey,
    flow::FlowTable,
    limits::{
        GENERATIONS, MAX_BACKENDS, MAX_INTERFACES, MAX_SERVICES, RING_CHUNKS_PER_GENERATION,
        SPILL_FLOWS,
    },
    reason::REASON_COUNT,
    table::Cursor,
};

use super::{dump, ids::Ids, mapped::MappedArray, object::map_error};
use crate::{
    dataplane::{BackendKey, DataPlaneError},
    model::{ServiceId, Target},
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
    PodKey(ServiceKey);
    PodService(Service);
    PodCounters(BackendCounters);
}

/// Key size, value size and capacity that a map must have.
pub fn shape(name: &str) -> Option<(u32, u32, u32)> {
    let of = |key: usize, value: usize, entries: u32| Some((key as u32, value as u32, entries));
    match name {
        "control" => of(4, size_of::<Control>(), 1),
        "services" => of(
            size_of::<ServiceKey>(),
            size_of::<Service>(),
            MAX_SERVICES * GENERATIONS,
        ),
        "backends" => of(4, size_of::<Backend>(), MAX_BACKENDS),
        "rings" => of(
            4,
            size_of::<RingChunk>(),
            RING_CHUNKS_PER_GENERATION * GENERATIONS,
        ),
        "cursors" => of(4, size_of::<Cursor>(), MAX_SERVICES),
        "flows" => of(4, 4, FlowTable::ALL.len() as u32),
        "spill" => of(8, 8, SPILL_FLOWS),
        "devices" => of(4, 8, MAX_INTERFACES),
        "backend_stats" => of(4, size_of::<BackendCounters>(), MAX_BACKENDS),
        "reasons" => of(4, 8, REASON_COUNT),
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
        | Map::DevMapHash(data) => Some(data),
        _ => None,
    }
}

/// A key as bytes, for ordering.
pub fn key_bytes(key: ServiceKey) -> [u8; 8] {
    let address = key.address_be.to_ne_bytes();
    let port = key.port_be.to_ne_bytes();
    [
        address[0],
        address[1],
        address[2],
        address[3],
        port[0],
        port[1],
        key.protocol,
        key.generation,
    ]
}

/// Maps an array.
pub fn mapped<T: Copy>(map: &Map, length: u32) -> Result<MappedArray<T>, DataPlaneError> {
    let data = map_data(map).ok_or_else(|| map_error("map an array", &"not an array"))?;
    MappedArray::new(data.fd(), length).map_err(|e| map_error("map an array", &e))
}

/// Learns from pinned maps which ids flows may hold.
pub fn adopt(
    services: &BpfHash<MapData, PodKey, PodService>,
    backends: &MappedArray<Backend>,
    service_ids: &mut Ids<ServiceId>,
    backend_ids: &mut Ids<BackendKey>,
) {
    let mut by_id = HashMap::new();
    for (key, service) in services.iter().flatten() {
        if let Some(id) = dump::service_id(key.0) {
            service_ids.restore(id, service.0.id);
            by_id.insert(service.0.id, id);
        }
    }
    for index in 1..backends.len() {
        let element = backends.load(index);
        let Some(service) = by_id.get(&((element.identity >> 32) as u16)) else {
            continue;
        };
        let sorry = element.identity & Backend::SORRY != 0;
        let target = if element.identity & Backend::HOST == 0 {
            Target::Local
        } else {
            Target::Host(Ipv4Addr::from(element.identity as u32))
        };
        backend_ids.restore((*service, target, sorry), index as u16);
    }
}
