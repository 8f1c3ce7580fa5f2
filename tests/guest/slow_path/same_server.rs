//! Which packets go the slow path, and where they arrive.

use std::{collections::BTreeMap, process::Command};

use lab::network::run;
use lb_user::dataplane::{
    DataPlane, WhyQuery,
    plan::BackendState::{Down, Up},
};

use super::{DNS, Site, WEB, settings, table, ways, with_site};
use crate::{
    planes::{
        SERVERS, VIP6,
        packets::{
            framed, returned,
            rows::{self, CLIENT6},
        },
    },
    program::{CLIENT, CLIENT_MAC, VIP, frame, tcp, transport, udp},
};

/// Time for two renewals of services that have connections.
const RENEWALS: u32 = 6;

fn tcp6(port: u16, flags: u8) -> Vec<u8> {
    framed(&rows::v6(
        CLIENT6,
        VIP6.octets(),
        6,
        &rows::tcp(port, WEB, flags),
    ))
}

/// 24 bytes of a datagram in pieces of eight, the first with the UDP header.
fn piece(port: u16, id: u16, index: usize) -> Vec<u8> {
    let payload = [&udp(port, DNS)[34..42], &[7; 16][..]].concat();
    let mut packet = udp(port, DNS)[14..34].to_vec();
    packet.extend(&payload[index * 8..index * 8 + 8]);
    packet[2..4].copy_from_slice(&28_u16.to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let more = if index < 2 { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&(more | index as u16).to_be_bytes());
    framed(&rows::sealed(packet))
}

/// The type of the only answer, an ICMP error from the VIP to the client.
fn error_type(seen: &[Vec<u8>]) -> u8 {
    let [answer] = seen else {
        panic!("{seen:02x?}")
    };
    assert_eq!(answer[..6], CLIENT_MAC);
    match answer[14] >> 4 {
        4 => {
            assert_eq!((answer[23], &answer[26..30]), (1, &VIP.octets()[..]));
            answer[34]
        }
        _ => {
            assert_eq!((answer[20], &answer[22..38]), (58, &VIP6.octets()[..]));
            answer[54]
        }
    }
}

#[test]
fn ipvs_takes_what_xdp_leaves_to_the_same_real_server() {
    with_site(|site| {
        for last in 1..=SERVERS {
            site.resolve(last, true);
        }
        site.apply(Up);
        assert!(site.planes.has_slow_path(), "{:?}", site.slow_path());
        assert_eq!(site.slow_path().servers, 10);
        assert_eq!(ways().len(), 10, "{}", table());
        assert_eq!(settings(), ["1", "1", "1"]);
        // Applying twice sends nothing.
        let before = table();
        site.apply(Up);
        site.tend(3);
        assert_eq!(table(), before);

        let flows = flows(site);
        expired(site, &flows);
        without_neighbours(site, &flows);
        reversed_fragments(site);
        a_port_begins_anew(site);
        flushed(site, &flows);
        one_goes_down(site, &flows);
    });
}

/// Flows of three kinds, and where XDP sends each.
struct Flows {
    web: BTreeMap<u16, u8>,
    web6: BTreeMap<u16, u8>,
    dns: BTreeMap<u16, u8>,
}

fn flows(site: &Site) -> Flows {
    let made = |packet: &dyn Fn(u16) -> Vec<u8>| {
        let flow = |port| (port, site.server_of(&packet(port)));
        (1000..1030).map(flow).collect()
    };
    let flows = Flows {
        web: made(&|port| tcp(port, WEB, "S")),
        web6: made(&|port| tcp6(port, 2)),
        dns: made(&|port| udp(port, DNS)),
    };
    for servers in [&flows.web, &flows.web6, &flows.dns] {
        let first = servers[&1000];
        assert_eq!(servers.values().filter(|last| **last == first).count(), 10);
    }
    flows
}

/// TTL 1: the director says so, and no real server sees it.
fn expired(site: &mut Site, flows: &Flows) {
    let seen_before = site.slow_path().packets;
    let known = frame(CLIENT, VIP, 1, transport(1000, WEB, "A"), b"payload");
    assert_eq!(error_type(&site.send_all(&[known])), 11);
    let unknown = frame(CLIENT, VIP, 1, transport(999, WEB, "S"), b"");
    assert_eq!(error_type(&site.send_all(&[unknown])), 11);
    let mut datagram = udp(1000, DNS)[14..].to_vec();
    datagram[8] = 1;
    assert_eq!(
        error_type(&site.send_all(&[framed(&rows::sealed(datagram))])),
        11
    );
    let mut six = tcp6(1000, 0x10);
    six[21] = 1;
    assert_eq!(error_type(&site.send_all(&[six])), 3);
    assert!(site.slow_path().packets >= seen_before + 4);
    // The flows are where they were.
    for (port, last) in &flows.web {
        assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last);
    }
}

/// XDP does not know where most real servers are; the kernel does.
fn without_neighbours(site: &mut Site, flows: &Flows) {
    for last in [2, 3, 5, 6] {
        site.resolve(last, false);
    }
    let before = site.slow_path().packets;
    for _ in 0..2 {
        for (port, last) in &flows.web {
            assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last, "{port}");
        }
        for (port, last) in &flows.web6 {
            assert_eq!(site.server_of(&tcp6(*port, 0x10)), *last, "{port}");
        }
        for (port, last) in &flows.dns {
            assert_eq!(site.server_of(&udp(*port, DNS)), *last, "{port}");
        }
    }
    // Two in three of 180, besides a fence for each.
    assert!(
        site.slow_path().packets >= before + 120,
        "{:?}",
        site.slow_path()
    );
    let connections = run(Command::new("ipvsadm").args(["-Lnc"])).unwrap();
    assert!(
        connections.contains("TCP ") && !connections.contains("UDP "),
        "{connections}"
    );
    // Whoever asks is told.
    let (port, _) = flows.web.iter().find(|(_, last)| **last != 1).unwrap();
    let why = site
        .planes
        .why(&WhyQuery {
            client: format!("{CLIENT}:{port}"),
            vip: format!("{VIP}:{WEB}"),
            protocol: None,
        })
        .unwrap();
    assert_eq!(why.because, "neighbour_unknown");
    let step = why.steps.last().unwrap();
    assert!(
        step.contains("sends the packet there (slow path)"),
        "{step}"
    );
}

/// The kernel puts the pieces together, and sends all of them where the flow is.
fn reversed_fragments(site: &mut Site) {
    for last in [5, 6] {
        site.resolve(last, true);
    }
    for port in 2000..2006 {
        let last = site.server_of(&udp(port, DNS));
        let pieces = [0, 1, 2].map(|index| piece(port, port, index));
        let seen = site.send_all(&[&pieces[2], &pieces[1], &pieces[0]].map(Vec::clone));
        let expected: Vec<Vec<u8>> = pieces.iter().map(|piece| returned(piece, last)).collect();
        assert_eq!(seen, expected, "{port}");
    }
}

/// A client's port begins another connection, which XDP gives to another real server: the kernel forgets the one before.
fn a_port_begins_anew(site: &mut Site) {
    for last in 1..=3 {
        site.resolve(last, false);
    }
    let ports: Vec<u16> = (3000..3012).collect();
    let connect = |site: &Site| -> Vec<u8> {
        let begin = |port: &u16| {
            let first = site.server_of(&tcp(*port, WEB, "S"));
            assert_eq!(site.server_of(&tcp(*port, WEB, "A")), first);
            first
        };
        ports.iter().map(begin).collect()
    };
    let before = connect(site);
    for port in &ports {
        site.server_of(&tcp(*port, WEB, "FA"));
    }
    // Moves the turn on, so that nobody gets the one it had.
    site.resolve(1, true);
    site.server_of(&tcp(3100, WEB, "S"));
    site.resolve(1, false);
    site.tend(RENEWALS);
    let after = connect(site);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(moved >= ports.len() / 2, "{before:?} {after:?}");
    for last in 1..=3 {
        site.resolve(last, true);
    }
}

fn flushed(site: &mut Site, flows: &Flows) {
    site.resolve(2, false);
    let before = ways();
    run(Command::new("ipvsadm").arg("-C")).unwrap();
    site.tend(1);
    assert_eq!(ways(), before);
    let snapshot = site.planes.snapshot();
    assert!(snapshot.repairs.count > 0, "{:?}", snapshot.repairs);
    for (port, last) in &flows.web {
        assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last);
    }
}

fn one_goes_down(site: &mut Site, flows: &Flows) {
    site.apply(Down);
    assert_eq!(site.slow_path().servers, 8);
    assert!(
        !ways().iter().any(|way| way.contains("10.0.0.2:")),
        "{}",
        table()
    );
    for port in flows.web.keys() {
        assert_ne!(site.server_of(&tcp(*port, WEB, "A")), 2);
    }
    site.apply(Up);
    assert_eq!(ways().len(), 10);
    // What the kernel knew of that real server is not believed any more.
    site.resolve(1, false);
    site.resolve(3, false);
    for port in flows.web.keys() {
        let last = site.server_of(&tcp(*port, WEB, "A"));
        assert_ne!(last, 2);
    }
}
