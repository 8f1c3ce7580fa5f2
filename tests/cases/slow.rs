//! The program's half of the slow path: what stands in front of packets that pass, and which pieces of a datagram do.

use lb_common::slow::{MAGIC, Note};
use lb_user::{
    dataplane::{
        DataPlane,
        plan::BackendState::{Down, Up},
        xdp::Xdp,
    },
    model::{
        Protocol::{Tcp, Udp},
        Target,
    },
};

use crate::program::{
    CLIENT, INGRESS, PASS, SMALL, TX, VIP, apply, frame, in_namespace, load, resolve, server,
    server_mac, service, tcp, transport, udp,
};

/// What the program did with a frame: the verdict, the note in front of it, and the frame itself.
fn run(xdp: &mut Xdp, sent: &[u8]) -> (u32, Option<Note>, Vec<u8>) {
    let (verdict, out) = xdp.run(sent, INGRESS).unwrap();
    let front = out.len() - sent.len();
    assert!(front == 0 || front == size_of::<Note>(), "{front}");
    let word = |at: usize| u16::from_ne_bytes([out[at], out[at + 1]]);
    let note = (front != 0).then(|| Note {
        magic: [word(0), word(2), word(4)],
        backend: word(6),
    });
    (verdict, note, out[front..].to_vec())
}

/// The id of a real server's element.
fn id_of(xdp: &Xdp, last: u8, port: u16) -> u16 {
    let plan_ids = xdp.backend_ids();
    let is = |(service, target, _): &lb_user::dataplane::BackendKey| {
        service.ports.first == port && *target == Target::Host(server(last))
    };
    plan_ids
        .into_iter()
        .find(|(key, _)| is(key))
        .map(|(_, id)| id)
        .unwrap()
}

/// A packet that passes says nothing, or names this real server of this port.
fn passes(xdp: &mut Xdp, what: &str, sent: &[u8], named: Option<(u8, u16)>) {
    let (verdict, note, out) = run(xdp, sent);
    let note = note.map(|note| {
        assert_eq!(note.magic, MAGIC, "{what}");
        note.backend
    });
    let expected = named.map(|(last, port)| id_of(xdp, last, port));
    assert_eq!((verdict, note), (PASS, expected), "{what}");
    assert_eq!(out, sent, "{what}: changed");
}

fn expired(port: u16, vport: u16, flags: &str) -> Vec<u8> {
    frame(CLIENT, VIP, 1, transport(port, vport, flags), b"payload")
}

/// 24 bytes of a datagram's payload in pieces of eight, the first with the UDP header.
fn piece(id: u16, index: usize) -> Vec<u8> {
    let mut bytes = udp(900, 53)[..34].to_vec();
    let whole = [&udp(900, 53)[34..42], &[7; 16][..]].concat();
    bytes.extend(&whole[index * 8..index * 8 + 8]);
    bytes[16..18].copy_from_slice(&28_u16.to_be_bytes());
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    let more = if index < 2 { 0x2000 } else { 0 };
    bytes[20..22].copy_from_slice(&(more | index as u16).to_be_bytes());
    bytes[24..26].fill(0);
    let header = etherparse::Ipv4Header::from_slice(&bytes[14..34])
        .unwrap()
        .0;
    let sum = header.calc_header_checksum();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn serve(xdp: &mut Xdp) {
    apply(
        xdp,
        vec![
            service(Tcp, 80, 1, &[(45, 1, Up), (46, 1, Up), (47, 1, Up)]),
            service(Udp, 53, 1, &[(48, 1, Up)]),
            service(Tcp, 81, 1, &[(49, 1, Down)]),
        ],
    );
    for last in 45..=49 {
        resolve(xdp, last, INGRESS);
    }
}

fn server_of(frame: &[u8]) -> u8 {
    let last = frame[5];
    assert_eq!(frame[..6], server_mac(last));
    last
}

#[test]
fn a_packet_that_passes_says_whose_it_is() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        serve(&mut xdp);
        let turn = [1, 2, 3].map(|port| server_of(&run(&mut xdp, &tcp(port, 80, "S")).2));
        let first = turn[0];
        passes(&mut xdp, "closed", &expired(1, 80, "A"), None);

        xdp.open_slow_path(true);
        assert!(xdp.has_slow_path());
        for flags in ["A", "AF", "R", "S"] {
            let what = format!("TTL 1 of a known flow, {flags}");
            passes(&mut xdp, &what, &expired(1, 80, flags), Some((first, 80)));
        }
        // Nobody's flow: the same real server each time, and no trace of it.
        let before = xdp.snapshot().services[0].total.connections;
        let (_, note, _) = run(&mut xdp, &expired(4, 80, "S"));
        let chosen = note.unwrap();
        for _ in 0..3 {
            assert_eq!(run(&mut xdp, &expired(4, 80, "S")).1, Some(chosen));
        }
        assert_eq!(xdp.snapshot().services[0].total.connections, before);
        // And it moved no cursor: the next three have their turns in the same order.
        let next = [5, 6, 7].map(|port| server_of(&run(&mut xdp, &tcp(port, 80, "S")).2));
        assert_eq!(next, turn);
        passes(&mut xdp, "no real server", &expired(4, 81, "S"), None);
        passes(&mut xdp, "no service", &expired(4, 82, "S"), None);

        // Flows whose real server cannot be found at present, among others that go on.
        let mut flows = Vec::new();
        for port in 100..160 {
            let (_, _, out) = run(&mut xdp, &tcp(port, 80, "S"));
            flows.push((port, server_of(&out)));
        }
        xdp.set_neighbour(server(46), None);
        xdp.set_neighbour(server(47), None);
        for (port, last) in flows {
            let data = tcp(port, 80, "A");
            match last {
                45 => assert_eq!(run(&mut xdp, &data).0, TX, "{port}"),
                _ => passes(&mut xdp, "neighbour unknown", &data, Some((last, 80))),
            }
        }
        xdp.open_slow_path(false);
        let closed = (100..160).all(|port| run(&mut xdp, &tcp(port, 80, "A")).1.is_none());
        assert!(closed);
    });
}

#[test]
fn pieces_of_a_datagram_stay_together() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        serve(&mut xdp);
        // Without a slow path a later piece passes, and the first one goes all the same.
        passes(&mut xdp, "early", &piece(1, 1), None);
        assert_eq!(run(&mut xdp, &piece(1, 0)).0, TX);

        xdp.open_slow_path(true);
        // In order they go as they did.
        for index in 0..3 {
            assert_eq!(run(&mut xdp, &piece(2, index)).0, TX, "{index}");
        }
        // In no order the kernel gets all of them, and the first one says whose they are.
        for order in [[1, 0, 2], [2, 1, 0], [1, 2, 0]] {
            let id = 10 + (order[0] * 9 + order[1] * 3) as u16;
            for index in order {
                let named = (index == 0).then_some((48, 53));
                let what = format!("{order:?} {index}");
                passes(&mut xdp, &what, &piece(id, index), named);
            }
        }
        // Another datagram of the same flow is in order again.
        assert_eq!(run(&mut xdp, &piece(3, 0)).0, TX);
        assert_eq!(run(&mut xdp, &piece(3, 1)).0, TX);
        // What begins without a way to the real server ends so, even if the way is found in between.
        xdp.set_neighbour(server(48), None);
        passes(&mut xdp, "no way", &piece(4, 0), Some((48, 53)));
        resolve(&mut xdp, 48, INGRESS);
        passes(&mut xdp, "behind it", &piece(4, 1), None);
        passes(&mut xdp, "behind it", &piece(4, 2), None);
    });
}
