//! Many packets: shares, flows that stick, move, close and survive floods, and generations.

use std::{collections::BTreeMap, net::Ipv4Addr};

use lb_user::{
    dataplane::{
        DataPlane,
        plan::{
            BackendState::{self, Down, Draining, Up},
            PlannedBackend, PlannedService,
        },
        xdp::Xdp,
    },
    model::{
        Hop, Neighbour,
        Protocol::{Tcp, Udp},
        Target,
    },
};

use crate::program::{
    CLIENT, DIRECTOR_MAC, INGRESS, PASS, SMALL, TX, VIP, apply, direct, frame, in_namespace, load,
    load_growing, resolve, server, server_of, service, tcp, transport, udp,
};

/// Adds a local sorry server to a service.
pub fn with_sorry(mut service: PlannedService, state: BackendState) -> PlannedService {
    service.backends.push(PlannedBackend {
        sorry: true,
        ..PlannedBackend::new(Target::Local, 1, state)
    });
    service
}

fn shares(xdp: &mut Xdp, ports: std::ops::Range<u16>) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for port in ports {
        *shares
            .entry(server_of(xdp, &tcp(port, 80, "S")))
            .or_default() += 1;
    }
    shares
}

/// Connections scheduled over all real servers. A flow that is scheduled anew may get its old server
/// by chance, but not without being counted.
fn scheduled(xdp: &mut Xdp) -> u64 {
    xdp.snapshot().services[0]
        .backends
        .iter()
        .map(|b| b.connections)
        .sum()
}

fn ready(servers: &[(u8, u32, BackendState)]) -> Xdp {
    let mut xdp = load(SMALL);
    apply(&mut xdp, vec![service(Tcp, 80, 1, servers)]);
    for (last, _, _) in servers {
        resolve(&mut xdp, *last, INGRESS);
    }
    xdp
}

#[test]
fn shares_are_exact() {
    in_namespace(|_| {
        for (weights, count, expected) in [
            (&[1, 1][..], 40, &[20, 20][..]),
            (&[1, 3], 40, &[10, 30]),
            (&[2, 3, 5], 100, &[20, 30, 50]),
            (&[1, 1000], 1001, &[1, 1000]),
            (&[5, 0], 10, &[10]),
            (&[7], 5, &[5]),
        ] {
            let servers: Vec<_> = (1..)
                .zip(weights)
                .map(|(last, weight)| (last, *weight, Up))
                .collect();
            let mut xdp = ready(&servers);
            let seen: Vec<usize> = shares(&mut xdp, 1000..1000 + count).into_values().collect();
            assert_eq!(seen, expected, "{weights:?}");
        }
    });
}

#[test]
fn two_hundred_real_servers_get_one_connection_each() {
    in_namespace(|_| {
        let servers: Vec<_> = (1..=200).map(|last| (last, 1, Up)).collect();
        let mut xdp = ready(&servers);
        let seen = shares(&mut xdp, 1000..1200);
        assert_eq!(seen.len(), 200);
        assert!(seen.values().all(|count| *count == 1));
    });
}

#[test]
fn a_flow_sticks_over_weight_changes_and_retransmissions() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        let first = server_of(&mut xdp, &tcp(5000, 80, "S"));
        assert_eq!(
            server_of(&mut xdp, &tcp(5000, 80, "S")),
            first,
            "a repeated SYN"
        );
        for _ in 0..10 {
            assert_eq!(server_of(&mut xdp, &tcp(5000, 80, "A")), first);
        }
        apply(
            &mut xdp,
            vec![service(Tcp, 80, 1, &[(1, 1, Up), (2, 9, Up)])],
        );
        assert_eq!(server_of(&mut xdp, &tcp(5000, 80, "PA")), first);
        let connections: u64 = xdp.snapshot().services[0]
            .backends
            .iter()
            .map(|b| b.connections)
            .sum();
        assert_eq!(connections, 1);
    });
}

#[test]
fn draining_keeps_flows_and_down_moves_them() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        for port in 1..=20 {
            server_of(&mut xdp, &tcp(port, 80, "S"));
            server_of(&mut xdp, &tcp(port, 80, "A"));
        }
        let on_one: Vec<u16> = (1..=20)
            .filter(|port| server_of(&mut xdp, &tcp(*port, 80, "A")) == 1)
            .collect();
        assert_eq!(on_one.len(), 10);
        apply(
            &mut xdp,
            vec![service(Tcp, 80, 1, &[(1, 1, Draining), (2, 1, Up)])],
        );
        assert!(
            shares(&mut xdp, 100..120).keys().eq([2].iter()),
            "no new connection while draining"
        );
        for port in &on_one {
            assert_eq!(
                server_of(&mut xdp, &tcp(*port, 80, "A")),
                1,
                "draining keeps its flows"
            );
        }
        apply(
            &mut xdp,
            vec![service(Tcp, 80, 1, &[(1, 1, Down), (2, 1, Up)])],
        );
        for port in &on_one {
            assert_eq!(
                server_of(&mut xdp, &tcp(*port, 80, "A")),
                2,
                "down moves its flows"
            );
        }
        apply(
            &mut xdp,
            vec![service(Tcp, 80, 1, &[(1, 1, Up), (2, 1, Up)])],
        );
        for port in &on_one {
            assert_eq!(
                server_of(&mut xdp, &tcp(*port, 80, "A")),
                2,
                "and they stay where they went"
            );
        }
    });
}

/// UDP has nobody who would notice: its flows are elsewhere with the next packet, and stay there.
#[test]
fn udp_moves_at_once() {
    in_namespace(|_| {
        let with = |first| vec![service(Udp, 53, 1, &[(1, 1, first), (2, 1, Up)])];
        let mut xdp = load(SMALL);
        apply(&mut xdp, with(Up));
        resolve(&mut xdp, 1, INGRESS);
        resolve(&mut xdp, 2, INGRESS);
        let on_one: Vec<u16> = (1..=20)
            .filter(|port| server_of(&mut xdp, &udp(*port, 53)) == 1)
            .collect();
        assert_eq!(on_one.len(), 10);
        let all_on = |xdp: &mut Xdp, expected: u8, what: &str| {
            for port in &on_one {
                assert_eq!(server_of(xdp, &udp(*port, 53)), expected, "{port} {what}");
            }
        };
        apply(&mut xdp, with(Draining));
        all_on(&mut xdp, 1, "while draining");
        apply(&mut xdp, with(Down));
        all_on(&mut xdp, 2, "when it is down");
        apply(&mut xdp, with(Up));
        all_on(&mut xdp, 2, "when it is back");
    });
}

#[test]
fn a_removed_real_server_lets_go_of_its_flows() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        let moved: Vec<u16> = (1..=10)
            .filter(|port| server_of(&mut xdp, &tcp(*port, 80, "S")) == 1)
            .collect();
        apply(&mut xdp, vec![service(Tcp, 80, 1, &[(2, 1, Up)])]);
        for port in moved {
            assert_eq!(server_of(&mut xdp, &tcp(port, 80, "A")), 2);
        }
        apply(&mut xdp, Vec::new());
        let frame = tcp(1, 80, "A");
        assert_eq!(xdp.run(&frame, 0).unwrap(), (PASS, frame));
    });
}

#[test]
fn a_closed_connections_port_is_scheduled_anew() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        let first = server_of(&mut xdp, &tcp(5000, 80, "S"));
        server_of(&mut xdp, &tcp(5000, 80, "A"));
        assert_eq!(server_of(&mut xdp, &tcp(5000, 80, "FA")), first);
        assert_eq!(
            server_of(&mut xdp, &tcp(5000, 80, "A")),
            first,
            "the last ACK belongs to the old one"
        );
        xdp.sweep();
        let snapshot = xdp.snapshot();
        let counts: Vec<_> = snapshot.services[0]
            .backends
            .iter()
            .map(|b| (b.active, b.inactive))
            .collect();
        assert_eq!(
            counts.iter().map(|c| c.0).sum::<u64>(),
            0,
            "closing is not active: {counts:?}"
        );
        assert_ne!(
            server_of(&mut xdp, &tcp(5000, 80, "S")),
            first,
            "its turn goes to the next"
        );
    });
}

#[test]
fn an_unknown_connections_end_moves_no_cursor() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        for port in 1..=7 {
            server_of(&mut xdp, &tcp(port, 80, "R"));
        }
        assert_eq!(
            shares(&mut xdp, 100..140),
            BTreeMap::from([(1, 20), (2, 20)])
        );
        let connections: u64 = xdp.snapshot().services[0]
            .backends
            .iter()
            .map(|b| b.connections)
            .sum();
        assert_eq!(connections, 40);
    });
}

#[test]
fn a_changed_mac_address_counts_at_once() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up)]);
        server_of(&mut xdp, &tcp(1, 80, "S"));
        let mac = [6, 5, 4, 3, 2, 1];
        let place = Neighbour::Host(Hop::on_link(mac, INGRESS, DIRECTOR_MAC));
        xdp.set_neighbour(server(1), Some(place));
        let (verdict, out) = xdp.run(&tcp(1, 80, "A"), 0).unwrap();
        assert_eq!((verdict, &out[..6]), (TX, &mac[..]));
        xdp.set_neighbour(server(1), None);
        assert_eq!(xdp.run(&tcp(1, 80, "A"), 0).unwrap().0, PASS);
        xdp.set_neighbour(server(1), Some(Neighbour::ThisHost));
        assert_eq!(xdp.run(&tcp(1, 80, "A"), 0).unwrap().0, PASS);
    });
}

/// SYNs of 100,000 clients run through a half-open table of 16,384 slots: established connections
/// do not notice, and those being opened at the end of the flood still can be.
#[test]
fn a_syn_flood_evicts_no_established_flow() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up), (3, 1, Up)]);
        let ports: Vec<u16> = (1..=200).collect();
        let homes: Vec<u8> = ports
            .iter()
            .map(|port| {
                server_of(&mut xdp, &tcp(*port, 80, "S"));
                server_of(&mut xdp, &tcp(*port, 80, "A"))
            })
            .collect();
        for number in 0..100_000_u32 {
            let client =
                Ipv4Addr::from(0x1000_0000 + number.wrapping_mul(2_654_435_761) % 0x1000_0000);
            let syn = frame(client, VIP, 64, transport(number as u16, 80, "S"), b"");
            assert_eq!(xdp.run(&syn, 0).unwrap().0, TX);
        }
        let before = scheduled(&mut xdp);
        for (port, home) in ports.iter().zip(homes) {
            assert_eq!(server_of(&mut xdp, &tcp(*port, 80, "A")), home);
        }
        assert_eq!(scheduled(&mut xdp), before, "flows were scheduled anew");
    });
}

/// UDP of 50,000 clients with two packets each fills UDP's own table, which has 16,384 slots.
#[test]
fn a_udp_flood_evicts_no_tcp_flow() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        let both = || {
            vec![
                service(Tcp, 80, 1, &[(1, 1, Up), (2, 1, Up)]),
                service(Udp, 53, 1, &[(1, 1, Up)]),
            ]
        };
        apply(&mut xdp, both());
        resolve(&mut xdp, 1, INGRESS);
        resolve(&mut xdp, 2, INGRESS);
        let homes: Vec<u8> = (1..=200)
            .map(|port| {
                server_of(&mut xdp, &tcp(port, 80, "S"));
                server_of(&mut xdp, &tcp(port, 80, "A"))
            })
            .collect();
        for number in 0..50_000_u32 {
            let mut packet = udp(number as u16, 53);
            packet[26..30].copy_from_slice(&(0x0b00_0000 + number).to_be_bytes());
            xdp.run(&packet, 0).unwrap();
            xdp.run(&packet, 0).unwrap();
        }
        let before = scheduled(&mut xdp);
        for (port, home) in (1..=200).zip(homes) {
            assert_eq!(server_of(&mut xdp, &tcp(port, 80, "A")), home);
        }
        assert_eq!(scheduled(&mut xdp), before, "flows were scheduled anew");
    });
}

/// The flow number `number` of many clients.
fn flow(number: u32, flags: &str) -> Vec<u8> {
    let client = Ipv4Addr::from(0x0a90_0000 + number / 50_000);
    let port = 1024 + (number % 50_000) as u16;
    frame(client, VIP, 64, transport(port, 80, flags), b"")
}

/// A table of 65,536 slots that must not grow is offered 72,000 flows: those that find their bucket
/// full live on, through the half-open table and, when a flood of SYNs has run through that, through
/// the spill table.
#[test]
fn no_live_flow_is_lost_to_a_full_bucket() {
    const FLOWS: u32 = 72_000;
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up), (3, 1, Up)]);
        let homes: Vec<u8> = (0..FLOWS)
            .map(|number| {
                server_of(&mut xdp, &flow(number, "S"));
                server_of(&mut xdp, &flow(number, "A"))
            })
            .collect();
        let spilled = xdp.dump("spill").unwrap().len();
        assert!(spilled >= 6_464, "{spilled} spilled");
        for number in 0..100_000_u32 {
            let client =
                Ipv4Addr::from(0x1000_0000 + number.wrapping_mul(2_654_435_761) % 0x1000_0000);
            let syn = frame(client, VIP, 64, transport(number as u16, 80, "S"), b"");
            xdp.run(&syn, 0).unwrap();
        }
        let before = scheduled(&mut xdp);
        for (number, home) in (0..FLOWS).zip(homes) {
            assert_eq!(
                server_of(&mut xdp, &flow(number, "A")),
                home,
                "flow {number}"
            );
        }
        assert_eq!(scheduled(&mut xdp), before, "flows were scheduled anew");
    });
}

/// A million flows come while the table grows from 65,536 slots to 4,194,304, spills, and is swept.
/// Each keeps its real server, and none is scheduled a second time.
#[test]
fn a_million_flows_outlive_the_growth_of_the_table() {
    const FLOWS: u32 = 1_000_000;
    in_namespace(|_| {
        let mut xdp = load_growing(SMALL, 1 << 22);
        let servers = [(1, 1, Up), (2, 1, Up), (3, 1, Up)];
        apply(&mut xdp, vec![service(Tcp, 80, 1, &servers)]);
        for (last, _, _) in servers {
            resolve(&mut xdp, last, INGRESS);
        }
        let mut homes = Vec::new();
        for number in 0..FLOWS {
            xdp.run(&flow(number, "S"), 0).unwrap();
            homes.push(xdp.run(&flow(number, "A"), 0).unwrap().1[5]);
            if number.is_multiple_of(8_192) {
                xdp.sweep();
            }
            // One of those before, wherever it is by now.
            let other = number.wrapping_mul(2_654_435_761) % (number + 1);
            let seen = xdp.run(&flow(other, "A"), 0).unwrap().1[5];
            assert_eq!(seen, homes[other as usize], "flow {other} of {number}");
        }
        let grown = xdp.snapshot().flow_slots;
        assert!(grown >= 1 << 20, "{grown} slots");
        for number in 0..FLOWS {
            let seen = xdp.run(&flow(number, "A"), 0).unwrap().1[5];
            assert_eq!(seen, homes[number as usize], "flow {number}");
        }
        assert_eq!(scheduled(&mut xdp), u64::from(FLOWS));
    });
}

#[test]
fn expired_flows_are_swept_and_their_slots_used_again() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up)]);
        let mut short = crate::program::timeouts();
        short.tcp_half_open = std::time::Duration::from_secs(1);
        short.tcp = std::time::Duration::from_secs(1);
        xdp.set_timeouts(&short);
        for port in 1..=100 {
            server_of(&mut xdp, &tcp(port, 80, "S"));
            server_of(&mut xdp, &tcp(port, 80, "A"));
        }
        xdp.sweep();
        assert_eq!(xdp.snapshot().services[0].backends[0].active, 100);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        xdp.sweep();
        assert_eq!(xdp.snapshot().services[0].backends[0].active, 0);
        assert_eq!(xdp.dump("flows").unwrap().len(), 0);
    });
}

/// Every configuration change is one switch: packets on other CPUs see the old set of servers or
/// the new one, and nothing else.
#[test]
fn generations_never_mix() {
    in_namespace(|_| {
        let old = [(1, 1, Up), (2, 1, Up)];
        let new = [(3, 1, Up), (4, 1, Up)];
        let mut xdp = load(65_536);
        for last in 1..=4 {
            resolve(&mut xdp, last, INGRESS);
        }
        let mut port = 0;
        let mut generation = 0;
        for round in 0..20 {
            let servers = if round % 2 == 0 { old } else { new };
            apply(&mut xdp, vec![service(Tcp, 80, 1, &servers)]);
            let now = xdp.snapshot().generation;
            assert_eq!(now, generation + 1);
            generation = now;
            for _ in 0..50 {
                port += 1;
                let last = server_of(
                    &mut xdp,
                    &frame(CLIENT, VIP, 64, transport(port, 80, "S"), b""),
                );
                assert!(
                    servers.iter().any(|server| server.0 == last),
                    "{last} in round {round}"
                );
            }
            // Applying the same again changes nothing.
            apply(&mut xdp, vec![service(Tcp, 80, 1, &servers)]);
            assert_eq!(xdp.snapshot().generation, generation);
        }
    });
}

#[test]
fn a_backup_holds_its_tables_warm() {
    in_namespace(|_| {
        let mut xdp = ready(&[(1, 1, Up), (2, 1, Up)]);
        xdp.set_role(1, false);
        let syn = tcp(1, 80, "S");
        assert_eq!(xdp.run(&syn, 0).unwrap(), (PASS, syn.clone()));
        let before = xdp.snapshot().generation;
        xdp.set_role(1, true);
        assert_eq!(xdp.run(&syn, 0).unwrap(), (TX, direct(&syn, 1)));
        assert_eq!(
            xdp.snapshot().generation,
            before,
            "a failover builds nothing"
        );
    });
}
