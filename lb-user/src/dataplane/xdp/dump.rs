//! Every BPF map decoded for people: what `lbctl map dump` shows.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use aya::maps::MapInfo;
use lb_common::{
    Backend, BackendFlags, Control, Reason, Service, ServiceKey,
    flow::{FlowKey, FlowValue},
    limits::{MAX_ROLES, RING_CHUNK_SLOTS},
};
use serde_json::{Value, json};

use super::Xdp;
use crate::{
    dataplane::TableInfo,
    model::{Protocol, ServiceId},
};

/// Flows that one dump lists; the rest is counted in a last entry.
const MAX_FLOWS: usize = 65_536;

/// Name, type and sizes of a map.
pub fn describe(name: &str, info: &MapInfo) -> TableInfo {
    let kind = match name {
        "control" | "backends" | "rings" | "cursors" => "array (memory-mapped)",
        "services" => "hash",
        "spill" => "LRU hash",
        "flows" => "array of 4 arrays",
        "devices" => "devmap hash",
        _ => "per-CPU array",
    };
    TableInfo {
        name: name.to_owned(),
        kind: kind.to_owned(),
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        id: info.id(),
    }
}

/// The decoded entries of a map, without those never used.
pub fn entries(xdp: &Xdp, table: &str) -> Option<Vec<Value>> {
    match table {
        "control" => Some(vec![control(xdp)]),
        "services" => Some(
            services(xdp)
                .into_iter()
                .map(|(key, service)| service_entry(xdp, key, service))
                .collect(),
        ),
        "backends" => {
            let names = service_names(xdp);
            Some(
                used_backends(xdp)
                    .map(|(id, element)| backend_entry(id, &element, &names))
                    .collect(),
            )
        }
        "rings" => Some(
            services(xdp)
                .into_iter()
                .map(|(key, service)| ring_entry(xdp, key, service))
                .collect(),
        ),
        "cursors" => Some(cursors(xdp)),
        "flows" => Some(flow_entries(xdp)),
        "spill" => Some(spilled_entries(xdp)),
        "devices" => Some(devices(xdp)),
        "backend_stats" => Some(backend_stats(xdp)),
        "reasons" => Some(reasons(xdp)),
        _ => None,
    }
}

/// A MAC address in the usual notation.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

/// The service of a key; `None` for keys that this version does not write.
pub fn service_id(key: ServiceKey) -> Option<ServiceId> {
    let protocol = match key.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let address = Ipv4Addr::from(key.address_be.to_ne_bytes());
    Some(ServiceId {
        protocol,
        address: SocketAddrV4::new(address, u16::from_be(key.port_be)),
    })
}

fn control(xdp: &Xdp) -> Value {
    let control: Control = xdp.control.load();
    let serving: Vec<usize> = (0..MAX_ROLES)
        .filter(|role| control.roles[*role] != 0)
        .collect();
    let seconds = |ticks: u32| xdp.clock.seconds(ticks);
    json!({
        "ready": control.ready != 0,
        "live_generation": control.live,
        "roles_serving": serving,
        "buckets": control.bucket_mask.map(|mask| mask + 1),
        "timeouts_s": {
            "tcp": seconds(control.timeouts.tcp),
            "tcp_closing": seconds(control.timeouts.tcp_closing),
            "tcp_half_open": seconds(control.timeouts.tcp_half_open),
            "udp": seconds(control.timeouts.udp),
        },
    })
}

fn services(xdp: &Xdp) -> Vec<(ServiceKey, Service)> {
    let mut all: Vec<_> = xdp
        .services
        .iter()
        .flatten()
        .map(|(key, service)| (key.0, service.0))
        .collect();
    all.sort_by_key(|(key, service)| (key.generation, service.id));
    all
}

fn service_entry(xdp: &Xdp, key: ServiceKey, service: Service) -> Value {
    json!({
        "service": service_id(key).map(|id| id.to_string()),
        "generation": key.generation,
        "live": u32::from(key.generation) == xdp.control.live(),
        "id": service.id,
        "role": service.role,
        "ring_first": service.ring_first,
        "ring_len": service.ring_len,
    })
}

fn ring_entry(xdp: &Xdp, key: ServiceKey, service: Service) -> Value {
    let slots: Vec<u16> = (service.ring_first..service.ring_first + service.ring_len)
        .map(|slot| {
            let chunk = xdp.rings.load((slot / RING_CHUNK_SLOTS) as usize);
            chunk.slots[(slot % RING_CHUNK_SLOTS) as usize]
        })
        .collect();
    json!({
        "service": service_id(key).map(|id| id.to_string()),
        "generation": key.generation,
        "live": u32::from(key.generation) == xdp.control.live(),
        "backends": slots,
    })
}

/// Services by id, of either generation.
fn service_names(xdp: &Xdp) -> HashMap<u16, String> {
    let named =
        |(key, service): (ServiceKey, Service)| Some((service.id, service_id(key)?.to_string()));
    services(xdp).into_iter().filter_map(named).collect()
}

/// The host of an element.
fn host(element: &Backend) -> String {
    if element.identity & Backend::HOST == 0 {
        return "local".to_owned();
    }
    Ipv4Addr::from(element.identity as u32).to_string()
}

fn used_backends(xdp: &Xdp) -> impl Iterator<Item = (usize, Backend)> + '_ {
    (1..xdp.backends.len())
        .map(|id| (id, xdp.backends.load(id)))
        .filter(|(_, element)| element.identity != 0)
}

fn backend_entry(id: usize, element: &Backend, names: &HashMap<u16, String>) -> Value {
    let flags = element.flags();
    let local = flags & BackendFlags::LOCAL != 0;
    let resolved = flags & BackendFlags::RESOLVED != 0;
    json!({
        "id": id,
        "service": names.get(&((element.identity >> 32) as u16)),
        "address": host(element),
        "sorry": element.identity & Backend::SORRY != 0,
        "alive": flags & BackendFlags::ALIVE != 0,
        "local": local,
        "mac": resolved.then(|| mac(element.destination_mac())),
        "source_mac": resolved.then(|| mac(element.source_mac())),
        "ifindex": resolved.then_some(element.ifindex),
    })
}

fn cursors(xdp: &Xdp) -> Vec<Value> {
    let names = service_names(xdp);
    (0..xdp.cursors.len())
        .map(|id| (id, xdp.cursors.load(id).next))
        .filter(|(_, next)| *next != 0)
        .map(|(id, next)| json!({ "service_id": id, "service": names.get(&(id as u16)), "scheduled": next }))
        .collect()
}

fn flow_entries(xdp: &Xdp) -> Vec<Value> {
    let now = xdp.clock.now();
    let flows = xdp.flows.list(now);
    let names = service_names(xdp);
    let total = flows.len();
    let mut list: Vec<Value> = flows
        .into_iter()
        .take(MAX_FLOWS)
        .map(|flow| {
            let left = flow.value.expires().wrapping_sub(now);
            json!({
                "table": flow.table.label(),
                "client": client(flow.key),
                "service": names.get(&flow.key.service()),
                "backend": host(&xdp.backends.load(usize::from(flow.value.backend()))),
                "backend_id": flow.value.backend(),
                "closing": flow.value.is_closing(),
                "expires_in_s": xdp.clock.seconds(left),
            })
        })
        .collect();
    if total > MAX_FLOWS {
        list.push(json!({ "not_listed": total - MAX_FLOWS }));
    }
    list
}

fn spilled_entries(xdp: &Xdp) -> Vec<Value> {
    let names = service_names(xdp);
    let entry = |(key, value): (u64, u64)| {
        let (key, value) = (FlowKey(key), FlowValue(value));
        json!({
            "client": client(key),
            "service": names.get(&key.service()),
            "backend": host(&xdp.backends.load(usize::from(value.backend()))),
        })
    };
    xdp.spill.iter().flatten().map(entry).collect()
}

fn client(key: FlowKey) -> String {
    let address = Ipv4Addr::from(key.client_be().to_ne_bytes());
    SocketAddrV4::new(address, u16::from_be(key.port_be())).to_string()
}

fn devices(xdp: &Xdp) -> Vec<Value> {
    xdp.devices
        .iter()
        .flatten()
        .map(|(key, value)| json!({ "key": key, "ifindex": value.if_index }))
        .collect()
}

fn backend_stats(xdp: &Xdp) -> Vec<Value> {
    used_backends(xdp)
        .map(|(id, element)| {
            let counters = xdp.counters(id as u16);
            json!({
                "backend_id": id,
                "backend": host(&element),
                "connections": counters.connections,
                "packets": counters.packets,
                "bytes": counters.bytes,
            })
        })
        .collect()
}

fn reasons(xdp: &Xdp) -> Vec<Value> {
    Reason::ALL
        .iter()
        .zip(xdp.passed())
        .map(|(reason, (label, count))| json!({ "index": *reason as u32, "reason": label, "packets": count }))
        .collect()
}
