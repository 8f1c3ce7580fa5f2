//! Frames in several buffers, as drivers hand over what is larger than a page: the kernel's test run
//! makes such frames of 9,000 bytes.

use etherparse::Ipv4Header;
use lb_user::{
    dataplane::{
        DataPlane,
        plan::{BackendState::Up, PlannedBackend},
        xdp::Xdp,
    },
    model::{Forwarding, Hop, Neighbour, Protocol::Tcp, Target, Tunnel},
};

use crate::program::{
    CLIENT, DIRECTOR_MAC, INGRESS, PASS, REDIRECT, SMALL, TX, VIP, apply, direct, frame,
    in_namespace, load, passed, server, server_mac, service, transport,
};

/// A segment whose payload tells its place, so that a byte that moved shows.
fn jumbo() -> Vec<u8> {
    let payload: Vec<u8> = (0..8_946_u32).map(|n| (n * 7 % 251) as u8).collect();
    let frame = frame(CLIENT, VIP, 64, transport(5000, 80, "S"), &payload);
    assert_eq!(frame.len(), 9_000);
    frame
}

fn ready(change: impl FnOnce(&mut Hop), forwarding: Forwarding) -> Xdp {
    let mut xdp = load(SMALL);
    let mut planned = service(Tcp, 80, 1, &[]);
    planned.forwarding = forwarding;
    planned.backends = vec![PlannedBackend::new(Target::Host(server(1)), 1, Up)];
    apply(&mut xdp, vec![planned]);
    let mut hop = Hop::on_link(server_mac(1), INGRESS, DIRECTOR_MAC);
    change(&mut hop);
    xdp.set_neighbour(server(1), Some(Neighbour::Host(hop)));
    xdp
}

#[test]
fn is_forwarded_whole() {
    in_namespace(|_| {
        let mut xdp = ready(|_| {}, Forwarding::Dr);
        let frame = jumbo();
        // The first packet, the second by the general way, and one that continues the flow.
        for flags in ["S", "A", "A"] {
            let mut frame = frame.clone();
            frame[47] = if flags == "S" { 0x02 } else { 0x10 };
            let (verdict, out) = xdp.run(&frame, 0).unwrap();
            assert_eq!(verdict, TX, "{flags}");
            assert!(out == direct(&frame, 1), "{flags}: bytes changed");
        }
    });
}

#[test]
fn gets_a_tag() {
    in_namespace(|_| {
        let mut xdp = ready(|hop| hop.vlans = [100, 0], Forwarding::Dr);
        let frame = jumbo();
        let (verdict, out) = xdp.run(&frame, 0).unwrap();
        assert_eq!(verdict, TX);
        let untagged = direct(&frame, 1);
        assert_eq!(out[..12], untagged[..12]);
        assert_eq!(out[12..16], [0x81, 0, 0, 100]);
        assert!(out[16..] == untagged[12..], "bytes changed");
    });
}

#[test]
fn travels_in_a_tunnel_or_is_answered() {
    in_namespace(|_| {
        let source = Some([10, 0, 0, 43].into());
        let frame = jumbo();
        let wide = |hop: &mut Hop| {
            hop.source = source;
            hop.mtu = 9_216;
        };
        let mut xdp = ready(wide, Forwarding::Tunnel(Tunnel::Ipip));
        let (verdict, out) = xdp.run(&frame, 0).unwrap();
        assert_eq!(verdict, TX);
        let (outer, inner) = Ipv4Header::from_slice(&out[14..]).unwrap();
        assert_eq!(usize::from(outer.total_len), 20 + frame.len() - 14);
        assert_eq!(outer.header_checksum, outer.calc_header_checksum());
        assert!(inner == &direct(&frame, 1)[14..], "bytes changed");

        let mut xdp = ready(|hop| hop.source = source, Forwarding::Tunnel(Tunnel::Ipip));
        let (verdict, out) = xdp.run(&frame, 0).unwrap();
        assert_eq!((verdict, passed(&mut xdp, "too_big")), (TX, 1));
        let (answer, icmp) = Ipv4Header::from_slice(&out[14..]).unwrap();
        assert_eq!(answer.destination, CLIENT.octets());
        assert_eq!(lb_common::checksum::of(icmp), 0, "checksum");
        assert_eq!(icmp[..2], [3, 4]);
        assert_eq!(icmp[8..28], frame[14..34], "the packet is quoted");
    });
}

/// Lengths are held against all buffers, not against the first one.
#[test]
fn longer_than_its_frame() {
    in_namespace(|_| {
        let mut xdp = ready(|_| {}, Forwarding::Dr);
        for (more, expected) in [(0_u16, TX), (1, PASS)] {
            let mut frame = jumbo();
            let length = (frame.len() - 14) as u16 + more;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            let (verdict, _) = xdp.run(&frame, 0).unwrap();
            assert_eq!(verdict, expected, "{more} bytes too many");
        }
        assert_eq!(passed(&mut xdp, "truncated"), 1);
    });
}

/// Frames of 9,000 bytes come in, and the interface to the real server takes 1,500: the client is told. What leaves
/// by the interface that it came in by is forwarded as it is.
#[test]
fn a_smaller_way_out_is_told_of() {
    in_namespace(|node| {
        let other = node.ifindex().unwrap();
        for (out_by, receive_mtu, fits) in [
            (other, 9_000, false),
            (other, 1_500, true),
            (INGRESS, 9_000, true),
        ] {
            let mut xdp = load(SMALL);
            xdp.set_receive_mtu(receive_mtu);
            let mut planned = service(Tcp, 80, 1, &[]);
            planned.backends = vec![PlannedBackend::new(Target::Host(server(1)), 1, Up)];
            apply(&mut xdp, vec![planned]);
            let mut hop = Hop::on_link(server_mac(1), out_by, DIRECTOR_MAC);
            hop.mtu = 1_500;
            xdp.set_neighbour(server(1), Some(Neighbour::Host(hop)));
            let forwarded = if out_by == INGRESS { TX } else { REDIRECT };
            // Opens a flow, continues it by the short way, and both again above the limit.
            for (flags, length) in [("S", 1_500), ("A", 1_500), ("A", 1_501), ("S", 9_000 - 14)] {
                let payload = vec![7; length - 40];
                let frame = frame(CLIENT, VIP, 64, transport(5000, 80, flags), &payload);
                let before = passed(&mut xdp, "too_big");
                let (verdict, out) = xdp.run(&frame, 0).unwrap();
                let told = passed(&mut xdp, "too_big") - before;
                if fits || length <= 1_500 {
                    assert_eq!((verdict, told), (forwarded, 0), "{flags} {length}");
                    assert!(out == direct(&frame, 1), "{flags} {length}: bytes changed");
                    continue;
                }
                assert_eq!((verdict, told), (TX, 1), "{flags} {length}");
                // ICMP "fragmentation needed", with the limit as the next hop's MTU (RFC 1191).
                assert_eq!((out[23], out[34], out[35]), (1, 3, 4));
                assert_eq!(out[40..42], 1_500_u16.to_be_bytes());
            }
        }
    });
}
