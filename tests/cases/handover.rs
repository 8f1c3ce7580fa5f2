//! Connections that leave the flow tables for another data plane and come back from it.

use std::collections::BTreeMap;

use lab::network::INTERFACE;
use lb_user::{
    dataplane::{
        DataPlane,
        carried::{Carried, Phase},
        plan::BackendState::Up,
        xdp::Xdp,
    },
    model::{
        Persistence, Ports,
        Protocol::{Tcp, Udp},
        ServiceId,
    },
};

use crate::program::{
    INGRESS, PASS, SMALL, VIP, apply, in_namespace, load, passed, resolve, server_of, service, tcp,
    udp,
};

/// Ports of clients, and what each showed: the flags of its packets.
const SHOWN: [(u16, &[&str], Phase); 3] = [
    (1000, &["S"], Phase::Opening),
    (1001, &["S", "A"], Phase::Established),
    (1002, &["S", "A", "FA"], Phase::Closing),
];
/// The service of all ports, at another address: its flows have wide keys, and its clients stick.
const OTHER: [u8; 4] = [10, 0, 0, 101];

fn ready() -> Xdp {
    let mut xdp = load(SMALL);
    let servers = [(1, 1, Up), (2, 1, Up), (3, 1, Up)];
    let mut sticky = service(Tcp, 80, 1, &servers);
    sticky.id = ServiceId {
        address: OTHER.into(),
        ports: Ports::ALL,
        ..sticky.id
    };
    sticky.persistence = Some(Persistence {
        timeout: std::time::Duration::from_secs(300),
        prefix: 32,
    });
    let web = service(Tcp, 80, 1, &servers);
    apply(&mut xdp, vec![web, service(Udp, 53, 1, &servers), sticky]);
    for last in 1..=3 {
        resolve(&mut xdp, last, INGRESS);
    }
    xdp
}

/// A frame to the service of all ports.
fn to_other(mut frame: Vec<u8>) -> Vec<u8> {
    frame[30..34].copy_from_slice(&OTHER);
    frame[24..26].fill(0);
    let header = etherparse::Ipv4Header::from_slice(&frame[14..34])
        .unwrap()
        .0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

/// Opens connections of every kind. Returns a further packet of each with its server.
fn open(xdp: &mut Xdp) -> Vec<(Vec<u8>, u8)> {
    let mut opened = Vec::new();
    for (port, flags, phase) in SHOWN {
        let sent = flags.iter().map(|flags| tcp(port, 80, flags));
        let server = sent.map(|frame| server_of(xdp, &frame)).last().unwrap();
        if phase != Phase::Closing {
            opened.push((tcp(port, 80, "A"), server));
        }
    }
    for _ in 0..2 {
        server_of(xdp, &udp(2000, 53));
    }
    opened.push((udp(2000, 53), server_of(xdp, &udp(2000, 53))));
    for flags in ["S", "A"] {
        server_of(xdp, &to_other(tcp(3000, 8080, flags)));
    }
    let wide = to_other(tcp(3000, 8080, "A"));
    opened.push((wide.clone(), server_of(xdp, &wide)));
    opened
}

fn by_phase(list: &[Carried]) -> BTreeMap<(String, u16, u16), Phase> {
    let key = |c: &Carried| (c.service.to_string(), c.client.port(), c.vip_port);
    list.iter().map(|c| (key(c), c.phase)).collect()
}

#[test]
fn connections_leave_and_come_back() {
    in_namespace(|_| {
        let mut xdp = ready();
        let opened = open(&mut xdp);
        let list = xdp.connections();
        let web = format!("TCP {VIP}:80");
        let mut expected: BTreeMap<_, _> = SHOWN
            .iter()
            .map(|(port, _, phase)| ((web.clone(), *port, 80), *phase))
            .collect();
        let all = list.iter().find(|c| c.service.ports == Ports::ALL);
        let all = all.unwrap().service.to_string();
        expected.insert((format!("UDP {VIP}:53"), 2000, 53), Phase::Datagrams);
        expected.insert((all.clone(), 3000, 8080), Phase::Established);
        expected.insert((all, 0, 0), Phase::Sticks);
        assert_eq!(by_phase(&list), expected);

        // They went on elsewhere: here they are forgotten, spilled ones as well.
        xdp.forget_connections();
        let left = xdp.connections();
        assert!(left.iter().all(|c| c.phase == Phase::Sticks), "{left:?}");

        // While they come back, what is not known is the kernel's, and what is new is ours.
        xdp.set_handover(true);
        for (frame, _) in &opened {
            let (verdict, out) = xdp.run(frame, 0).unwrap();
            assert_eq!((verdict, &out), (PASS, frame));
        }
        assert_eq!(passed(&mut xdp, "handover"), opened.len() as u64);
        server_of(&mut xdp, &tcp(4000, 80, "S"));
        server_of(&mut xdp, &tcp(4000, 80, "A"));

        assert_eq!(xdp.take_over(&list).unwrap(), list.len());
        for (frame, server) in &opened {
            assert_eq!(server_of(&mut xdp, frame), *server);
        }
        assert_eq!(passed(&mut xdp, "handover"), opened.len() as u64);
        let mut back = by_phase(&xdp.connections());
        assert_eq!(
            back.remove(&(web.clone(), 4000, 80)),
            Some(Phase::Established)
        );
        // The packets above were second ones.
        expected.insert((web, 1000, 80), Phase::Established);
        assert_eq!(back, expected);

        // What the tables know already stays as it is.
        let mut elsewhere = list.clone();
        for carried in &mut elsewhere {
            let other = list.iter().find(|c| c.target != carried.target);
            carried.target = other.map_or(carried.target, |other| other.target);
        }
        elsewhere.retain(|c| c.phase != Phase::Sticks);
        xdp.take_over(&elsewhere).unwrap();
        for (frame, server) in &opened {
            assert_eq!(server_of(&mut xdp, frame), *server);
        }

        // Afterwards what nobody knows is scheduled, as before.
        xdp.set_handover(false);
        server_of(&mut xdp, &tcp(5000, 80, "A"));
        assert_eq!(passed(&mut xdp, "handover"), opened.len() as u64);
    });
}

/// IPVS forwards where an interface refuses the program. One that is gone refuses nothing any more.
#[test]
fn a_refusal_goes_with_its_interface() {
    in_namespace(|_| {
        // What is loaded without pins is refused by every interface.
        let mut xdp = load(SMALL);
        xdp.follow_interfaces(&[(INTERFACE.to_owned(), INGRESS)]);
        assert!(xdp.refusal().is_some());
        xdp.follow_interfaces(&[]);
        assert_eq!(xdp.refusal(), None);
    });
}
