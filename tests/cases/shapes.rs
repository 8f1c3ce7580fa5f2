//! Every kind of packet in every kind of frame: IPv4 and IPv6 with what may precede the transport
//! header, untagged, with a priority, in a VLAN, and with two tags.

pub mod rows;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_user::{
    dataplane::{
        DataPlane,
        plan::{BackendState::Up, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{Hop, Neighbour, Ports, Protocol, Scheduler, ServiceId, Target},
};

use crate::program::{
    CLIENT_MAC, DIRECTOR_MAC, INGRESS, PASS, SMALL, TX, apply, in_namespace, load, server_mac,
};

use self::rows::{
    CLIENT4, CLIENT6,
    Fate::{Pass, To},
    VIP4, VIP6, packets_v4, packets_v6, sctp, sealed, tcp, udp, v4, v6,
};

/// Tags of a frame, by name.
const LINKS: [(&str, &[[u8; 4]]); 5] = [
    ("untagged", &[]),
    ("with a priority", &[[0x81, 0, 0xe0, 0]]),
    ("in a VLAN", &[[0x81, 0, 0, 100]]),
    ("in a provider's VLAN", &[[0x88, 0xa8, 0x20, 100]]),
    ("with two tags", &[[0x88, 0xa8, 0, 100], [0x81, 0, 0, 7]]),
];

fn framed(tags: &[[u8; 4]], packet: &[u8]) -> Vec<u8> {
    let mut frame = [DIRECTOR_MAC, CLIENT_MAC].concat();
    frame.extend(tags.iter().flatten());
    frame.extend(if packet[0] >> 4 == 4 || packet[0] == 0x45 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    });
    frame.extend(packet);
    frame
}

/// What direct return makes of a frame whose backend is in the same VLAN.
fn returned(frame: &[u8], network: usize, last: u8) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&server_mac(last));
    out[6..12].copy_from_slice(&DIRECTOR_MAC);
    if out[network] >> 4 == 4 {
        out[network + 8] -= 1;
        let packet = sealed(out[network..].to_vec());
        out[network..].copy_from_slice(&packet);
    } else {
        out[network + 7] -= 1;
    }
    out
}

fn service_of(address: IpAddr, protocol: Protocol, ports: Ports, last: u8) -> PlannedService {
    let id = ServiceId {
        protocol,
        address,
        ports,
    };
    let backend = PlannedBackend::new(Target::Host(server(address, last)), 1, Up);
    PlannedService::new(id, 1, Scheduler::Wrr, vec![backend])
}

fn server(vip: IpAddr, last: u8) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::new(10, 0, 0, last).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

/// All services, their real servers in the VLANs `vlans`.
fn prepared(vlans: [u16; 2]) -> Xdp {
    let range = Ports {
        first: 1000,
        last: 1999,
    };
    let mut services = vec![service_of(
        Ipv4Addr::new(10, 0, 0, 101).into(),
        Protocol::Tcp,
        Ports::one(80),
        1,
    )];
    for vip in [IpAddr::from(VIP4), IpAddr::from(VIP6)] {
        services.extend([
            service_of(vip, Protocol::Tcp, Ports::one(80), 1),
            service_of(vip, Protocol::Udp, Ports::one(53), 2),
            service_of(vip, Protocol::Sctp, Ports::one(2905), 3),
            service_of(vip, Protocol::Tcp, range, 4),
            service_of(vip, Protocol::Udp, Ports::ALL, 5),
        ]);
    }
    let mut xdp = load(SMALL);
    apply(&mut xdp, services);
    for last in 1..=5 {
        for vip in [IpAddr::from(VIP4), IpAddr::from(VIP6)] {
            let mut hop = Hop::on_link(server_mac(last), INGRESS, DIRECTOR_MAC);
            hop.vlans = vlans;
            xdp.set_neighbour(server(vip, last), Some(Neighbour::Host(hop)));
        }
    }
    // The flows that ICMP errors are about.
    let payloads = [
        (6, tcp(1000, 80, 2)),
        (17, udp(1000, 53)),
        (132, sctp(1000, 2905, 1)),
        (6, tcp(1000, 1500, 2)),
    ];
    for (protocol, payload) in payloads {
        for packet in [
            v4(CLIENT4, VIP4, protocol, &payload),
            v6(CLIENT6, VIP6, protocol, &payload),
        ] {
            assert_eq!(xdp.run(&framed(&[], &packet), 0).unwrap().0, TX);
        }
    }
    xdp
}

fn vlans_of(tags: &[[u8; 4]]) -> [u16; 2] {
    let id = |tag: Option<&[u8; 4]>| tag.map_or(0, |t| u16::from_be_bytes([t[2], t[3]]) & 0xfff);
    [id(tags.first()), id(tags.get(1))]
}

#[test]
fn every_packet_in_every_frame() {
    in_namespace(|_| {
        let mut rows = 0;
        for (link, tags) in LINKS {
            let mut xdp = prepared(vlans_of(tags));
            let network = 14 + 4 * tags.len();
            for (what, packet, fate) in packets_v4().into_iter().chain(packets_v6()) {
                let version = packet[0] >> 4;
                let what = format!("IPv{version}, {link}: {what}");
                let frame = framed(tags, &packet);
                let before = xdp.snapshot().passed;
                let (verdict, out) = xdp.run(&frame, 0).unwrap();
                let after = xdp.snapshot().passed;
                let moved: Vec<&str> = before
                    .iter()
                    .zip(&after)
                    .filter(|(old, new)| old.1 != new.1)
                    .map(|(old, _)| old.0.as_str())
                    .collect();
                match fate {
                    To(last) => {
                        assert_eq!((verdict, moved), (TX, vec![]), "{what}");
                        assert_eq!(out, returned(&frame, network, last), "{what}");
                    }
                    Pass(reason) => {
                        assert_eq!((verdict, moved), (PASS, vec![reason]), "{what}");
                        assert_eq!(out, frame, "{what}: changed although it passes");
                    }
                }
                rows += 1;
            }
        }
        assert!(rows >= 150, "{rows} rows");
    });
}

/// From whatever tags a frame has to those of its real server's VLAN; the priority stays.
#[test]
fn frames_change_their_vlan() {
    in_namespace(|_| {
        let priority = |tags: &[[u8; 4]]| tags.first().map_or(0, |tag| tag[2] & 0xf0);
        for (link, tags) in LINKS {
            for wanted in [[0, 0], [100, 0], [200, 0], [100, 7], [200, 8]] {
                let same = vlans_of(tags) == wanted;
                for packet in [
                    v4(CLIENT4, VIP4, 6, &tcp(5, 80, 2)),
                    v6(CLIENT6, VIP6, 6, &tcp(5, 80, 2)),
                ] {
                    let mut xdp = prepared(wanted);
                    let frame = framed(tags, &packet);
                    let (verdict, out) = xdp.run(&frame, 0).unwrap();
                    assert_eq!(verdict, TX, "{link} to {wanted:?}");
                    let new: Vec<[u8; 4]> = match wanted {
                        _ if same => tags.to_vec(),
                        [0, _] => vec![],
                        [vlan, 0] => vec![[0x81, 0, priority(tags), vlan as u8]],
                        [outer, inner] => vec![
                            [0x88, 0xa8, priority(tags), outer as u8],
                            [0x81, 0, priority(tags), inner as u8],
                        ],
                    };
                    let expected = returned(&framed(&new, &packet), 14 + 4 * new.len(), 1);
                    assert_eq!(out, expected, "{link} to {wanted:?}");
                }
            }
        }
    });
}

/// A frame for another host, for a group, or with the right address on another interface.
#[test]
fn frames_that_are_not_for_this_host_pass() {
    in_namespace(|_| {
        let mut xdp = prepared([0, 0]);
        let packet = v6(CLIENT6, VIP6, 6, &tcp(5, 80, 2));
        for (mac, reason) in [
            ([2, 0, 0, 0, 0, 0x44], "foreign_mac"),
            ([0xff; 6], "not_unicast"),
            ([0x33, 0x33, 0, 0, 0, 1], "not_unicast"),
        ] {
            let mut frame = framed(&[], &packet);
            frame[..6].copy_from_slice(&mac);
            assert_eq!(xdp.run(&frame, 0).unwrap(), (PASS, frame));
            assert_eq!(
                crate::program::passed(&mut xdp, reason),
                1 + u64::from(mac[0] == 0x33)
            );
        }
        xdp.set_own_addresses(&[(INGRESS + 1, DIRECTOR_MAC)], &[]);
        let frame = framed(&[], &packet);
        assert_eq!(xdp.run(&frame, 0).unwrap().0, PASS);
        let address = SocketAddr::new(IpAddr::from(VIP6), 80);
        let service = xdp
            .snapshot()
            .services
            .into_iter()
            .find(|s| s.address == address.to_string());
        let reasons = service.unwrap().reasons;
        assert_eq!(
            reasons,
            [("not_unicast".to_owned(), 2), ("foreign_mac".to_owned(), 2)],
            "counted with the service"
        );
    });
}

/// A trunk carries frames of VLANs that this host is not in, to its own MAC address too; the kernel ignores
/// them. A tag of VLAN 0 is none.
#[test]
fn frames_of_other_vlans_pass() {
    in_namespace(|_| {
        let mut xdp = prepared([0, 0]);
        let packet = v4(CLIENT4, VIP4, 6, &tcp(5, 80, 2));
        let tag = |kind: u8, id: u8| match kind {
            0 => [0x81, 0, 0, id],
            _ => [0x88, 0xa8, 0x60, id],
        };
        for kind in [0, 1] {
            for (ids, expected) in [
                (&[100][..], TX),
                (&[101], PASS),
                (&[7], PASS),
                (&[0], TX),
                (&[100, 7], TX),
                (&[100, 8], PASS),
                (&[101, 7], PASS),
                (&[7, 100], PASS),
                (&[100, 0], TX),
                (&[0, 100], TX),
                (&[0, 101], PASS),
                (&[0, 0], TX),
            ] {
                let tags: Vec<[u8; 4]> = ids.iter().map(|id| tag(kind, *id)).collect();
                let frame = framed(&tags, &packet);
                let before = crate::program::passed(&mut xdp, "foreign_vlan");
                let (verdict, out) = xdp.run(&frame, 0).unwrap();
                assert_eq!(verdict, expected, "{ids:?}");
                let after = crate::program::passed(&mut xdp, "foreign_vlan");
                assert_eq!(after - before, u64::from(expected == PASS), "{ids:?}");
                assert!(expected == TX || out == frame, "{ids:?}: changed");
            }
        }
        // More than there is room for: all are taken for own. Then as many as fit, none of those before.
        let many = |first: u32, count: u32| -> Vec<(u32, [u16; 2])> {
            let place = |n| (first + n / 4_000, [(n % 4_000) as u16 + 1, 9]);
            (0..count).map(place).collect()
        };
        let most = lb_common::limits::MAX_OWN_VLANS;
        for (vlans, expected) in [
            (many(1_000, most + 1), TX),
            (many(2_000, most), PASS),
            (many(3_000, most), PASS),
        ] {
            xdp.set_own_addresses(&[(INGRESS, DIRECTOR_MAC)], &vlans);
            let frame = framed(&[tag(0, 101)], &packet);
            assert_eq!(xdp.run(&frame, 0).unwrap().0, expected);
        }
        // On another interface, none of them; above a bridge, all.
        let us = [(INGRESS, DIRECTOR_MAC)];
        for (vlans, expected) in [
            ([(INGRESS + 1, [100, 0])], PASS),
            ([(INGRESS, [lb_common::control::EVERY_VLAN, 0])], TX),
        ] {
            xdp.set_own_addresses(&us, &vlans);
            for ids in [&[100][..], &[101], &[101, 8]] {
                let tags: Vec<[u8; 4]> = ids.iter().map(|id| tag(0, *id)).collect();
                assert_eq!(xdp.run(&framed(&tags, &packet), 0).unwrap().0, expected);
            }
        }
    });
}
