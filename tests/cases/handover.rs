//! Connections that leave the flow tables for another data plane and come back from it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::program::{
    CLIENT, INGRESS, PASS, SMALL, VIP, apply, frame, in_namespace, load, passed, resolve, server,
    server_of, service, tcp, transport, udp,
};
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
        ServiceId, Target,
    },
};

/// Ports of clients, and what each showed: the flags of its packets.
const SHOWN: [(u16, &[&str], Phase); 3] = [
    (1000, &["S"], Phase::Opening),
    (1001, &["S", "A"], Phase::Established),
    (1002, &["S", "A", "FA"], Phase::Closing),
];
/// The service of all ports, at another address: its flows have wide keys, and its clients stick.
const OTHER: [u8; 4] = [10, 0, 0, 101];

/// Another client.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 10);

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
        engine: None,
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
    // Somebody else comes before the client that sticks: it does not get what it would get by itself.
    let elsewhere = frame(ELSEWHERE, VIP, 64, transport(3000, 8080, "S"), b"");
    server_of(xdp, &to_other(elsewhere));
    for flags in ["S", "A"] {
        server_of(xdp, &to_other(tcp(3000, 8080, flags)));
    }
    let wide = to_other(tcp(3000, 8080, "A"));
    opened.push((wide.clone(), server_of(xdp, &wide)));
    opened
}

/// Those of `CLIENT`.
fn by_phase(list: &[Carried]) -> BTreeMap<(String, u16, u16), Phase> {
    let key = |c: &Carried| (c.service.to_string(), c.client.port(), c.vip_port);
    let list = list.iter().filter(|c| c.client.ip() == CLIENT);
    list.map(|c| (key(c), c.phase)).collect()
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

/// A daemon that begins with empty tables learns which real server a client sticks to.
#[test]
fn clients_that_stick_are_brought_back() {
    in_namespace(|_| {
        let mut xdp = ready();
        let (_, bond) = open(&mut xdp).pop().unwrap();
        let list = xdp.connections();
        drop(xdp);
        // Without its bond it would go elsewhere.
        let newcomer = to_other(tcp(3001, 8081, "S"));
        assert_ne!(server_of(&mut ready(), &newcomer), bond);
        let mut xdp = ready();
        assert_eq!(xdp.take_over(&list).unwrap(), list.len());
        assert_eq!(server_of(&mut xdp, &newcomer), bond);

        // What is said of one that is known already is what counts from then on.
        let mut moved = list.clone();
        moved.retain(|c| c.phase == Phase::Sticks && c.client.ip() == CLIENT);
        let other = list.iter().find(|c| c.target != moved[0].target).unwrap();
        moved[0].target = other.target;
        assert_eq!(xdp.take_over(&moved).unwrap(), 1);
        let target = Target::Host(server(server_of(&mut xdp, &to_other(tcp(3002, 8082, "S")))));
        assert_eq!(target, other.target);
    });
}

/// More come than their table has room for, with keys of both kinds: those that find their bucket full live
/// in the spill tables.
#[test]
fn those_without_room_are_taken_too() {
    /// More than the slots of each table: those of UDP and of wide keys have no less than one chunk.
    const FLOWS: u32 = SMALL + 1_000;
    in_namespace(|_| {
        let mut xdp = ready();
        let known = open(&mut xdp);
        let list = xdp.connections();
        xdp.forget_connections();
        let of = |port: u16| *list.iter().find(|c| c.client.port() == port).unwrap();
        let client = |number| Ipv4Addr::from(0x1000_0000 + number);
        // An established connection of a service of one port, and one of the service of all ports.
        let all: Vec<Carried> = [of(1001), of(3000)]
            .into_iter()
            .flat_map(|like| {
                (0..FLOWS).map(move |number| Carried {
                    client: (client(number), like.client.port()).into(),
                    ..like
                })
            })
            .collect();
        assert_eq!(xdp.take_over(&all).unwrap(), all.len());
        for table in ["spill", "wide_spill"] {
            let spilled = xdp.dump(table).unwrap().len();
            assert!(spilled >= 1_000, "{spilled} in {table}");
        }
        let kept: Vec<Carried> = xdp.connections();
        let kept = kept.iter().filter(|c| c.phase == Phase::Established);
        assert_eq!(kept.count(), all.len());
        let home = |port: u16| {
            let mut known = known.iter();
            let is = |(frame, _): &&(Vec<u8>, u8)| frame[34..36] == port.to_be_bytes();
            known.find(is).unwrap().1
        };
        let (narrow, wide) = (home(1001), home(3000));
        for number in 0..FLOWS {
            let to_web = frame(client(number), VIP, 64, transport(1001, 80, "A"), b"");
            assert_eq!(server_of(&mut xdp, &to_web), narrow, "client {number}");
            let to_all = frame(client(number), VIP, 64, transport(3000, 8080, "A"), b"");
            assert_eq!(
                server_of(&mut xdp, &to_other(to_all)),
                wide,
                "client {number}"
            );
        }
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
