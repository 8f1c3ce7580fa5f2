//! The same packets: what leaves to a real server is the same, byte for byte, or the table of
//! differences says why not.

use std::net::IpAddr;

use lb_user::{
    dataplane::plan::{BackendState::Up, PlannedBackend, PlannedService},
    model::{Ports, Protocol, Scheduler, ServiceId, Target},
};

use super::{Plane, VIP6, on_both, server};
use crate::program::{CLIENT_MAC, DIRECTOR_MAC, VIP, server_mac};

#[path = "../../cases/shapes/rows.rs"]
pub mod rows;

use rows::{
    CLIENT4, CLIENT6, VIP4, changed, packets_v4, packets_v6, sctp, sealed, tcp, udp, v4, v6,
};

/// What IPVS does where it differs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Instead {
    /// The director keeps it.
    Keeps,
    /// It goes to this real server.
    SendsTo(u8),
    /// It goes to this real server, changed.
    SendsOtherTo(u8),
    /// The packet of this name goes to a real server with it.
    SendsWith(&'static str, u8),
}
use Instead::{Keeps, SendsOtherTo, SendsTo, SendsWith};

const RANGES: &str = "IPVS has no ranges of ports";
const ALL_PORTS: &str = "IPVS has all ports of a VIP only for clients that stick";
const NO_SYN: &str =
    "only a SYN makes a connection of IPVS; XDP lets a real server refuse the rest";
const FRAGMENT_HEADER: &str = "the kernel takes away a fragment header that says nothing";

/// Every packet that the two treat differently, and why.
const DIFFERENCES: [(&str, Instead, &str); 27] = [
    ("IPv4: first port of a range", Keeps, RANGES),
    ("IPv4: last port of a range", Keeps, RANGES),
    ("IPv4: error about a range", Keeps, RANGES),
    ("IPv6: a range", Keeps, RANGES),
    ("IPv6: error about a range", Keeps, RANGES),
    ("IPv4: UDP to any port", Keeps, ALL_PORTS),
    ("IPv4: UDP to port 0", Keeps, ALL_PORTS),
    ("IPv6: any port", Keeps, ALL_PORTS),
    ("IPv4: SCTP ABORT", Keeps, NO_SYN),
    ("IPv4: data of no known connection", Keeps, NO_SYN),
    ("IPv4: FIN of no known connection", Keeps, NO_SYN),
    ("IPv4: RST of no known connection", Keeps, NO_SYN),
    ("IPv4: no flags", Keeps, NO_SYN),
    (
        "IPv4: SCTP cut",
        SendsTo(3),
        "the ports of a known association are enough for IPVS",
    ),
    (
        "IPv4: parameter problem",
        Keeps,
        "IPVS takes care of unreachable, source quench and time exceeded",
    ),
    (
        "IPv4: from this network",
        SendsTo(1),
        "Linux takes 0.0.0.0/8 for addresses of hosts",
    ),
    (
        "IPv6: from nowhere",
        SendsTo(1),
        "IPVS does not look at the sources of IPv6",
    ),
    (
        "IPv6: land",
        SendsTo(1),
        "IPVS does not look at the sources of IPv6",
    ),
    (
        "IPv6: mobility",
        Keeps,
        "the kernel looks for no port behind a mobility header",
    ),
    (
        "IPv6: eight extension headers",
        SendsTo(1),
        "XDP reads seven and leaves the rest to the kernel",
    ),
    ("IPv6: an atomic fragment", SendsOtherTo(1), FRAGMENT_HEADER),
    (
        "IPv6: all extension headers",
        SendsOtherTo(1),
        FRAGMENT_HEADER,
    ),
    (
        "IPv6: its later fragment",
        Keeps,
        "IPVS knows no later fragments of IPv6",
    ),
    (
        "IPv6: its last fragment",
        Keeps,
        "IPVS knows no later fragments of IPv6",
    ),
    (
        "IPv4: wrong header checksum",
        Keeps,
        "the kernel verifies it; with XDP the real server does",
    ),
    (
        "IPv4: first fragment",
        Keeps,
        "IPVS waits until a datagram is whole",
    ),
    (
        "IPv4: its last fragment",
        SendsWith("IPv4: first fragment", 1),
        "then all of it leaves",
    ),
];

pub fn framed(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [8, 0]
    };
    [&DIRECTOR_MAC[..], &CLIENT_MAC, &kind, packet].concat()
}

/// What direct return makes of a packet.
pub fn returned(frame: &[u8], last: u8) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&server_mac(last));
    out[6..12].copy_from_slice(&DIRECTOR_MAC);
    if out[14] >> 4 == 4 {
        out[22] -= 1;
        let packet = sealed(out[14..].to_vec());
        out[14..].copy_from_slice(&packet);
    } else {
        out[21] -= 1;
    }
    out
}

fn services(plane: &dyn Plane) -> Vec<PlannedService> {
    let service = |address: IpAddr, protocol, ports, last| {
        let id = ServiceId {
            protocol,
            address,
            ports,
        };
        let target = Target::Host(server(address, last));
        PlannedService::new(
            id,
            0,
            Scheduler::Wrr,
            vec![PlannedBackend::new(target, 1, Up)],
        )
    };
    let range = Ports {
        first: 1000,
        last: 1999,
    };
    let mut all = vec![service(
        [10, 0, 0, 101].into(),
        Protocol::Tcp,
        Ports::one(80),
        1,
    )];
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        all.extend([
            service(vip, Protocol::Tcp, Ports::one(80), 1),
            service(vip, Protocol::Udp, Ports::one(53), 2),
            service(vip, Protocol::Sctp, Ports::one(2905), 3),
        ]);
        if plane.name() == "XDP" {
            all.push(service(vip, Protocol::Tcp, range, 4));
            all.push(service(vip, Protocol::Udp, Ports::ALL, 5));
        }
    }
    all
}

/// More packets, of IPv4.
fn oddities() -> Vec<(&'static str, Vec<u8>)> {
    let plain = |payload: &[u8]| v4(CLIENT4, VIP4, 6, payload);
    let with =
        |change: &dyn Fn(&mut Vec<u8>)| sealed(changed(plain(&tcp(50, 80, 2)), |p| change(p)));
    // Some bytes of a datagram of 27, the header among them.
    let piece = |from: usize, to: usize| {
        let more = if to < 27 { 0x20 } else { 0 };
        sealed(changed(plain(&tcp(70, 80, 2)[from..to]), |p| {
            (p[4], p[6], p[7]) = (9, more, from as u8 / 8);
        }))
    };
    let options = |words: usize| {
        sealed(changed(plain(&tcp(51, 80, 2)), |p| {
            p.splice(20..20, vec![1; words * 4]);
            p[0] += words as u8;
            p[3] += words as u8 * 4;
        }))
    };
    vec![
        ("SYN", plain(&tcp(60, 80, 2))),
        ("its data", plain(&tcp(60, 80, 0x10))),
        ("its FIN", plain(&tcp(60, 80, 0x11))),
        ("its RST", plain(&tcp(60, 80, 4))),
        ("data of no known connection", plain(&tcp(61, 80, 0x10))),
        ("FIN of no known connection", plain(&tcp(62, 80, 0x11))),
        ("RST of no known connection", plain(&tcp(63, 80, 4))),
        (
            "SYN and ACK of no known connection",
            plain(&tcp(64, 80, 0x12)),
        ),
        ("no flags", plain(&tcp(65, 80, 0))),
        ("client's port 0", plain(&tcp(0, 80, 2))),
        ("client's port 65535", plain(&tcp(65_535, 80, 2))),
        ("TTL 255", with(&|p| p[8] = 255)),
        ("TTL 2", with(&|p| p[8] = 2)),
        ("TTL 1", with(&|p| p[8] = 1)),
        ("do not fragment", with(&|p| p[6] = 0x40)),
        ("a type of service", with(&|p| p[1] = 0xb8)),
        ("one word of IP options", options(1)),
        ("forty bytes of IP options", options(10)),
        (
            "wrong header checksum",
            changed(with(&|_| ()), |p| p[10] ^= 1),
        ),
        ("first fragment", piece(0, 24)),
        ("its last fragment", piece(24, 27)),
    ]
}

/// A name for every row, with the packet.
fn all() -> Vec<(String, Vec<u8>)> {
    let named = |version: &str, what: &str| format!("{version}: {what}");
    let v4 = packets_v4()
        .into_iter()
        .map(|(what, packet, _)| (named("IPv4", what), packet));
    let v6 = packets_v6()
        .into_iter()
        .map(|(what, packet, _)| (named("IPv6", what), packet));
    let odd = oddities()
        .into_iter()
        .map(|(what, packet)| (named("IPv4", what), packet));
    v4.chain(v6).chain(odd).collect()
}

/// What left for each packet.
fn play(plane: &mut dyn Plane) -> Vec<Vec<Vec<u8>>> {
    let services = services(plane);
    plane.apply(services);
    // The flows that ICMP errors are about.
    for (protocol, payload) in [
        (6, tcp(1000, 80, 2)),
        (17, udp(1000, 53)),
        (132, sctp(1000, 2905, 1)),
        (6, tcp(1000, 1500, 2)),
    ] {
        plane.send(&framed(&v4(CLIENT4, VIP4, protocol, &payload)));
        plane.send(&framed(&v6(CLIENT6, VIP6.octets(), protocol, &payload)));
    }
    let packets = all();
    let frames = packets.iter().map(|(_, packet)| framed(packet));
    frames.map(|frame| plane.send(&frame)).collect()
}

#[test]
fn the_same_packets_have_the_same_fate() {
    let [xdp, ipvs] = on_both(|plane| play(plane));
    let packets = all();
    let named = |name: &str| {
        let (_, packet) = packets.iter().find(|(what, _)| what == name).unwrap();
        framed(packet)
    };
    for (name, _, _) in DIFFERENCES {
        named(name);
    }
    let mut faults = Vec::new();
    for (((what, packet), ours), theirs) in packets.iter().zip(xdp).zip(ipvs) {
        let frame = framed(packet);
        let difference = DIFFERENCES.iter().find(|(name, _, _)| name == what);
        let is_right = match difference {
            None => theirs == ours,
            Some((_, Keeps, _)) => theirs.is_empty(),
            Some((_, SendsTo(last), _)) => theirs == [returned(&frame, *last)],
            Some((_, SendsOtherTo(last), _)) => match theirs.as_slice() {
                [one] => one[..6] == server_mac(*last) && *one != returned(&frame, *last),
                _ => false,
            },
            Some((_, SendsWith(name, last), _)) => {
                theirs == [returned(&named(name), *last), returned(&frame, *last)]
            }
        };
        if difference.is_some() && theirs == ours {
            faults.push(format!("{what}: is no difference"));
        }
        if !is_right {
            faults.push(format!(
                "{what}: {difference:?}\n  XDP  {ours:02x?}\n  IPVS {theirs:02x?}"
            ));
        }
    }
    println!(
        "{} packets, {} differences",
        packets.len(),
        DIFFERENCES.len()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
