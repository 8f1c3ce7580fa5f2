//! The commonest packets take a way of their own through the program. What it must not let pass, for packets of a
//! connection that it sent on before.

use lb_user::{
    dataplane::{DataPlane, plan::BackendState::Up, xdp::Xdp},
    model::{
        IpPrefix, Protection,
        Protocol::{Tcp, Udp},
        SourceRule,
    },
};

use crate::{
    program::{
        CLIENT_MAC, DIRECTOR_MAC, INGRESS, PASS, SMALL, TX, apply, in_namespace, load, passed,
        resolve, server_mac, service,
    },
    shapes::rows::{CLIENT4, CLIENT6, VIP4, VIP6, tcp, v4, v6},
};

const DROP: u32 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Packets of one connection: the first one, and those that follow.
struct Flow {
    name: &'static str,
    opening: Vec<u8>,
    data: Vec<u8>,
}

/// One connection of each kind of packet that the short way knows.
fn flows() -> [Flow; 4] {
    let framed = |packet: Vec<u8>| {
        let kind: [u8; 2] = match packet[0] >> 4 {
            4 => [8, 0],
            _ => [0x86, 0xdd],
        };
        [&DIRECTOR_MAC[..], &CLIENT_MAC, &kind, &packet].concat()
    };
    let four = |protocol, payload: &[u8]| framed(v4(CLIENT4, VIP4, protocol, payload));
    let six = |protocol, payload: &[u8]| framed(v6(CLIENT6, VIP6, protocol, payload));
    let (syn, ack) = (tcp(5, 80, SYN), tcp(5, 80, ACK));
    // Long enough for the short way of IPv6.
    let datagram = [&[0, 5, 0, 53, 0, 24, 0, 0][..], &[7; 16]].concat();
    let flow = |name, opening, data| Flow {
        name,
        opening,
        data,
    };
    [
        flow("TCP over IPv4", four(6, &syn), four(6, &ack)),
        flow("TCP over IPv6", six(6, &syn), six(6, &ack)),
        flow("UDP over IPv4", four(17, &datagram), four(17, &datagram)),
        flow("UDP over IPv6", six(17, &datagram), six(17, &datagram)),
    ]
}

/// A director on which each connection has had three packets: the third one took the short way.
fn established() -> Xdp {
    let four =
        [(Tcp, 80), (Udp, 53)].map(|(protocol, port)| service(protocol, port, 1, &[(1, 1, Up)]));
    let six = four.clone().map(|mut service| {
        service.id.address = VIP6.into();
        service
    });
    let mut xdp = load(SMALL);
    apply(&mut xdp, [four, six].concat());
    resolve(&mut xdp, 1, INGRESS);
    for flow in flows() {
        for frame in [&flow.opening, &flow.data, &flow.data] {
            assert_eq!(run(&mut xdp, frame), (TX, server_mac(1)), "{}", flow.name);
        }
    }
    xdp
}

/// The verdict, and whom the frame is for afterwards.
fn run(xdp: &mut Xdp, frame: &[u8]) -> (u32, [u8; 6]) {
    let (verdict, out) = xdp.run(frame, INGRESS).unwrap();
    (verdict, out[..6].try_into().unwrap())
}

/// The names of those whose further packet has not this verdict, or is changed.
fn others(xdp: &mut Xdp, expected: u32) -> Vec<&'static str> {
    let mut others = Vec::new();
    for flow in flows() {
        if run(xdp, &flow.data) != (expected, DIRECTOR_MAC) {
            others.push(flow.name);
        }
    }
    others
}

fn all_go_on(xdp: &mut Xdp) {
    for flow in flows() {
        assert_eq!(run(xdp, &flow.data), (TX, server_mac(1)), "{}", flow.name);
    }
}

#[test]
fn a_backup_leaves_established_connections_alone() {
    in_namespace(|_| {
        let mut xdp = established();
        xdp.set_role(1, false);
        assert_eq!(others(&mut xdp, PASS), [""; 0]);
        assert_eq!(passed(&mut xdp, "not_master"), 4);
        xdp.set_role(1, true);
        all_go_on(&mut xdp);
    });
}

#[test]
fn a_listed_sources_established_connections_are_dropped() {
    in_namespace(|_| {
        let mut xdp = established();
        let clients: [std::net::IpAddr; 2] = [CLIENT4.into(), CLIENT6.into()];
        let list = |rule| Protection {
            sources: clients
                .map(|address| {
                    let length = if address.is_ipv4() { 24 } else { 64 };
                    (IpPrefix { address, length }, rule)
                })
                .to_vec(),
            ..Protection::default()
        };
        xdp.set_protection(&list(SourceRule::Block)).unwrap();
        assert_eq!(others(&mut xdp, DROP), [""; 0]);
        assert_eq!(passed(&mut xdp, "blocked"), 4);
        xdp.set_protection(&list(SourceRule::Allow)).unwrap();
        all_go_on(&mut xdp);
        xdp.set_protection(&Protection::default()).unwrap();
        all_go_on(&mut xdp);
    });
}
