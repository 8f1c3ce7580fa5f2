//! What the program would find.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::service::{ServiceFlags, ServiceInfo, ServiceKey, vip_bucket};

use super::*;
use crate::{
    dataplane::plan::PlannedBackend,
    model::{Ports, Protocol, Target, address::wire},
};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn planned(id: ServiceId, weights: &[u32]) -> PlannedService {
    let backends = (1..)
        .zip(weights)
        .map(|(last, weight)| {
            let target = Target::Host(Ipv4Addr::new(10, 0, 0, last).into());
            PlannedBackend::new(target, *weight, BackendState::Up)
        })
        .collect();
    PlannedService::new(id, 3, Scheduler::Wrr, backends)
}

fn tcp(address: IpAddr, port: u16) -> ServiceId {
    ServiceId::new(Protocol::Tcp, SocketAddr::new(address, port))
}

fn build(services: Vec<PlannedService>) -> Image {
    Image::build(
        &Plan::of(services),
        |s| s as u16 + 1,
        |s, b| (s * 100 + b + 1) as u16,
        1 << 26,
    )
    .unwrap()
}

/// The program's search, step by step.
fn find(image: &Image, address: IpAddr, port: u16, protocol: u8) -> Option<ServiceInfo> {
    let generation = &image.generation;
    let key = match address {
        IpAddr::V4(v4) => ServiceKey::v4(u32::from_ne_bytes(v4.octets()), port.to_be(), protocol),
        IpAddr::V6(_) => {
            let words = wire(address).0;
            let first = vip_bucket(words, generation.service_seed, generation.vip_mask);
            let handle = (0..4).find_map(|probe| {
                let bucket = &image.vips[((first + probe) & generation.vip_mask) as usize];
                let way = bucket.addresses.iter().position(|a| *a == words)?;
                (bucket.handles[way] != 0).then_some(bucket.handles[way])
            })?;
            ServiceKey::v6(handle, port.to_be(), protocol)
        }
    };
    let first = key.bucket(generation.service_seed, generation.service_mask);
    for probe in 0..4 {
        let bucket = &image.services[((first + probe) & generation.service_mask) as usize];
        if let Some(entry) = bucket.entries.iter().find(|entry| entry.key == key.0) {
            return Some(ServiceInfo(entry.info));
        }
        if bucket.entries[3].key == 0 {
            return None;
        }
    }
    None
}

#[test]
fn rings_begin_at_chunks() {
    let image = build(vec![
        planned(tcp(VIP, 80), &[20, 13]),
        planned(tcp(VIP, 81), &[0]),
        planned(tcp(VIP, 82), &[1]),
    ]);
    let lengths: Vec<_> = image
        .details
        .iter()
        .map(|(_, d)| (d.ring_first, d.ring_len))
        .collect();
    assert_eq!(lengths, [(0, 33), (64, 0), (64, 1)]);
    assert_eq!(image.chunks[2].slots[0], 201);
}

#[test]
fn every_service_of_a_full_table_is_found() {
    let address = |s: u32| -> IpAddr {
        if s.is_multiple_of(3) {
            format!("2001:db8::{s:x}").parse().unwrap()
        } else {
            Ipv4Addr::from(0x0a00_0000 + s).into()
        }
    };
    let services: Vec<_> = (1..4096)
        .map(|s| planned(tcp(address(s), 80), &[1]))
        .collect();
    let image = build(services);
    for s in 1..4096u32 {
        let info = find(&image, address(s), 80, 6).unwrap();
        assert_eq!((info.id(), info.role()), (s as u16, 3));
        assert_eq!(
            find(&image, address(s), 0, 0).unwrap().flags(),
            ServiceFlags::VIP
        );
        assert_eq!(find(&image, address(s), 81, 6), None);
        assert_eq!(find(&image, address(s), 80, 17), None);
    }
    assert_eq!(find(&image, "2001:db9::1".parse().unwrap(), 80, 6), None);
}

#[test]
fn a_service_of_all_ports_takes_what_ranges_leave() {
    let id = |first, last| ServiceId {
        protocol: Protocol::Udp,
        address: VIP,
        ports: Ports { first, last },
    };
    let image = build(vec![
        planned(id(0, u16::MAX), &[1]),
        planned(id(5000, 5999), &[1]),
        planned(id(1000, 1999), &[1]),
        planned(id(53, 53), &[1]),
    ]);
    assert_eq!(image.generation.wildcards, 1);
    let ranges = find(&image, VIP, 0, 17).unwrap();
    assert_eq!((ranges.first_range(), ranges.range_count()), (0, 3));
    let order: Vec<_> = image
        .ranges
        .iter()
        .map(|r| (r.first, ServiceInfo(r.info).id()))
        .collect();
    assert_eq!(order, [(1000, 3), (5000, 2), (0, 1)]);
    assert!(
        image
            .ranges
            .iter()
            .all(|r| ServiceInfo(r.info).flags() == ServiceFlags::WIDE)
    );
    assert_eq!(find(&image, VIP, 53, 17).unwrap().flags(), 0);
    assert_eq!(find(&image, VIP, 1000, 17), None);
}
