//! The service table of an image: entries in buckets that the program finds in one look.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use lb_common::{
    limits::{
        MAX_PORT_RANGES, RANGES_PER_VIP, SERVICE_BUCKETS, SERVICE_PROBES, SERVICE_WAYS, VIP_BUCKETS,
    },
    service::{
        PortRange, ServiceBucket, ServiceEntry, ServiceFlags, ServiceInfo, ServiceKey, VipBucket,
        vip_bucket,
    },
};

use super::{Full, Image};
use crate::{
    dataplane::plan::PlannedService,
    model::{Ports, Protocol, address::wire},
};

/// Seeds tried until every entry lies near its place. Tables are at most a quarter full on average,
/// so the first one nearly always does.
const SEEDS: u64 = 64;

/// Fills `services`, `vips`, `ranges` and `generation`.
pub fn lay_out(
    image: &mut Image,
    services: &[PlannedService],
    service_id: impl Fn(usize) -> u16,
) -> Result<(), Full> {
    let handles = handles(services);
    let mut entries: BTreeMap<u64, u64> = BTreeMap::new();
    let mut ranges: BTreeMap<u64, Vec<(Ports, u64)>> = BTreeMap::new();
    for (s, service) in services.iter().enumerate() {
        let key = |port: u16, protocol: u8| key(&handles, service.id.address, port, protocol).0;
        let protocol = service.id.protocol.number();
        let single = service.id.ports.single();
        let mut flags = 0;
        if single.is_none() {
            flags |= ServiceFlags::WIDE;
        }
        if service.is_counted() {
            flags |= ServiceFlags::COUNTED;
        }
        if service.id.protocol == Protocol::Sctp {
            flags |= ServiceFlags::SCTP;
        }
        let info = ServiceInfo::new(service_id(s), service.role, flags).0;
        entries.insert(key(0, 0), ServiceInfo::new(0, 0, ServiceFlags::VIP).0);
        match single {
            Some(port) => {
                entries.insert(key(port, protocol), info);
            }
            None => {
                let list = ranges.entry(key(0, protocol)).or_default();
                list.push((service.id.ports, info));
            }
        }
    }
    image.generation.wildcards = u32::from(!ranges.is_empty());
    for (key, mut list) in ranges {
        // A service of all ports takes what the others leave.
        list.sort_by_key(|(ports, _)| (*ports == Ports::ALL, *ports));
        if list.len() > RANGES_PER_VIP as usize {
            return Err(Full("range of ports of one address and protocol"));
        }
        let first = image.ranges.len() as u32;
        entries.insert(key, ServiceInfo::ranges(first, list.len() as u16).0);
        image
            .ranges
            .extend(list.into_iter().map(|(ports, info)| PortRange {
                info,
                first: ports.first,
                last: ports.last,
                reserved: 0,
            }));
    }
    if image.ranges.len() > MAX_PORT_RANGES as usize {
        return Err(Full("range of ports"));
    }
    let placed = (0..SEEDS).find_map(|turn| {
        let seed = turn.wrapping_mul(0xd134_2543_de82_ef95);
        Some((
            seed,
            place_services(&entries, seed)?,
            place_vips(&handles, seed)?,
        ))
    });
    let Some((seed, services, vips)) = placed else {
        return Err(Full("service"));
    };
    image.generation.service_seed = seed;
    image.generation.service_mask = services.len() as u32 - 1;
    image.generation.vip_mask = vips.len() as u32 - 1;
    image.services = services;
    image.vips = vips;
    Ok(())
}

/// A number for each IPv6 address, from 1 on.
fn handles(services: &[PlannedService]) -> BTreeMap<Ipv6Addr, u32> {
    let mut handles = BTreeMap::new();
    for service in services {
        if let IpAddr::V6(address) = service.id.address {
            let next = handles.len() as u32 + 1;
            handles.entry(address).or_insert(next);
        }
    }
    handles
}

fn key(handles: &BTreeMap<Ipv6Addr, u32>, address: IpAddr, port: u16, protocol: u8) -> ServiceKey {
    match address {
        IpAddr::V4(address) => {
            ServiceKey::v4(u32::from_ne_bytes(address.octets()), port.to_be(), protocol)
        }
        IpAddr::V6(address) => {
            let handle = handles.get(&address).copied().unwrap_or_default();
            ServiceKey::v6(handle, port.to_be(), protocol)
        }
    }
}

/// As many buckets as entries, so that a bucket of four has one on average.
fn buckets(entries: usize, most: u32) -> usize {
    entries.next_power_of_two().clamp(4, most as usize)
}

fn place_services(entries: &BTreeMap<u64, u64>, seed: u64) -> Option<Vec<ServiceBucket>> {
    let mut table = vec![ServiceBucket::default(); buckets(entries.len(), SERVICE_BUCKETS)];
    let mask = table.len() as u32 - 1;
    for (key, info) in entries {
        let first = ServiceKey(*key).bucket(seed, mask);
        let free = (0..SERVICE_PROBES).find_map(|probe| {
            let index = ((first + probe) & mask) as usize;
            let way = table[index]
                .entries
                .iter()
                .position(|entry| entry.key == 0)?;
            Some((index, way))
        });
        let (index, way) = free?;
        debug_assert!(way < SERVICE_WAYS);
        table[index].entries[way] = ServiceEntry {
            key: *key,
            info: *info,
        };
    }
    Some(table)
}

fn place_vips(handles: &BTreeMap<Ipv6Addr, u32>, seed: u64) -> Option<Vec<VipBucket>> {
    let mut table = vec![VipBucket::default(); buckets(handles.len(), VIP_BUCKETS)];
    let mask = table.len() as u32 - 1;
    for (address, handle) in handles {
        let words = wire(IpAddr::V6(*address)).0;
        let first = vip_bucket(words, seed, mask);
        let free = (0..SERVICE_PROBES).find_map(|probe| {
            let index = ((first + probe) & mask) as usize;
            let way = table[index]
                .handles
                .iter()
                .position(|handle| *handle == 0)?;
            Some((index, way))
        });
        let (index, way) = free?;
        table[index].addresses[way] = words;
        table[index].handles[way] = *handle;
    }
    Some(table)
}
