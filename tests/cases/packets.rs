//! One packet each: what comes in, what goes out, which counter moves.

use etherparse::{PacketBuilder, TransportHeader, UdpHeader};
use lb_user::{
    dataplane::{
        DataPlane,
        plan::BackendState::{Down, Up},
    },
    model::Protocol::{Tcp, Udp},
};

use crate::program::{
    CLIENT, CLIENT_MAC, DIRECTOR_MAC, INGRESS, PASS, REDIRECT, SMALL, TX, VIP, apply, direct,
    frame, in_namespace, load, passed, resolve, service, tcp, transport, udp,
};

/// What must happen to a frame.
enum Fate {
    /// Leaves by this verdict, rewritten for 10.0.0.LAST.
    To(u32, u8),
    /// Passes untouched, counted under this reason.
    Pass(&'static str),
}
use Fate::{Pass, To};

fn with(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// Repairs the IPv4 header checksum after a change.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let length = usize::from(frame[14] & 0x0f) * 4;
    let sum = etherparse::Ipv4Header::from_slice(&frame[14..14 + length])
        .unwrap()
        .0
        .calc_header_checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn with_options(frame: &[u8], words: usize) -> Vec<u8> {
    let mut out = frame[..34].to_vec();
    // No-operation options.
    out.extend(std::iter::repeat_n(1, words * 4));
    out.extend(&frame[34..]);
    out[14] = 0x45 + words as u8;
    let total = (out.len() - 14) as u16;
    out[16..18].copy_from_slice(&total.to_be_bytes());
    sealed(out)
}

fn tcp_ttl(ttl: u8) -> Vec<u8> {
    frame(CLIENT, VIP, ttl, transport(5, 80, "S"), b"")
}

fn tcp_to(last: u8, vport: u16) -> Vec<u8> {
    frame(
        CLIENT,
        [10, 0, 0, last].into(),
        64,
        transport(5, vport, "S"),
        b"",
    )
}

fn fragment(bits: u16) -> Vec<u8> {
    sealed(with(tcp(7, 80, "S"), |f| {
        f[20..22].copy_from_slice(&bits.to_be_bytes());
    }))
}

fn rows() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let cut = |length: usize| with(tcp(8, 80, "S"), |f| f.truncate(length));
    let ethertype = |value: u16| {
        with(tcp(8, 80, "S"), |f| {
            f[12..14].copy_from_slice(&value.to_be_bytes());
        })
    };
    let icmp = {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC).ipv4(
            CLIENT.octets(),
            VIP.octets(),
            64,
        );
        builder
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, b"ping")
            .unwrap();
        bytes
    };
    let ipv6 = {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC).ipv6([1; 16], [2; 16], 64);
        builder.tcp(5, 80, 1, 1).write(&mut bytes, b"").unwrap();
        bytes
    };
    let empty_udp = frame(
        CLIENT,
        VIP,
        64,
        TransportHeader::Udp(UdpHeader {
            source_port: 9,
            destination_port: 53,
            ..UdpHeader::default()
        }),
        b"",
    );
    vec![
        ("SYN", tcp(1, 80, "S"), To(TX, 1)),
        (
            "SYN with payload",
            frame(CLIENT, VIP, 64, transport(2, 80, "S"), &[7; 1400]),
            To(TX, 1),
        ),
        ("data of no known connection", tcp(3, 80, "A"), To(TX, 1)),
        ("FIN of no known connection", tcp(4, 80, "FA"), To(TX, 1)),
        ("RST of no known connection", tcp(5, 80, "R"), To(TX, 1)),
        ("SYN and ACK", tcp(6, 80, "SA"), To(TX, 1)),
        ("no flags", tcp(7, 80, ""), To(TX, 1)),
        ("port 0 of a client", tcp(0, 80, "S"), To(TX, 1)),
        ("port 65535 of a client", tcp(65535, 80, "S"), To(TX, 1)),
        ("UDP", udp(1, 53), To(TX, 3)),
        ("UDP without payload", empty_udp, To(TX, 3)),
        (
            "padded to the Ethernet minimum",
            with(tcp_ttl(64), |f| f.resize(60, 0)),
            To(TX, 1),
        ),
        (
            "a backend behind another interface",
            tcp(1, 90, "S"),
            To(REDIRECT, 4),
        ),
        (
            "one word of IP options",
            with_options(&tcp(9, 80, "S"), 1),
            To(TX, 1),
        ),
        (
            "forty bytes of IP options",
            with_options(&tcp(10, 80, "S"), 10),
            To(TX, 1),
        ),
        (
            "UDP with IP options",
            with_options(&udp(2, 53), 3),
            To(TX, 3),
        ),
        ("do not fragment", fragment(0x4000), To(TX, 1)),
        ("TTL 2", tcp_ttl(2), To(TX, 1)),
        ("TTL 255", tcp_ttl(255), To(TX, 1)),
        (
            "TTL 128: the borrow crosses a byte",
            tcp_ttl(128),
            To(TX, 1),
        ),
        ("TTL 1", tcp_ttl(1), Pass("ttl_expired")),
        ("TTL 0", tcp_ttl(0), Pass("ttl_expired")),
        (
            "TTL 1 for another address",
            frame(CLIENT, [10, 0, 0, 7].into(), 1, transport(5, 80, "S"), b""),
            Pass("not_a_service"),
        ),
        (
            "another port of the VIP",
            tcp(1, 8080, "S"),
            Pass("not_a_service"),
        ),
        ("another address", tcp_to(99, 80), Pass("not_a_service")),
        ("UDP to a TCP service", udp(1, 80), Pass("not_a_service")),
        (
            "TCP to a UDP service",
            tcp(1, 53, "S"),
            Pass("not_a_service"),
        ),
        (
            "an instance that is not MASTER",
            tcp(1, 84, "S"),
            Pass("not_master"),
        ),
        (
            "TTL 1 where another is MASTER",
            frame(CLIENT, VIP, 1, transport(1, 84, "S"), b""),
            Pass("not_master"),
        ),
        ("no live real server", tcp(1, 81, "S"), Pass("no_backend")),
        (
            "no live real server, data",
            tcp(1, 81, "A"),
            Pass("no_backend"),
        ),
        (
            "no live real server, RST",
            tcp(1, 81, "R"),
            Pass("no_backend"),
        ),
        (
            "a real server that does not answer ARP",
            tcp(1, 82, "S"),
            Pass("neighbour_unknown"),
        ),
        ("a local sorry server", tcp(1, 83, "S"), Pass("local")),
        ("first fragment", fragment(0x2000), To(TX, 1)),
        (
            "a later fragment follows the first",
            fragment(0x2001),
            To(TX, 1),
        ),
        ("the last fragment", fragment(0x0001), To(TX, 1)),
        (
            "a later fragment without the first",
            sealed(with(fragment(0x0001), |f| f[18] = 7)),
            Pass("fragment_early"),
        ),
        (
            "fragment of UDP",
            sealed(with(udp(1, 53), |f| f[20] = 0x20)),
            To(TX, 3),
        ),
        ("ICMP echo to the VIP", icmp, Pass("not_transport")),
        (
            "VRRP",
            sealed(with(tcp(1, 80, "S"), |f| f[23] = 112)),
            Pass("not_transport"),
        ),
        (
            "a fragment of ICMP is no fragment of ours",
            sealed(with(tcp(1, 80, "S"), |f| {
                f[23] = 1;
                f[20] = 0x20;
            })),
            Pass("not_transport"),
        ),
        ("IPv6 to nobody here", ipv6, Pass("not_a_service")),
        ("ARP", ethertype(0x0806), Pass("not_ip")),
        (
            "a VLAN tag before nonsense",
            ethertype(0x8100),
            Pass("not_ip"),
        ),
        ("an IEEE 802.3 length", ethertype(0x0040), Pass("not_ip")),
        ("only an Ethernet header", cut(14), Pass("truncated")),
        ("cut in the IP header", cut(33), Pass("truncated")),
        ("cut before the ports", cut(36), Pass("truncated")),
        ("cut in the TCP header", cut(53), Pass("truncated")),
        (
            "cut in the UDP header",
            with(udp(1, 53), |f| f.truncate(41)),
            Pass("truncated"),
        ),
        (
            "IP version 5",
            with(tcp(1, 80, "S"), |f| f[14] = 0x55),
            Pass("truncated"),
        ),
        (
            "IP header length 16",
            with(tcp(1, 80, "S"), |f| f[14] = 0x44),
            Pass("truncated"),
        ),
        (
            "IP header length 0",
            with(tcp(1, 80, "S"), |f| f[14] = 0x40),
            Pass("truncated"),
        ),
        (
            "options beyond the frame",
            with(cut(54), |f| f[14] = 0x4f),
            Pass("truncated"),
        ),
        (
            "total length below the header's",
            with(tcp(1, 80, "S"), |f| f[17] = 10),
            Pass("truncated"),
        ),
    ]
}

#[test]
fn one_packet_each() {
    in_namespace(|node| {
        let other = node.ifindex().unwrap();
        assert_ne!(other, INGRESS);
        let mut xdp = load(SMALL);
        apply(
            &mut xdp,
            vec![
                service(Tcp, 80, 1, &[(1, 1, Up)]),
                service(Tcp, 81, 1, &[(1, 1, Down)]),
                service(Tcp, 82, 1, &[(2, 1, Up)]),
                service(Tcp, 84, 2, &[(1, 1, Up)]),
                service(Tcp, 90, 1, &[(4, 1, Up)]),
                service(Udp, 53, 1, &[(3, 1, Up)]),
                crate::flows::with_sorry(service(Tcp, 83, 1, &[(1, 1, Down)]), Up),
            ],
        );
        resolve(&mut xdp, 1, INGRESS);
        resolve(&mut xdp, 3, INGRESS);
        resolve(&mut xdp, 4, other);
        for (what, frame, fate) in rows() {
            let reasons = xdp.snapshot().passed;
            let packets = forwarded(&mut xdp);
            let (verdict, out) = xdp.run(&frame, 0).unwrap();
            let moved: Vec<String> = xdp
                .snapshot()
                .passed
                .iter()
                .zip(&reasons)
                .filter(|(after, before)| after.1 != before.1)
                .map(|(after, before)| format!("{} +{}", after.0, after.1 - before.1))
                .collect();
            match fate {
                To(expected, last) => {
                    assert_eq!(verdict, expected, "{what}");
                    assert_eq!(out, direct(&frame, last), "{what}");
                    assert!(moved.is_empty(), "{what}: {moved:?}");
                    let length = u64::from(u16::from_be_bytes([frame[16], frame[17]]));
                    let now = forwarded(&mut xdp);
                    assert_eq!(
                        (now.0, now.1),
                        (packets.0 + 1, packets.1 + length),
                        "{what}"
                    );
                }
                Pass(reason) => {
                    assert_eq!(verdict, PASS, "{what}");
                    assert_eq!(out, frame, "{what}: changed although it passes");
                    // A local backend's packets count as its own too, as with IPVS.
                    let counted = forwarded(&mut xdp).0 - packets.0;
                    assert_eq!(counted, u64::from(reason == "local"), "{what}");
                    assert_eq!(moved, [format!("{reason} +1")], "{what}");
                }
            }
        }
        assert_eq!(passed(&mut xdp, "not_ready"), 0);
    });
}

/// Packets and bytes over all backends.
fn forwarded(xdp: &mut lb_user::dataplane::xdp::Xdp) -> (u64, u64) {
    let snapshot = xdp.snapshot();
    let backends = snapshot.services.iter().flat_map(|s| &s.backends);
    backends.fold((0, 0), |sum, b| (sum.0 + b.packets, sum.1 + b.bytes))
}

/// Before the daemon has applied anything, and after it lost the mastership, nothing is touched.
#[test]
fn nothing_is_touched_before_and_after() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        let syn = tcp(1, 80, "S");
        assert_eq!(xdp.run(&syn, 0).unwrap(), (PASS, syn.clone()));
        assert_eq!(passed(&mut xdp, "not_a_service"), 1);
        apply(&mut xdp, vec![service(Tcp, 80, 1, &[(1, 1, Up)])]);
        resolve(&mut xdp, 1, INGRESS);
        assert_eq!(xdp.run(&syn, 0).unwrap(), (TX, direct(&syn, 1)));
        xdp.set_role(1, false);
        assert_eq!(xdp.run(&syn, 0).unwrap(), (PASS, syn.clone()));
        assert_eq!(passed(&mut xdp, "not_master"), 1);
    });
}

/// The program for frames in several buffers is the one that runs where the kernel knows such frames
/// (5.18 and later; nothing older runs these tests). That the other one serves in its stead would go
/// unnoticed: it does the same for all frames in one buffer.
#[test]
fn the_program_for_several_buffers_loads() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        let info = xdp.program().unwrap().info().unwrap();
        assert_eq!(info.name_as_str(), Some("lbd"));
    });
}
