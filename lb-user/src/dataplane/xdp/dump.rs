//! Every BPF map decoded for people: what `lbctl map dump` shows.

use std::net::SocketAddr;

use aya::maps::MapInfo;
use lb_common::{
    Address, Backend, BackendFlags, Control, Reason,
    control::{EVERY_VLAN, Features},
    flow::{FlowKey, FlowTable, FlowValue},
    limits::{GENERATIONS, MAX_ROLES, MAX_SERVICES, RING_CHUNK_SLOTS},
    memory,
    service::ServiceDetail,
};
use serde_json::{Value, json};

use super::{Xdp, flows::Flow};
use crate::{
    dataplane::TableInfo,
    model::{ProbePath, Target, address::from_wire},
};

/// Flows that one dump lists; the rest is counted in a last entry.
const MAX_FLOWS: usize = 65_536;

/// Name, type and sizes of a map.
pub fn describe(name: &str, info: &MapInfo) -> TableInfo {
    let kind = match name {
        "control" | "services" | "vips" | "port_ranges" | "details" | "backends" | "tunnels"
        | "loads" | "identities" | "rings" | "cursors" | "half_open_tcp" | "half_open_udp"
        | "wide_open_tcp" | "wide_open_udp" | "probe_targets" | "slow_ways" | "vlan_sets" => {
            "array (memory-mapped)"
        }
        "spill" | "wide_spill" | "fragments" | "sticky" | "sticky_new" | "source_rates"
        | "probe_flows" => "LRU hash",
        "flows" | "wide_flows" => "array of arrays",
        "sources4" | "sources6" => "prefix trie",
        "own_vlans" => "hash",
        "devices" => "devmap hash",
        "events" => "perf events",
        _ => "per-CPU array",
    };
    // To the kernel one large element.
    let memory = memory::ALL.into_iter().find(|memory| memory.name == name);
    let (value_size, max_entries) = match memory {
        Some(memory) => (memory.element, memory.bytes / memory.element),
        None => (info.value_size(), info.max_entries()),
    };
    TableInfo {
        name: name.to_owned(),
        kind: kind.to_owned(),
        key_size: info.key_size(),
        value_size,
        max_entries,
        id: info.id(),
    }
}

/// The decoded entries of a map, without those never used.
pub fn entries(xdp: &Xdp, table: &str) -> Option<Vec<Value>> {
    match table {
        "control" => Some(vec![control(xdp)]),
        "services" => Some(services(xdp, service_entry)),
        "details" => Some(services(xdp, detail_entry)),
        "rings" => Some(services(xdp, ring_entry)),
        "port_ranges" => Some(port_ranges(xdp)),
        "vips" => Some(vips(xdp)),
        "backends" => Some(
            used_backends(xdp)
                .map(|id| backend_entry(xdp, id))
                .collect(),
        ),
        "tunnels" => Some(tunnels(xdp)),
        "loads" => Some(loads(xdp)),
        "identities" => Some(identities(xdp)),
        "cursors" => Some(cursors(xdp)),
        "flows" => Some(flow_entries(xdp, &[FlowTable::Tcp, FlowTable::Udp])),
        "wide_flows" => Some(flow_entries(xdp, &[FlowTable::WideTcp, FlowTable::WideUdp])),
        "half_open_tcp" => Some(flow_entries(xdp, &[FlowTable::TcpHalfOpen])),
        "half_open_udp" => Some(flow_entries(xdp, &[FlowTable::UdpHalfOpen])),
        "wide_open_tcp" => Some(flow_entries(xdp, &[FlowTable::WideTcpHalfOpen])),
        "wide_open_udp" => Some(flow_entries(xdp, &[FlowTable::WideUdpHalfOpen])),
        "spill" => Some(spilled_entries(xdp)),
        "wide_spill" => Some(wide_spilled_entries(xdp)),
        "sources4" | "sources6" => Some(xdp.sources.entries(table == "sources4")),
        // What only the program writes, and the kernel orders as it likes: their size is told.
        "fragments" | "sticky" | "sticky_new" | "source_rates" | "events" | "probe_flows" => {
            Some(Vec::new())
        }
        "probe_targets" => Some(probe_targets(xdp)),
        "slow_ways" => Some(slow_ways(xdp)),
        // The same twice for the program: once as a hash, and by interface where that is enough.
        "own_vlans" | "vlan_sets" => Some(own_vlans(xdp)),
        "devices" => Some(devices(xdp)),
        "backend_stats" => Some(backend_stats(xdp)),
        "reasons" => Some(reasons(xdp)),
        _ => None,
    }
}

fn probe_targets(xdp: &Xdp) -> Vec<Value> {
    let mut paths: Vec<_> = xdp.probes.paths().collect();
    paths.sort_by_key(|path| path.index);
    let entry = |path: &&ProbePath| {
        json!({
            "mark": format!("{:#x}", path.mark()),
            "vip": path.vip.to_string(),
            "real_server": path.host.to_string(),
            "tunnel": path.tunnel.is_some(),
        })
    };
    paths.iter().map(entry).collect()
}

fn slow_ways(xdp: &Xdp) -> Vec<Value> {
    let way = |id: u16| {
        let way = xdp.slow_ways.of(id);
        let used = way.mark != 0 || way.packets != 0;
        used.then(
            || json!({ "backend": id, "mark": format!("{:#x}", way.mark), "packets": way.packets }),
        )
    };
    used_backends(xdp).filter_map(way).collect()
}

/// A MAC address in the usual notation.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn control(xdp: &Xdp) -> Value {
    let control: Control = xdp.control.load();
    let serving: Vec<usize> = (0..MAX_ROLES)
        .filter(|role| control.roles[*role] != 0)
        .collect();
    let seconds = |ticks: u32| xdp.clock.seconds(ticks);
    let slots: serde_json::Map<String, Value> = FlowTable::ALL
        .into_iter()
        .zip(xdp.flows.slots())
        .map(|(table, slots)| (table.label().to_owned(), json!(slots)))
        .collect();
    let on = |feature| control.features & feature != 0;
    let macs: Vec<Value> = control
        .macs
        .iter()
        .filter(|word| **word != 0)
        .map(|word| {
            let b = word.to_le_bytes();
            json!({ "mac": mac([b[0], b[1], b[2], b[3], b[4], b[5]]), "ifindex": word >> 48 })
        })
        .collect();
    json!({
        "ready": on(Features::READY),
        "live_generation": control.live,
        "roles_serving": serving,
        "flow_slots": slots,
        "timeouts_s": {
            "tcp": seconds(control.timeouts.tcp),
            "tcp_closing": seconds(control.timeouts.tcp_closing),
            "tcp_half_open": seconds(control.timeouts.tcp_half_open),
            "udp": seconds(control.timeouts.udp),
        },
        "listed_sources": on(Features::SOURCES),
        "source_rate": on(Features::SOURCE_RATE),
        "capture": on(Features::CAPTURE),
        "handover": on(Features::HANDOVER),
        "own_macs": macs,
    })
}

/// Something about every service of the live generation.
fn services(xdp: &Xdp, entry: fn(&Xdp, u16, &ServiceDetail, bool) -> Value) -> Vec<Value> {
    let mut all = Vec::new();
    for generation in 0..GENERATIONS {
        let live = xdp.control.live() == generation;
        for id in 1..MAX_SERVICES {
            let detail = xdp.details.load((generation * MAX_SERVICES + id) as usize);
            if detail.ring_first != 0 || detail.ring_len != 0 {
                all.push(entry(xdp, id as u16, &detail, live));
            }
        }
    }
    all
}

fn service_entry(xdp: &Xdp, id: u16, detail: &ServiceDetail, live: bool) -> Value {
    json!({
        "service": service_name(xdp, id),
        "live": live,
        "id": id,
        "role": detail.role,
        "ring_first": detail.ring_first,
        "ring_len": detail.ring_len,
    })
}

fn detail_entry(xdp: &Xdp, id: u16, detail: &ServiceDetail, live: bool) -> Value {
    json!({
        "service": service_name(xdp, id),
        "live": live,
        "method": detail.method,
        "persistence_s": xdp.clock.seconds(detail.sticky_ticks),
        "persistence_bits": detail.sticky_bits,
        "ns_per_connection": detail.rate.interval_ns,
    })
}

fn ring_entry(xdp: &Xdp, id: u16, detail: &ServiceDetail, live: bool) -> Value {
    let slots: Vec<u16> = (detail.ring_first..detail.ring_first + detail.ring_len)
        .map(|slot| {
            let chunk = xdp.rings.load((slot / RING_CHUNK_SLOTS) as usize);
            chunk.slots[(slot % RING_CHUNK_SLOTS) as usize]
        })
        .collect();
    json!({ "service": service_name(xdp, id), "live": live, "backends": slots })
}

fn port_ranges(xdp: &Xdp) -> Vec<Value> {
    let used = (0..xdp.ranges.len()).map(|index| xdp.ranges.load(index));
    used.filter(|range| range.info != 0)
        .map(|range| {
            let id = range.info as u16;
            json!({ "service": service_name(xdp, id), "first": range.first, "last": range.last })
        })
        .collect()
}

fn vips(xdp: &Xdp) -> Vec<Value> {
    let mut all = Vec::new();
    for bucket in (0..xdp.vips.len()).map(|index| xdp.vips.load(index)) {
        for way in (0..2).filter(|way| bucket.handles[*way] != 0) {
            let address = from_wire(Address(bucket.addresses[way])).to_string();
            all.push(json!({ "address": address, "handle": bucket.handles[way] }));
        }
    }
    all
}

/// The name of a service that has this id, or had it.
pub fn service_name(xdp: &Xdp, id: u16) -> Option<String> {
    xdp.identities
        .service(id)
        .map(|service| service.to_string())
}

/// The host behind a backend id.
pub fn host(xdp: &Xdp, id: u16) -> String {
    match xdp.identities.backend(id) {
        Some((_, Target::Host(address), _)) => address.to_string(),
        Some((_, Target::Local, _)) => "local".to_owned(),
        None => format!("backend {id}"),
    }
}

fn used_backends(xdp: &Xdp) -> impl Iterator<Item = u16> + '_ {
    (1..xdp.backends.len() as u16).filter(|id| xdp.identities.backend(*id).is_some())
}

fn backend_entry(xdp: &Xdp, id: u16) -> Value {
    let element: Backend = xdp.backends.load(usize::from(id));
    let (service, _, sorry) = xdp
        .identities
        .backend(id)
        .unwrap_or((0, Target::Local, false));
    let flags = element.flags();
    let resolved = flags & BackendFlags::RESOLVED != 0;
    let vlan = |word: u16| (word != 0).then_some(word & 0xfff);
    json!({
        "id": id,
        "service": service_name(xdp, service),
        "address": host(xdp, id),
        "sorry": sorry,
        "alive": flags & BackendFlags::ALIVE != 0,
        "draining": flags & BackendFlags::DRAINING != 0,
        "local": flags & BackendFlags::LOCAL != 0,
        "tunnel": flags & BackendFlags::TUNNEL != 0,
        "mac": resolved.then(|| mac(element.destination_mac())),
        "source_mac": resolved.then(|| mac(element.source_mac())),
        "vlan": vlan(element.vlan()),
        "inner_vlan": vlan(element.inner_vlan as u16),
        "ifindex": resolved.then_some(element.ifindex as u32),
    })
}

fn tunnels(xdp: &Xdp) -> Vec<Value> {
    let is_tunnel =
        |id: &u16| xdp.backends.load(usize::from(*id)).flags() & BackendFlags::TUNNEL != 0;
    used_backends(xdp)
        .filter(is_tunnel)
        .map(|id| {
            let tunnel = xdp.tunnels.load(usize::from(id));
            json!({
                "backend_id": id,
                "source": from_wire(tunnel.source).to_string(),
                "destination": from_wire(tunnel.destination).to_string(),
                "inner_mtu": tunnel.inner_mtu,
            })
        })
        .collect()
}

fn loads(xdp: &Xdp) -> Vec<Value> {
    used_backends(xdp)
        .map(|id| {
            let load = xdp.loads.load(usize::from(id));
            json!({
                "backend_id": id,
                "backend": host(xdp, id),
                "active": load.active,
                "inactive": load.inactive,
                "weight": load.weight,
                "upper_threshold": load.upper,
                "lower_threshold": load.lower,
                "overloaded": load.overloaded != 0,
            })
        })
        .collect()
}

fn identities(xdp: &Xdp) -> Vec<Value> {
    let services = (1..MAX_SERVICES as u16)
        .filter_map(|id| Some(json!({ "service_id": id, "service": service_name(xdp, id)? })));
    let backends =
        used_backends(xdp).map(|id| json!({ "backend_id": id, "backend": host(xdp, id) }));
    services.chain(backends).collect()
}

fn cursors(xdp: &Xdp) -> Vec<Value> {
    (0..xdp.cursors.len())
        .map(|id| (id as u16, xdp.cursors.load(id).next))
        .filter(|(_, next)| *next != 0)
        .map(|(id, next)| {
            json!({ "service_id": id, "service": service_name(xdp, id), "scheduled": next })
        })
        .collect()
}

fn flow_entries(xdp: &Xdp, tables: &[FlowTable]) -> Vec<Value> {
    let now = xdp.clock.now();
    let flows = xdp.flows.list(now, |flow| tables.contains(&flow.table));
    let total = flows.len();
    let mut list: Vec<Value> = flows
        .iter()
        .take(MAX_FLOWS)
        .map(|flow| flow_entry(xdp, flow, now))
        .collect();
    if total > MAX_FLOWS {
        list.push(json!({ "not_listed": total - MAX_FLOWS }));
    }
    list
}

fn flow_entry(xdp: &Xdp, flow: &Flow, now: u32) -> Value {
    let left = flow.value.expires().wrapping_sub(now);
    json!({
        "table": flow.table.label(),
        "client": SocketAddr::new(flow.client, flow.client_port).to_string(),
        "service": service_name(xdp, flow.service),
        "port": (flow.vip_port != 0).then_some(flow.vip_port),
        "backend": host(xdp, flow.value.backend()),
        "backend_id": flow.value.backend(),
        "closing": flow.value.is_closing(),
        "expires_in_s": xdp.clock.seconds(left),
    })
}

fn spilled_entries(xdp: &Xdp) -> Vec<Value> {
    let entry = |(key, value): (u64, u64)| {
        let (key, value) = (FlowKey(key), FlowValue(value));
        let client = from_wire(Address::v4(key.client_be()));
        json!({
            "client": SocketAddr::new(client, u16::from_be(key.port_be())).to_string(),
            "service": service_name(xdp, key.service()),
            "backend": host(xdp, value.backend()),
        })
    };
    xdp.spill.iter().flatten().map(entry).collect()
}

fn wide_spilled_entries(xdp: &Xdp) -> Vec<Value> {
    let entry = |(key, value): (super::PodWideKey, u64)| {
        let (key, value) = (key.0, FlowValue(value));
        let client = from_wire(key.client);
        json!({
            "client": SocketAddr::new(client, u16::from_be(key.port_be())).to_string(),
            "service": service_name(xdp, key.service()),
            "port": u16::from_be(key.vport_be()),
            "backend": host(xdp, value.backend()),
        })
    };
    xdp.wide_spill.iter().flatten().map(entry).collect()
}

fn own_vlans(xdp: &Xdp) -> Vec<Value> {
    let entry = |(ifindex, outer, inner)| match outer {
        EVERY_VLAN => json!({ "ifindex": ifindex, "vlan": "every" }),
        _ => json!({ "ifindex": ifindex, "vlan": outer, "inner_vlan": inner }),
    };
    xdp.vlans.entries().into_iter().map(entry).collect()
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
        .map(|id| {
            let counters = xdp.counters(id);
            json!({
                "backend_id": id,
                "backend": host(xdp, id),
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
