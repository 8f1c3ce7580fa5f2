//! Real servers beyond a router: IP in IP in all four combinations, and what does not fit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb_user::{
    dataplane::{
        DataPlane,
        plan::{BackendState::Up, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{Forwarding, Hop, Neighbour, Protocol, Scheduler, ServiceId, Target, Tunnel},
};

use crate::program::{
    CLIENT_MAC, DIRECTOR_MAC, INGRESS, SMALL, TX, apply, in_namespace, load, passed,
};

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

fn vip(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 0, 0, 100).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100).into()
    }
}

fn far(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(203, 0, 113, 5).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 5).into()
    }
}

fn own(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 0, 0, 43).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x43).into()
    }
}

/// A service with its one real server in a tunnel.
fn ready(inner_v4: bool, outer_v4: bool, vlan: u16) -> Xdp {
    let mut xdp = load(SMALL);
    let id = ServiceId::new(Protocol::Tcp, SocketAddr::new(vip(inner_v4), 80));
    let backend = PlannedBackend::new(Target::Host(far(outer_v4)), 1, Up);
    let mut service = PlannedService::new(id, 1, Scheduler::Rr, vec![backend]);
    service.forwarding = Forwarding::Tunnel(Tunnel::Ipip);
    apply(&mut xdp, vec![service]);
    let hop = Hop {
        on_link: false,
        source: Some(own(outer_v4)),
        vlans: [vlan, 0],
        ..Hop::on_link(ROUTER_MAC, INGRESS, DIRECTOR_MAC)
    };
    xdp.set_neighbour(far(outer_v4), Some(Neighbour::Host(hop)));
    xdp
}

fn frame(v4: bool, payload: usize) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC);
    let body = vec![7; payload];
    let mut bytes = Vec::new();
    if v4 {
        let builder = ethernet.ipv4([10, 0, 9, 9], [10, 0, 0, 100], 64);
        builder
            .tcp(4000, 80, 1, 1)
            .syn()
            .write(&mut bytes, &body)
            .unwrap();
        // A traffic class, which the outer packet must show too.
        bytes[15] = 0xb9;
        let header = etherparse::Ipv4Header::from_slice(&bytes[14..34])
            .unwrap()
            .0;
        bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    } else {
        let client = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).octets();
        let IpAddr::V6(to) = vip(false) else {
            unreachable!()
        };
        let builder = ethernet.ipv6(client, to.octets(), 64);
        builder
            .tcp(4000, 80, 1, 1)
            .syn()
            .write(&mut bytes, &body)
            .unwrap();
        bytes[14] = 0x6b;
        bytes[15] = 0x90;
    }
    bytes
}

/// What the real server must find inside: the packet, one hop older.
fn aged(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        let header = etherparse::Ipv4Header::from_slice(&packet[..20]).unwrap().0;
        packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    packet
}

#[test]
fn all_four_combinations() {
    in_namespace(|_| {
        for inner_v4 in [true, false] {
            for outer_v4 in [true, false] {
                for vlan in [0, 100] {
                    let what = format!("v4 {inner_v4} in v4 {outer_v4}, VLAN {vlan}");
                    let mut xdp = ready(inner_v4, outer_v4, vlan);
                    let frame = frame(inner_v4, 100);
                    let (verdict, out) = xdp.run(&frame, 0).unwrap();
                    assert_eq!(verdict, TX, "{what}");
                    assert_eq!(
                        (&out[..6], &out[6..12]),
                        (&ROUTER_MAC[..], &DIRECTOR_MAC[..])
                    );
                    let network = if vlan == 0 { 14 } else { 18 };
                    if vlan != 0 {
                        assert_eq!(out[12..16], [0x81, 0, 0, 100], "{what}");
                    }
                    let outer = &out[network..];
                    let inner = aged(&frame[14..]);
                    let protocol = if inner_v4 { 4 } else { 41 };
                    if outer_v4 {
                        assert_eq!(out[network - 2..network], [8, 0], "{what}");
                        let (header, rest) = etherparse::Ipv4Header::from_slice(outer).unwrap();
                        assert_eq!(
                            header.header_checksum,
                            header.calc_header_checksum(),
                            "{what}"
                        );
                        assert_eq!(IpAddr::from(header.source), own(true), "{what}");
                        assert_eq!(IpAddr::from(header.destination), far(true), "{what}");
                        assert_eq!((header.protocol.0, header.time_to_live), (protocol, 64));
                        assert_eq!(usize::from(header.total_len), outer.len(), "{what}");
                        assert!(header.dont_fragment);
                        assert_eq!(outer[1], 0xb9, "{what}: traffic class");
                        assert_eq!(rest, inner, "{what}");
                    } else {
                        assert_eq!(out[network - 2..network], [0x86, 0xdd], "{what}");
                        let (header, rest) = etherparse::Ipv6Header::from_slice(outer).unwrap();
                        assert_eq!(IpAddr::from(header.source), own(false), "{what}");
                        assert_eq!(IpAddr::from(header.destination), far(false), "{what}");
                        assert_eq!((header.next_header.0, header.hop_limit), (protocol, 64));
                        assert_eq!(usize::from(header.payload_length), rest.len(), "{what}");
                        assert_eq!(header.traffic_class, 0xb9, "{what}: traffic class");
                        assert_eq!(rest, inner, "{what}");
                    }
                }
            }
        }
    });
}

/// The way has 1,500 bytes, of which the outer header takes 20 or 40.
#[test]
fn what_does_not_fit_is_answered() {
    in_namespace(|_| {
        for (inner_v4, outer_v4, most) in [
            (true, true, 1480),
            (true, false, 1460),
            (false, true, 1480),
            (false, false, 1460),
        ] {
            let mut xdp = ready(inner_v4, outer_v4, 0);
            let headers = if inner_v4 { 40 } else { 60 };
            let fits = frame(inner_v4, most - headers);
            let (verdict, out) = xdp.run(&fits, 0).unwrap();
            assert_eq!((verdict, out.len()), (TX, 1514));
            let large = frame(inner_v4, most - headers + 1);
            let (verdict, out) = xdp.run(&large, 0).unwrap();
            assert_eq!((verdict, passed(&mut xdp, "too_big")), (TX, 1));
            assert_eq!(
                (&out[..6], &out[6..12]),
                (&CLIENT_MAC[..], &DIRECTOR_MAC[..])
            );
            let packet = SlicedPacket::from_ethernet(&out).unwrap();
            match (packet.net.unwrap(), packet.transport.unwrap()) {
                (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!(IpAddr::from(header.source), vip(true));
                    assert_eq!(
                        IpAddr::from(header.destination),
                        IpAddr::from([10, 0, 9, 9])
                    );
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 4));
                    assert_eq!(icmp.bytes5to8(), [0, 0, (most >> 8) as u8, most as u8]);
                    assert_eq!(lb_common::checksum::of(icmp.slice()), 0, "checksum");
                    assert_eq!(icmp.payload(), &large[14..14 + icmp.payload().len()]);
                    assert!(icmp.payload().len() >= 28);
                }
                (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                    let header = ip.header().to_header();
                    assert_eq!(IpAddr::from(header.source), vip(false));
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (2, 0));
                    assert_eq!(icmp.bytes5to8(), [0, 0, (most >> 8) as u8, most as u8]);
                    let valid = icmp.is_checksum_valid(header.source, header.destination);
                    assert!(valid, "checksum");
                    assert_eq!(icmp.payload(), &large[14..14 + icmp.payload().len()]);
                    assert!(icmp.payload().len() >= 48);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Nobody answers a later fragment.
#[test]
fn what_must_not_be_answered_is_dropped() {
    in_namespace(|_| {
        let mut xdp = ready(true, true, 0);
        let piece = |offset: [u8; 2]| {
            let mut frame = frame(true, 1441);
            frame[20..22].copy_from_slice(&offset);
            let header = etherparse::Ipv4Header::from_slice(&frame[14..34])
                .unwrap()
                .0;
            frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            frame
        };
        let mut first = piece([0x20, 0]);
        first.truncate(14 + 60);
        first[16..18].copy_from_slice(&60_u16.to_be_bytes());
        assert_eq!(xdp.run(&first, 0).unwrap().0, TX, "the first one fits");
        let (verdict, _) = xdp.run(&piece([0, 5]), 0).unwrap();
        assert_eq!((verdict, passed(&mut xdp, "too_big_unanswered")), (1, 1));
        assert_eq!(passed(&mut xdp, "too_big"), 0);
    });
}
