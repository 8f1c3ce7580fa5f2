//! What the classifiers of health checks do to one frame, on its way out and on its way in. Every
//! expected frame is built anew by etherparse with the other address, so that all checksums are somebody
//! else's.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep,
    TcpHeader, icmpv4, icmpv6,
};
use lb_user::{
    dataplane::{DataPlane, xdp::Xdp},
    model::{ProbePath, Protocol, Tunnel},
};

use crate::program::{CLIENT_MAC, DIRECTOR_MAC, SMALL, VIP, apply, in_namespace, load, service};

const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const PORT: u16 = 40_001;

/// Our own address, the real server's, and the VIP.
struct Cast {
    local: IpAddr,
    host: IpAddr,
    vip: IpAddr,
}

fn casts() -> [Cast; 2] {
    let v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into();
    [
        Cast {
            local: [10, 0, 0, 43].into(),
            host: [10, 0, 0, 1].into(),
            vip: VIP.into(),
        },
        Cast {
            local: v6(0x43),
            host: v6(1),
            vip: VIP6.into(),
        },
    ]
}

fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let builder = PacketBuilder::ethernet2(DIRECTOR_MAC, CLIENT_MAC);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
}

fn packet(kind: Kind, from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    match kind {
        Kind::Tcp => {
            let mut header = TcpHeader::new(ports.0, ports.1, 7, 512);
            header.syn = true;
            ip(from, to)
                .tcp_header(header)
                .write(&mut bytes, b"odd")
                .unwrap();
        }
        Kind::Udp => ip(from, to)
            .udp(ports.0, ports.1)
            .write(&mut bytes, b"a question")
            .unwrap(),
    }
    bytes
}

/// "Port unreachable" from the first to the second, about a datagram of the second to the third.
fn unreachable(from: IpAddr, to: IpAddr, asked: IpAddr) -> Vec<u8> {
    let quoted = &packet(Kind::Udp, to, asked, (PORT, 80))[14..];
    let mut bytes = Vec::new();
    if from.is_ipv4() {
        let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        ip(from, to).icmpv4(kind).write(&mut bytes, quoted).unwrap();
    } else {
        let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
        ip(from, to).icmpv6(kind).write(&mut bytes, quoted).unwrap();
    }
    bytes
}

fn ready(cast: &Cast, tunnel: bool) -> (Xdp, u32) {
    let mut xdp = load(SMALL);
    let mut planned = service(Protocol::Tcp, 80, 1, &[]);
    planned.id.address = cast.vip;
    apply(&mut xdp, vec![planned]);
    let path = ProbePath {
        index: 5,
        vip: cast.vip,
        host: cast.host,
        tunnel: tunnel.then_some(Tunnel::Ipip),
    };
    xdp.set_probes(&[path], &[]).unwrap();
    (xdp, path.mark())
}

#[test]
fn out_to_the_vip_and_back_from_it() {
    in_namespace(|_| {
        for cast in casts() {
            for kind in [Kind::Tcp, Kind::Udp] {
                let (mut xdp, mark) = ready(&cast, false);
                let Cast { local, host, vip } = cast;
                let asked = packet(kind, local, host, (PORT, 80));
                let answer = packet(kind, vip, local, (80, PORT));
                assert_eq!(
                    xdp.run_probe(false, &answer, 0).unwrap(),
                    answer,
                    "{kind:?}: nobody asked yet"
                );
                assert_eq!(
                    xdp.run_probe(true, &asked, mark).unwrap(),
                    packet(kind, local, vip, (PORT, 80)),
                    "{kind:?} out"
                );
                assert_eq!(
                    xdp.run_probe(false, &answer, 0).unwrap(),
                    packet(kind, host, local, (80, PORT)),
                    "{kind:?} in"
                );
                let other = packet(kind, vip, local, (80, PORT + 1));
                assert_eq!(
                    xdp.run_probe(false, &other, 0).unwrap(),
                    other,
                    "another port"
                );
                // Somebody on this host speaks to the VIP from the same port.
                let own = packet(kind, local, vip, (PORT, 80));
                assert_eq!(xdp.run_probe(true, &own, 0).unwrap(), own);
                assert_eq!(
                    xdp.run_probe(false, &answer, 0).unwrap(),
                    answer,
                    "{kind:?}: the port is not the probe's any more"
                );
            }
        }
    });
}

#[test]
fn errors_about_a_probe_reach_its_socket() {
    in_namespace(|_| {
        for cast in casts() {
            let (mut xdp, mark) = ready(&cast, false);
            let Cast { local, host, vip } = cast;
            let error = unreachable(vip, local, vip);
            assert_eq!(
                xdp.run_probe(false, &error, 0).unwrap(),
                error,
                "nobody asked"
            );
            xdp.run_probe(true, &packet(Kind::Udp, local, host, (PORT, 80)), mark)
                .unwrap();
            let mut message = error.clone();
            let (place, reply) = if local.is_ipv4() { (34, 0) } else { (54, 129) };
            message[place] = reply;
            assert_eq!(
                xdp.run_probe(false, &message, 0).unwrap(),
                message,
                "an echo reply quotes nothing"
            );
            let expected = unreachable(host, local, host);
            let mut seen = xdp.run_probe(false, &error, 0).unwrap();
            // The quoted datagram's own checksum is not mended: nobody looks at it.
            let sum = expected.len() - b"a question".len() - 2;
            seen[sum..sum + 2].copy_from_slice(&expected[sum..sum + 2]);
            let icmp_sum = if local.is_ipv4() {
                14 + 20 + 2
            } else {
                14 + 40 + 2
            };
            let whole = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes[icmp_sum..icmp_sum + 2].fill(0);
                bytes
            };
            assert_eq!(whole(&seen), whole(&expected));
        }
    });
}

#[test]
fn errors_have_valid_checksums() {
    in_namespace(|_| {
        for cast in casts() {
            let (mut xdp, mark) = ready(&cast, false);
            let Cast { local, host, vip } = cast;
            xdp.run_probe(true, &packet(Kind::Udp, local, host, (PORT, 80)), mark)
                .unwrap();
            let seen = xdp
                .run_probe(false, &unreachable(vip, local, vip), 0)
                .unwrap();
            match (host, local) {
                (IpAddr::V4(_), IpAddr::V4(_)) => {
                    assert_eq!(lb_common::checksum::of(&seen[34..]), 0);
                }
                (IpAddr::V6(host), IpAddr::V6(local)) => {
                    let icmp = etherparse::Icmpv6Slice::from_slice(&seen[54..]).unwrap();
                    assert!(icmp.is_checksum_valid(host.octets(), local.octets()));
                }
                _ => unreachable!(),
            }
        }
    });
}

#[test]
fn through_a_tunnel() {
    in_namespace(|_| {
        for cast in casts() {
            let (mut xdp, mark) = ready(&cast, true);
            let Cast { local, host, vip } = cast;
            let inner = packet(Kind::Tcp, local, vip, (PORT, 80));
            let mut expected = inner[..14].to_vec();
            match (local, host) {
                (IpAddr::V4(local), IpAddr::V4(host)) => {
                    let length = (inner.len() - 14) as u16;
                    let mut outer =
                        Ipv4Header::new(length, 64, IpNumber::IPV4, local.octets(), host.octets())
                            .unwrap();
                    outer.dont_fragment = false;
                    outer.header_checksum = outer.calc_header_checksum();
                    outer.write(&mut expected).unwrap();
                }
                (IpAddr::V6(local), IpAddr::V6(host)) => Ipv6Header {
                    payload_length: (inner.len() - 14) as u16,
                    next_header: IpNumber::IPV6,
                    hop_limit: 64,
                    source: local.octets(),
                    destination: host.octets(),
                    ..Ipv6Header::default()
                }
                .write(&mut expected)
                .unwrap(),
                _ => unreachable!(),
            }
            expected.extend(&inner[14..]);
            let asked = packet(Kind::Tcp, local, host, (PORT, 80));
            assert_eq!(xdp.run_probe(true, &asked, mark).unwrap(), expected);
        }
    });
}

#[test]
fn what_is_no_probe_stays_as_it_is() {
    in_namespace(|_| {
        for cast in casts() {
            let (mut xdp, mark) = ready(&cast, false);
            let Cast { local, host, vip } = cast;
            let asked = packet(Kind::Tcp, local, host, (PORT, 80));
            let headers = if local.is_ipv4() { 34 } else { 54 };
            let mut piece = asked.clone();
            // More fragments; or a fragment header next.
            let (place, bits) = if local.is_ipv4() {
                (20, 0x20)
            } else {
                (20, 44)
            };
            piece[place] = bits;
            for (what, frame, mark) in [
                ("no mark", asked.clone(), 0),
                ("somebody's mark", asked.clone(), 0x1234_0005),
                ("nobody's number", asked.clone(), mark + 1),
                (
                    "another host",
                    packet(Kind::Tcp, local, vip, (PORT, 80)),
                    mark,
                ),
                ("no ports", asked[..headers].to_vec(), mark),
                ("a piece", piece, mark),
            ] {
                assert_eq!(xdp.run_probe(true, &frame, mark).unwrap(), frame, "{what}");
                let answer = packet(Kind::Tcp, vip, local, (80, PORT));
                assert_eq!(xdp.run_probe(false, &answer, 0).unwrap(), answer, "{what}");
            }
            xdp.set_probes(&[], &[]).unwrap();
            assert_eq!(
                xdp.run_probe(true, &asked, mark).unwrap(),
                asked,
                "forgotten"
            );
        }
    });
}
