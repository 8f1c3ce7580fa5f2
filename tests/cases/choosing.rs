//! Schedulers, persistence, thresholds, limits and lists of sources, as IPVS means them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::hashing::{self, MAGLEV_OFFSET_KEY};
use lb_user::{
    dataplane::{
        DataPlane,
        plan::{
            BackendState::{self, Down, Draining, Resetting, Up},
            PlannedService,
        },
        xdp::Xdp,
    },
    model::{
        Hashing, IpPrefix, Persistence, Protection,
        Protocol::{Sctp, Tcp},
        RateLimit, Scheduler, SourceRule,
        address::wire,
    },
};

use crate::program::{
    CLIENT, INGRESS, PASS, SMALL, TX, VIP, apply, frame, in_namespace, load, passed, resolve,
    server_of, service, transport,
};

const DROP: u32 = 1;

pub fn with(scheduler: Scheduler, weights: &[u32]) -> PlannedService {
    let servers: Vec<_> = (1..)
        .zip(weights)
        .map(|(last, weight)| (last, *weight, Up))
        .collect();
    let mut planned = service(Tcp, 80, 1, &servers);
    planned.scheduler = scheduler;
    planned
}

pub fn ready(planned: PlannedService) -> Xdp {
    let mut xdp = load(SMALL);
    let count = planned.backends.len() as u8;
    apply(&mut xdp, vec![planned]);
    for last in 1..=count {
        resolve(&mut xdp, last, INGRESS);
    }
    xdp
}

pub fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a14_0000 + number)
}

pub fn packet(from: Ipv4Addr, port: u16, flags: &str) -> Vec<u8> {
    frame(from, VIP, 64, transport(port, 80, flags), b"")
}

/// A connection's first two packets; returns its server.
pub fn connect(xdp: &mut Xdp, from: Ipv4Addr, port: u16) -> u8 {
    let server = server_of(xdp, &packet(from, port, "S"));
    assert_eq!(server_of(xdp, &packet(from, port, "A")), server);
    server
}

fn shares(xdp: &mut Xdp, count: u16) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for number in 0..count {
        let server = connect(xdp, client(u32::from(number)), 5000);
        *shares.entry(server).or_default() += 1;
    }
    shares
}

#[test]
fn least_connections() {
    in_namespace(|_| {
        let mut xdp = ready(with(Scheduler::Lc, &[1, 1, 1]));
        assert_eq!(
            shares(&mut xdp, 30),
            BTreeMap::from([(1, 10), (2, 10), (3, 10)])
        );
        // Ten connections of the first server end; it gets the next ones.
        for number in 0..30 {
            let from = client(number);
            if server_of(&mut xdp, &packet(from, 5000, "A")) == 1 {
                server_of(&mut xdp, &packet(from, 5000, "FA"));
            }
        }
        let next: Vec<u8> = (100..110)
            .map(|n| connect(&mut xdp, client(n), 1))
            .collect();
        assert_eq!(next, [1; 10], "closing connections weigh little");
        xdp.sweep();
        let dump = xdp.dump("loads").unwrap();
        let active: Vec<u64> = dump
            .iter()
            .map(|load| load["active"].as_u64().unwrap())
            .collect();
        assert_eq!(
            active,
            [10, 10, 10],
            "the sweep agrees with the program's own count"
        );
    });
}

#[test]
fn weighted_least_connections() {
    in_namespace(|_| {
        let mut xdp = ready(with(Scheduler::Wlc, &[1, 3, 0]));
        assert_eq!(shares(&mut xdp, 40), BTreeMap::from([(1, 10), (2, 30)]));
    });
}

#[test]
fn fail_over() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Fo, &[5, 9, 7]);
        let mut xdp = ready(planned.clone());
        assert_eq!(shares(&mut xdp, 10), BTreeMap::from([(2, 10)]));
        planned.backends[1].state = Draining;
        apply(&mut xdp, vec![planned]);
        let next: Vec<u8> = (100..105)
            .map(|n| connect(&mut xdp, client(n), 1))
            .collect();
        assert_eq!(next, [3; 5]);
    });
}

/// The place of a client is computed here from the published hash; the table was checked against the
/// published algorithm where it is built.
#[test]
fn maglev_and_source_hash() {
    in_namespace(|_| {
        for (scheduler, flag) in [
            (Scheduler::Mh, false),
            (Scheduler::Mh, true),
            (Scheduler::Sh, false),
            (Scheduler::Sh, true),
        ] {
            let mut planned = with(scheduler, &[1, 2, 1]);
            planned.hashing = Hashing {
                port: flag,
                fallback: false,
            };
            let mut xdp = ready(planned);
            let ring = xdp.dump("rings").unwrap();
            let live = ring.iter().find(|entry| entry["live"] == true).unwrap();
            let table: Vec<u64> = live["backends"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap())
                .collect();
            let mut seen = BTreeMap::new();
            for number in 0..400 {
                let (from, port) = (client(number * 7), 1000 + number as u16);
                let subject = hashing::subject(wire(from.into()), if flag { port } else { 0 });
                let place = match scheduler {
                    Scheduler::Mh => hashing::maglev(subject, MAGLEV_OFFSET_KEY) % 4093,
                    _ => hashing::source_bucket(subject),
                };
                let server = server_of(&mut xdp, &packet(from, port, "S"));
                // Ids are given in file order from 1 on.
                assert_eq!(
                    u64::from(server),
                    table[place as usize],
                    "{scheduler} {number}"
                );
                if !flag {
                    assert_eq!(
                        server_of(&mut xdp, &packet(from, 9, "S")),
                        server,
                        "another port"
                    );
                }
                // The end of an unknown connection goes where the connection would have gone.
                let other = client(100_000 + number);
                let end = server_of(&mut xdp, &packet(other, port, "R"));
                assert_eq!(server_of(&mut xdp, &packet(other, port, "S")), end);
                *seen.entry(server).or_insert(0) += 1;
            }
            assert_eq!(seen.len(), 3, "{scheduler}: {seen:?}");
        }
    });
}

#[test]
fn hashed_clients_of_a_drained_server() {
    in_namespace(|_| {
        for scheduler in [Scheduler::Mh, Scheduler::Sh] {
            for fallback in [false, true] {
                let mut planned = with(scheduler, &[1, 1, 1]);
                planned.hashing.fallback = fallback;
                let mut xdp = ready(planned.clone());
                let homes: Vec<u8> = (0..100)
                    .map(|n| server_of(&mut xdp, &packet(client(n), 1, "S")))
                    .collect();
                planned.backends[1].state = Draining;
                apply(&mut xdp, vec![planned]);
                for (number, home) in (0..100).zip(homes) {
                    let syn = packet(client(number), 2, "S");
                    let (verdict, out) = xdp.run(&syn, 0).unwrap();
                    match (home, fallback) {
                        (2, false) => assert_eq!((verdict, out), (PASS, syn), "refused, as IPVS"),
                        (2, true) => assert!(verdict == TX && out[5] != 2, "{scheduler}"),
                        _ => assert_eq!((verdict, out[5]), (TX, home), "nobody else moves"),
                    }
                }
            }
        }
    });
}

#[test]
fn a_client_sticks_to_its_server() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1, 1, 1]);
        planned.persistence = Some(Persistence {
            timeout: Duration::from_secs(2),
            prefix: 24,
            engine: None,
        });
        let mut xdp = ready(planned.clone());
        let first = connect(&mut xdp, Ipv4Addr::new(10, 20, 30, 1), 1);
        for port in 2..20 {
            let neighbour = Ipv4Addr::new(10, 20, 30, port as u8);
            assert_eq!(connect(&mut xdp, neighbour, port), first, "the same /24");
        }
        assert_ne!(connect(&mut xdp, Ipv4Addr::new(10, 20, 31, 1), 1), first);
        planned.backends[usize::from(first) - 1].state = Draining;
        apply(&mut xdp, vec![planned]);
        let same = Ipv4Addr::new(10, 20, 30, 77);
        assert_eq!(
            connect(&mut xdp, same, 1),
            first,
            "persistence outlives draining, as in IPVS"
        );
        std::thread::sleep(Duration::from_millis(2_300));
        assert_ne!(connect(&mut xdp, same, 2), first, "but not its time-out");
        let second = connect(&mut xdp, same, 3);
        for port in 4..10 {
            assert_eq!(
                connect(&mut xdp, same, port),
                second,
                "a new bond holds as well"
            );
        }
    });
}

#[test]
fn thresholds() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1, 1]);
        planned.backends[0].upper = 5;
        planned.backends[0].lower = 3;
        let mut xdp = ready(planned);
        let seen = shares(&mut xdp, 20);
        assert_eq!(seen, BTreeMap::from([(1, 5), (2, 15)]));
        // Closed connections still count until they expire.
        let mut short = crate::program::timeouts();
        short.tcp_closing = Duration::from_secs(1);
        xdp.set_timeouts(&short);
        let of_first: Vec<u32> = (0..20)
            .filter(|n| server_of(&mut xdp, &packet(client(*n), 5000, "A")) == 1)
            .collect();
        for number in &of_first[..3] {
            server_of(&mut xdp, &packet(client(*number), 5000, "FA"));
        }
        std::thread::sleep(Duration::from_millis(1_300));
        xdp.sweep();
        let next: Vec<u8> = (100..104)
            .map(|n| connect(&mut xdp, client(n), 1))
            .collect();
        assert!(
            next.contains(&1),
            "below the lower threshold it takes connections again: {next:?}"
        );
    });
}

/// The heavy server is full, and the ring has it nearly everywhere: the other one gets everybody.
#[test]
fn a_full_server_leaves_its_turns_to_the_others() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Wrr, &[1, 1000]);
        planned.backends[1].upper = 10;
        let mut xdp = ready(planned);
        let seen = shares(&mut xdp, 100);
        assert_eq!(seen, BTreeMap::from([(1, 90), (2, 10)]));
    });
}

/// Whoever got the sorry page does not stick to it.
#[test]
fn nobody_sticks_to_a_sorry_server() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1, 1]);
        planned.persistence = Some(Persistence {
            timeout: Duration::from_secs(60),
            prefix: 32,
            engine: None,
        });
        planned.backends[1].sorry = true;
        planned.backends[0].state = Down;
        let mut xdp = ready(planned.clone());
        assert_eq!(connect(&mut xdp, client(1), 1), 2);
        assert_eq!(connect(&mut xdp, client(1), 2), 2);
        planned.backends[0].state = Up;
        planned.backends[1].state = Draining;
        apply(&mut xdp, vec![planned]);
        assert_eq!(connect(&mut xdp, client(1), 3), 1);
        assert_eq!(
            server_of(&mut xdp, &packet(client(1), 2, "A")),
            2,
            "who reads it goes on"
        );
    });
}

#[test]
fn listed_sources() {
    in_namespace(|_| {
        let mut xdp = ready(with(Scheduler::Rr, &[1]));
        let prefix = |address: [u8; 4], length| IpPrefix {
            address: IpAddr::from(address),
            length,
        };
        let lists = |rules: &[(IpPrefix, SourceRule)]| Protection {
            sources: rules.to_vec(),
            ..Protection::default()
        };
        let block = (prefix([10, 30, 0, 0], 16), SourceRule::Block);
        let allow = (prefix([10, 30, 7, 0], 24), SourceRule::Allow);
        let bad = packet(Ipv4Addr::new(10, 30, 1, 1), 1, "S");
        let good = packet(Ipv4Addr::new(10, 30, 7, 1), 1, "S");
        assert_eq!(server_of(&mut xdp, &bad), 1);
        xdp.set_protection(&lists(&[block, allow])).unwrap();
        assert_eq!(xdp.run(&bad, 0).unwrap().0, DROP, "an established one too");
        assert_eq!(server_of(&mut xdp, &good), 1, "the longest prefix decides");
        assert_eq!(passed(&mut xdp, "blocked"), 1);
        let elsewhere = frame(
            Ipv4Addr::new(10, 30, 1, 1),
            Ipv4Addr::new(10, 0, 0, 1),
            64,
            transport(1, 80, "S"),
            b"",
        );
        assert_eq!(
            xdp.run(&elsewhere, 0).unwrap().0,
            PASS,
            "only services are protected"
        );
        xdp.set_protection(&lists(&[])).unwrap();
        assert_eq!(server_of(&mut xdp, &bad), 1);
        assert!(xdp.dump("sources4").unwrap().is_empty());
    });
}

/// Each list holds a million prefixes: /24 of IPv4, /64 of IPv6.
#[test]
fn a_million_listed_sources() {
    const COUNT: u32 = 1_000_000;
    let v4 = |number: u32, host: u32| Ipv4Addr::from(0x2000_0000 + number * 256 + host);
    let v6 = |number: u32, host: u16| {
        let [high, low] = [(number >> 16) as u16, number as u16];
        Ipv6Addr::new(0x2001, 0xdb8, high, low, 0, 0, 0, host)
    };
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1]);
        planned.id.address = VIP.into();
        let mut six = planned.clone();
        six.id.address = v6(COUNT * 2, 100).into();
        let vip6 = v6(COUNT * 2, 100);
        let mut xdp = load(SMALL);
        apply(&mut xdp, vec![planned, six]);
        resolve(&mut xdp, 1, INGRESS);
        let list = |of: &dyn Fn(u32) -> IpPrefix| -> Vec<_> {
            (0..COUNT)
                .map(|number| (of(number), SourceRule::Block))
                .collect()
        };
        let mut sources = list(&|number| IpPrefix {
            address: v4(number, 0).into(),
            length: 24,
        });
        sources.extend(list(&|number| IpPrefix {
            address: v6(number, 0).into(),
            length: 64,
        }));
        xdp.set_protection(&Protection {
            sources,
            ..Protection::default()
        })
        .unwrap();
        let six = |from: Ipv6Addr| {
            let mut frame = frame(CLIENT, VIP, 64, transport(1, 80, "S"), b"");
            let tcp = frame.split_off(34);
            frame.truncate(12);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 64]);
            frame.extend(from.octets());
            frame.extend(vip6.octets());
            frame.extend(tcp);
            frame
        };
        let run = |xdp: &mut Xdp, frame: &[u8]| xdp.run(frame, 0).unwrap().0;
        for number in [0, 1, 499_999, 999_999] {
            assert_eq!(run(&mut xdp, &packet(v4(number, 9), 1, "S")), DROP);
            assert_eq!(run(&mut xdp, &six(v6(number, 9))), DROP);
        }
        assert_eq!(server_of(&mut xdp, &packet(v4(COUNT, 0), 1, "S")), 1);
        assert_eq!(run(&mut xdp, &six(v6(COUNT, 1))), TX);
        // One more than there is room for is an error that names it, and the list stays in force.
        let mut longer = list(&|number| IpPrefix {
            address: v6(number, 0).into(),
            length: 64,
        });
        longer.extend((0..60_000).map(|number| {
            let address = v6(COUNT + number, 0).into();
            (
                IpPrefix {
                    address,
                    length: 65,
                },
                SourceRule::Block,
            )
        }));
        let longer = Protection {
            sources: longer,
            ..Protection::default()
        };
        let refused = xdp.set_protection(&longer).unwrap_err().to_string();
        assert!(refused.contains("list the source 2001:db8:"), "{refused}");
        assert_eq!(run(&mut xdp, &six(v6(0, 9))), DROP);
    });
}

/// A real server that is down has no place in a table, whether its flows move or are reset: nobody is refused for
/// its sake, and the others' places are the same.
#[test]
fn one_that_is_down_has_no_places() {
    in_namespace(|_| {
        for scheduler in [Scheduler::Mh, Scheduler::Sh] {
            let servers = |state: BackendState| -> Vec<u8> {
                let mut planned = with(scheduler, &[1, 1, 1]);
                let mut xdp = ready(planned.clone());
                planned.backends[1].state = state;
                apply(&mut xdp, vec![planned]);
                let choice = |number| server_of(&mut xdp, &packet(client(number), 9, "S"));
                (0..60).map(choice).collect()
            };
            let down = servers(Down);
            assert!(!down.contains(&2));
            assert_eq!(servers(Resetting), down, "{scheduler}");
        }
    });
}

/// SCTP is active once it is established, as in IPVS: not with the INIT.
#[test]
fn sctp_is_active_once_it_is_established() {
    const INIT: u8 = 1;
    const COOKIE_ECHO: u8 = 10;
    const SHUTDOWN: u8 = 7;
    in_namespace(|_| {
        let mut planned = with(Scheduler::Wlc, &[1]);
        planned.id.protocol = Sctp;
        let mut xdp = ready(planned);
        for (chunk, expected) in [(INIT, (0, 1)), (COOKIE_ECHO, (1, 0)), (SHUTDOWN, (0, 1))] {
            let ip = packet(client(1), 7, "S");
            let mut frame = ip[..34].to_vec();
            frame.extend([0, 7, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4]);
            frame[16..18].copy_from_slice(&36_u16.to_be_bytes());
            frame[23] = 132;
            assert_eq!(xdp.run(&frame, 0).unwrap().0, TX);
            xdp.sweep();
            let backend = xdp.snapshot().services.remove(0).backends.remove(0);
            assert_eq!(
                (backend.active, backend.inactive),
                expected,
                "chunk {chunk}"
            );
        }
    });
}

#[test]
fn rates_of_new_connections() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1]);
        planned.rate = Some(RateLimit {
            per_second: 1,
            burst: 50,
        });
        let mut xdp = ready(planned);
        xdp.set_protection(&Protection {
            source_rate: Some(RateLimit {
                per_second: 1,
                burst: 10,
            }),
            sources: vec![(
                IpPrefix {
                    address: client(9).into(),
                    length: 32,
                },
                SourceRule::Allow,
            )],
            ..Protection::default()
        })
        .unwrap();
        let mut opened = |number: u32, count: u16| -> usize {
            (0..count)
                .filter(|port| {
                    xdp.run(&packet(client(number), 100 + port, "S"), 0)
                        .unwrap()
                        .0
                        == TX
                })
                .count()
        };
        let within = |count: usize, burst: usize| (burst..=burst + 2).contains(&count);
        assert!(within(opened(1, 30), 10), "one source has its burst");
        assert!(within(opened(2, 30), 10), "and so has another");
        assert_eq!(opened(9, 100), 100, "allowed sources are not limited");
        let rest: usize = (20..30).map(|number| opened(number, 30)).sum();
        assert!(within(rest, 30), "the service takes 50 in all: {rest}");
        assert!(passed(&mut xdp, "source_rate") > 0);
        assert!(passed(&mut xdp, "service_rate") > 0);
        assert_eq!(
            xdp.run(&packet(client(1), 100, "A"), 0).unwrap().0,
            TX,
            "known flows go on"
        );
    });
}
