//! Packets of every kind, byte by byte, each with its fate.

pub const VIP4: [u8; 4] = [10, 0, 0, 100];
pub const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];
pub const CLIENT4: [u8; 4] = [10, 0, 9, 9];
pub const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

#[derive(Clone, Copy, PartialEq)]
pub enum Fate {
    /// To the service's only real server.
    To(u8),
    Pass(&'static str),
}
use Fate::{Pass, To};

pub fn tcp(port: u16, vport: u16, flags: u8) -> Vec<u8> {
    let mut bytes = [port.to_be_bytes(), vport.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 2, 0, 0, 0, 0, 0]);
    bytes.extend(b"payload");
    bytes
}

pub fn udp(port: u16, vport: u16) -> Vec<u8> {
    let mut bytes = [port.to_be_bytes(), vport.to_be_bytes()].concat();
    bytes.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    bytes
}

pub fn sctp(port: u16, vport: u16, chunk: u8) -> Vec<u8> {
    let mut bytes = [port.to_be_bytes(), vport.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4]);
    bytes
}

pub fn v4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    bytes.extend(from);
    bytes.extend(to);
    bytes.extend(payload);
    sealed(bytes)
}

/// Repairs the header checksum.
pub fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let length = usize::from(packet[0] & 15) * 4;
    let sum = lb_common::checksum::of(&packet[..length]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

pub fn v6(from: [u8; 16], to: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(from);
    bytes.extend(to);
    bytes.extend(payload);
    bytes
}

/// An extension header of `units` times eight bytes in front of a payload of type `next`.
pub fn extension(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(units) * 8];
    bytes[0] = next;
    bytes[1] = units - 1;
    bytes.extend(payload);
    bytes
}

pub fn fragment(next: u8, place: u16, id: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend(place.to_be_bytes());
    bytes.extend([0, 0, 0, id]);
    bytes.extend(payload);
    bytes
}

pub fn changed(mut packet: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut packet);
    packet
}

pub fn icmp(kind: u8, code: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0, 0, 0, 5, 0];
    bytes.extend(inner);
    // IPv6 has another one, which nobody here verifies.
    let sum = lb_common::checksum::of(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Name, packet, fate. The flows of ports 1000 and up exist already when a row's turn comes: `prepared`
/// makes them.
pub fn packets_v4() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let from = |source| v4(source, VIP4, 6, &tcp(1, 80, 2));
    let plain = |protocol, payload: &[u8]| v4(CLIENT4, VIP4, protocol, payload);
    let answer = |protocol, payload: &[u8]| v4(VIP4, CLIENT4, protocol, payload);
    let router = [192, 0, 2, 1];
    let error = |kind, code, inner: &[u8]| v4(router, VIP4, 1, &icmp(kind, code, inner));
    let known = answer(6, &tcp(80, 1000, 0x10));
    let with_options = sealed(changed(known.clone(), |p| {
        p.splice(20..20, [1; 8]);
        p[0] = 0x47;
        p[3] += 8;
    }));
    let eight_bytes = &known[..28];
    vec![
        ("TCP", plain(6, &tcp(1, 80, 2)), To(1)),
        ("UDP", plain(17, &udp(1, 53)), To(2)),
        ("SCTP INIT", plain(132, &sctp(1, 2905, 1)), To(3)),
        ("SCTP DATA", plain(132, &sctp(1, 2905, 0)), To(3)),
        ("SCTP ABORT", plain(132, &sctp(9, 2905, 6)), To(3)),
        ("first port of a range", plain(6, &tcp(1, 1000, 2)), To(4)),
        ("last port of a range", plain(6, &tcp(1, 1999, 2)), To(4)),
        (
            "after a range",
            plain(6, &tcp(1, 2000, 2)),
            Pass("not_a_service"),
        ),
        ("UDP to any port", plain(17, &udp(1, 40_000)), To(5)),
        ("UDP to port 0", plain(17, &udp(1, 0)), To(5)),
        (
            "SCTP to another port",
            plain(132, &sctp(1, 1, 1)),
            Pass("not_a_service"),
        ),
        (
            "SCTP cut",
            changed(plain(132, &sctp(1, 2905, 1)[..12]), |_| ()),
            Pass("truncated"),
        ),
        (
            "longer than the frame",
            sealed(changed(plain(6, &tcp(1, 80, 2)), |p| p[3] += 1)),
            Pass("truncated"),
        ),
        ("unreachable", error(3, 1, &known), To(1)),
        ("fragmentation needed", error(3, 4, &known), To(1)),
        (
            "fragmentation needed, eight bytes",
            error(3, 4, eight_bytes),
            To(1),
        ),
        (
            "error with inner options",
            error(3, 4, &with_options),
            To(1),
        ),
        ("time exceeded", error(11, 0, &known), To(1)),
        ("parameter problem", error(12, 0, &known), To(1)),
        (
            "error about UDP",
            error(3, 3, &answer(17, &udp(53, 1000))),
            To(2),
        ),
        (
            "error about SCTP",
            error(3, 3, &answer(132, &sctp(2905, 1000, 0))),
            To(3),
        ),
        (
            "error about a range",
            error(3, 3, &answer(6, &tcp(1500, 1000, 16))),
            To(4),
        ),
        (
            "error about no flow",
            error(3, 4, &answer(6, &tcp(80, 2, 16))),
            Pass("icmp_unmatched"),
        ),
        (
            "error about no service",
            error(3, 4, &answer(6, &tcp(82, 2, 16))),
            Pass("icmp_unmatched"),
        ),
        (
            "error about another's packet",
            error(3, 4, &v4([10, 0, 0, 5], CLIENT4, 6, &tcp(80, 1000, 16))),
            Pass("icmp_unmatched"),
        ),
        (
            "error about a later fragment",
            error(3, 4, &sealed(changed(known.clone(), |p| p[7] = 1))),
            Pass("icmp_unmatched"),
        ),
        (
            "error cut in the ports",
            error(3, 4, &known[..22]),
            Pass("truncated"),
        ),
        (
            "echo",
            plain(1, &icmp(8, 0, b"ping")),
            Pass("not_transport"),
        ),
        ("redirect", error(5, 1, &known), Pass("not_transport")),
        ("GRE", plain(47, &tcp(1, 80, 2)), Pass("not_transport")),
        (
            "error with TTL 1",
            sealed(changed(error(3, 4, &known), |p| p[8] = 1)),
            Pass("ttl_expired"),
        ),
        ("land", v4(VIP4, VIP4, 6, &tcp(1, 80, 2)), Pass("land")),
        (
            "from the other VIP",
            v4([10, 0, 0, 101], VIP4, 6, &tcp(1, 80, 2)),
            Pass("source_is_vip"),
        ),
        (
            "from this network",
            from([0, 0, 0, 9]),
            Pass("martian_source"),
        ),
        (
            "from loopback",
            from([127, 0, 0, 1]),
            Pass("martian_source"),
        ),
        ("from a group", from([224, 0, 0, 9]), Pass("martian_source")),
        ("from everybody", from([255; 4]), Pass("martian_source")),
        ("from class E", from([240, 0, 0, 9]), To(1)),
    ]
}

/// The same for IPv6.
pub fn packets_v6() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let plain = |next, payload: &[u8]| v6(CLIENT6, VIP6, next, payload);
    let answer = |next, payload: &[u8]| v6(VIP6, CLIENT6, next, payload);
    let router = changed(CLIENT6.to_vec(), |a| a[15] = 1).try_into().unwrap();
    let error = |kind, inner: &[u8]| v6(router, VIP6, 58, &icmp(kind, 0, inner));
    let from = |source| v6(source, VIP6, 6, &tcp(1, 80, 2));
    let v6_of = |first, last| {
        let mut address = [0; 16];
        (address[0], address[15]) = (first, last);
        if first == 0xfe {
            address[1] = 0x80;
        }
        address
    };
    let syn = tcp(1, 80, 2);
    let known = answer(6, &tcp(80, 1000, 16));
    let all = extension(
        43,
        1,
        &extension(
            44,
            2,
            &fragment(
                51,
                0,
                1,
                &changed(extension(60, 3, &extension(6, 1, &syn)), |h| h[1] = 4),
            ),
        ),
    );
    let eight = (0..8).fold(syn.clone(), |inner, depth| {
        extension(if depth == 0 { 6 } else { 60 }, 1, &inner)
    });
    let nothing = v6(
        CLIENT6,
        changed(VIP6.to_vec(), |a| a[15] = 7).try_into().unwrap(),
        6,
        &syn,
    );
    let group = v6(
        CLIENT6,
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        58,
        &icmp(135, 0, &[0; 16]),
    );
    vec![
        ("TCP", plain(6, &syn), To(1)),
        ("UDP", plain(17, &udp(1, 53)), To(2)),
        ("SCTP", plain(132, &sctp(1, 2905, 1)), To(3)),
        ("a range", plain(6, &tcp(1, 1500, 2)), To(4)),
        ("any port", plain(17, &udp(1, 9)), To(5)),
        (
            "another port",
            plain(6, &tcp(1, 81, 2)),
            Pass("not_a_service"),
        ),
        ("another address", nothing, Pass("not_a_service")),
        ("neighbour discovery", group, Pass("not_a_service")),
        ("from nowhere", from([0; 16]), Pass("martian_source")),
        ("from loopback", from(v6_of(0, 1)), Pass("martian_source")),
        ("from a group", from(v6_of(0xff, 1)), Pass("martian_source")),
        ("from a link-local address", from(v6_of(0xfe, 1)), To(1)),
        ("hop-by-hop", plain(0, &extension(6, 1, &syn)), To(1)),
        ("routing", plain(43, &extension(6, 2, &syn)), To(1)),
        (
            "destination options",
            plain(60, &extension(6, 4, &syn)),
            To(1),
        ),
        (
            "authentication",
            plain(51, &changed(extension(6, 3, &syn), |h| h[1] = 4)),
            To(1),
        ),
        ("mobility", plain(135, &extension(6, 1, &syn)), To(1)),
        (
            "an atomic fragment",
            plain(44, &fragment(6, 0, 1, &syn)),
            To(1),
        ),
        ("all extension headers", plain(0, &all), To(1)),
        (
            "eight extension headers",
            plain(60, &eight),
            Pass("extension_headers"),
        ),
        (
            "an extension beyond the frame",
            plain(0, &[6, 200, 0, 0, 0, 0, 0, 0]),
            Pass("truncated"),
        ),
        ("no next header", plain(59, &[]), Pass("not_transport")),
        ("encrypted", plain(50, &[0; 16]), Pass("not_transport")),
        (
            "first fragment",
            plain(44, &fragment(17, 1, 5, &udp(3, 53))),
            To(2),
        ),
        (
            "its later fragment",
            plain(44, &fragment(17, 9, 5, &[9; 16])),
            To(2),
        ),
        (
            "its last fragment",
            plain(44, &fragment(17, 16, 5, &[9; 3])),
            To(2),
        ),
        (
            "a later fragment alone",
            plain(44, &fragment(17, 9, 6, &[9; 16])),
            Pass("fragment_early"),
        ),
        ("packet too big", error(2, &known), To(1)),
        ("unreachable", error(1, &known[..48]), To(1)),
        ("time exceeded", error(3, &known), To(1)),
        ("parameter problem", error(4, &known), To(1)),
        (
            "error with inner extension",
            error(2, &answer(60, &extension(6, 1, &tcp(80, 1000, 16)))),
            To(1),
        ),
        (
            "error about UDP",
            error(1, &answer(17, &udp(53, 1000))),
            To(2),
        ),
        (
            "error about a range",
            error(1, &answer(6, &tcp(1500, 1000, 16))),
            To(4),
        ),
        (
            "error about no flow",
            error(2, &answer(6, &tcp(80, 2, 16))),
            Pass("icmp_unmatched"),
        ),
        (
            "error about an inner fragment",
            error(2, &answer(44, &fragment(6, 9, 1, &tcp(80, 1000, 16)))),
            Pass("icmp_unmatched"),
        ),
        (
            "echo",
            plain(58, &icmp(128, 0, b"ping")),
            Pass("not_transport"),
        ),
        (
            "hop limit 1",
            changed(plain(6, &syn), |p| p[7] = 1),
            Pass("ttl_expired"),
        ),
        (
            "hop limit 0",
            changed(plain(6, &syn), |p| p[7] = 0),
            Pass("ttl_expired"),
        ),
        (
            "version 5",
            changed(plain(6, &syn), |p| p[0] = 0x50),
            Pass("truncated"),
        ),
        (
            "longer than the frame",
            changed(plain(6, &syn), |p| p[5] += 1),
            Pass("truncated"),
        ),
        ("land", v6(VIP6, VIP6, 6, &syn), Pass("land")),
        (
            "traffic class and flow label",
            changed(plain(6, &syn), |p| {
                p[..4].copy_from_slice(&[0x6a, 0xbc, 0xde, 0xf0]);
            }),
            To(1),
        ),
    ]
}
