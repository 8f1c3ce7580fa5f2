//! The same services and the same clients: the same real servers, in XDP and in IPVS.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use lb_user::{
    dataplane::plan::{
        BackendState::{Down, Draining, Inhibited, Up},
        PlannedBackend, PlannedService,
    },
    model::{Hashing, Persistence, Ports, Protocol::Tcp, Scheduler, Target},
};

use super::{Plane, on_both, server};
use crate::program::{VIP, direct, frame, service, transport};

/// What is asked of a data plane.
#[derive(Clone)]
enum Step {
    /// SYN and first segment of a client: both go to one real server.
    Connect(u32, u16),
    /// A SYN alone.
    Syn(u32, u16),
    /// A segment of a connection.
    Data(u32, u16),
    /// Its end.
    Fin(u32, u16),
    /// Another configuration.
    Apply(PlannedService),
}
use Step::{Apply, Connect, Data, Fin, Syn};

/// How far the answers must agree.
#[derive(Clone, Copy, PartialEq)]
enum Agree {
    /// The same real server at every step.
    Exactly,
    /// The same, with IPVS given the real servers in reverse: it begins with the last one that was added,
    /// and XDP with the first of the file. Nothing else depends on that.
    FromTheOtherEnd,
    /// As many each. IPVS gives the heaviest one its turns in a row, XDP spreads them.
    InShares,
}

struct Row {
    what: &'static str,
    agree: Agree,
    service: PlannedService,
    steps: Vec<Step>,
}

fn web(scheduler: Scheduler, weights: &[u32]) -> PlannedService {
    let servers: Vec<_> = (1..)
        .zip(weights)
        .map(|(last, weight)| (last, *weight, if *weight == 0 { Draining } else { Up }))
        .collect();
    PlannedService {
        scheduler,
        ..service(Tcp, 80, 0, &servers)
    }
}

/// The same with `change`.
fn but(service: &PlannedService, change: impl FnOnce(&mut [PlannedBackend])) -> Step {
    let mut service = service.clone();
    change(&mut service.backends);
    Apply(service)
}

fn connects(clients: std::ops::Range<u32>) -> Vec<Step> {
    clients.map(|number| Connect(number, 5_000)).collect()
}

fn rows() -> Vec<Row> {
    let mut rows = schedulers();
    rows.extend(hashed());
    rows.extend(states());
    rows
}

fn schedulers() -> Vec<Row> {
    let rr = web(Scheduler::Rr, &[1, 1, 1]);
    let lc = web(Scheduler::Lc, &[1, 1, 1]);
    let wlc = web(Scheduler::Wlc, &[1, 3, 2]);
    let fo = web(Scheduler::Fo, &[5, 9, 7]);
    // Every third connection of the first thirty ends: then they are not equal any more.
    let ends = || (0..10).map(|number| Fin(number * 3, 5_000));
    let with_ends = || -> Vec<Step> {
        connects(0..30)
            .into_iter()
            .chain(ends())
            .chain(connects(100..140))
            .collect()
    };
    vec![
        Row {
            what: "rr",
            agree: Agree::FromTheOtherEnd,
            service: rr,
            steps: connects(0..30),
        },
        Row {
            what: "wrr, ten turns",
            agree: Agree::InShares,
            service: web(Scheduler::Wrr, &[1, 3, 2]),
            steps: connects(0..60),
        },
        Row {
            what: "wrr, one server",
            agree: Agree::Exactly,
            service: web(Scheduler::Wrr, &[7]),
            steps: connects(0..10),
        },
        Row {
            what: "lc, with connections that end",
            agree: Agree::FromTheOtherEnd,
            service: lc,
            steps: with_ends(),
        },
        Row {
            what: "wlc, with connections that end",
            agree: Agree::FromTheOtherEnd,
            service: wlc,
            steps: with_ends(),
        },
        Row {
            what: "fo, the best one drained and back",
            agree: Agree::Exactly,
            steps: [
                connects(0..10),
                vec![but(&fo, |b| b[1].state = Draining)],
                connects(100..110),
                vec![Apply(fo.clone())],
                connects(200..210),
            ]
            .concat(),
            service: fo,
        },
    ]
}

/// Hashing schedulers: with flags, a real server that is drained, one that is removed, and one that returns.
fn hashed() -> Vec<Row> {
    let mut rows = Vec::new();
    for scheduler in [Scheduler::Sh, Scheduler::Mh] {
        for (what, hashing) in [
            (
                "hashing",
                Hashing {
                    port: false,
                    fallback: false,
                },
            ),
            (
                "hashing with ports and fallback",
                Hashing {
                    port: true,
                    fallback: true,
                },
            ),
        ] {
            let mut planned = web(scheduler, &[1, 3, 2, 1]);
            planned.hashing = hashing;
            rows.push(Row {
                what,
                agree: Agree::Exactly,
                steps: [
                    connects(0..200),
                    vec![but(&planned, |b| b[2].state = Draining)],
                    connects(500..700),
                    vec![but(&planned, |b| b[1].state = Down)],
                    connects(1_000..1_200),
                    vec![Apply(planned.clone())],
                    connects(2_000..2_200),
                ]
                .concat(),
                service: planned,
            });
        }
    }
    rows
}

fn states() -> Vec<Row> {
    let rr = web(Scheduler::Rr, &[1, 1, 1]);
    let mut sticky = rr.clone();
    sticky.persistence = Some(Persistence {
        timeout: Duration::from_secs(300),
        prefix: 24,
        engine: None,
    });
    let mut limited = web(Scheduler::Rr, &[1, 1]);
    limited.backends[0].upper = 5;
    limited.backends[0].lower = 3;
    let mut sorry = rr.clone();
    sorry.backends.push(PlannedBackend {
        sorry: true,
        ..PlannedBackend::new(Target::Host(server(VIP.into(), 9)), 1, Draining)
    });
    let all_down = |backends: &mut [PlannedBackend]| {
        backends[..3].iter_mut().for_each(|b| b.state = Down);
        backends[3].state = Up;
    };
    let mut local = sorry.clone();
    local.backends[3].target = Target::Local;
    // Clients of three networks, five of each in turn.
    let networks = |port| (0..15_u32).map(move |n| Connect((n % 3) * 256 + n, port));
    let datas = |clients: std::ops::Range<u32>| clients.map(|n| Data(n, 5_000)).collect::<Vec<_>>();
    vec![
        Row {
            what: "a client's network sticks to its server, also to one that is drained",
            agree: Agree::FromTheOtherEnd,
            steps: networks(5_000)
                .chain([but(&sticky, |b| b[0].state = Draining)])
                .chain(networks(6_000))
                .collect(),
            service: sticky.clone(),
        },
        Row {
            what: "new networks do not get the drained one",
            agree: Agree::InShares,
            steps: networks(5_000)
                .chain([but(&sticky, |b| b[0].state = Draining)])
                .chain((1..5).map(|n| Connect(n * 10_000, 1)))
                .collect(),
            service: sticky,
        },
        Row {
            what: "thresholds",
            agree: Agree::FromTheOtherEnd,
            service: limited,
            steps: connects(0..20),
        },
        Row {
            what: "weight 0: connections stay, new ones go elsewhere",
            agree: Agree::InShares,
            steps: [
                connects(0..9),
                vec![but(&rr, |b| b[1].state = Draining)],
                datas(0..9),
                connects(100..110),
            ]
            .concat(),
            service: rr.clone(),
        },
        Row {
            what: "inhibited: the same",
            agree: Agree::InShares,
            steps: [
                connects(0..9),
                vec![but(&rr, |b| b[2].state = Inhibited)],
                datas(0..9),
                connects(100..110),
            ]
            .concat(),
            service: rr.clone(),
        },
        Row {
            what: "removed: new connections of the same ports go elsewhere",
            agree: Agree::InShares,
            steps: [
                connects(0..9),
                vec![but(&rr, |b| b[0].state = Down)],
                connects(100..110),
            ]
            .concat(),
            service: rr.clone(),
        },
        Row {
            what: "no server left: nobody gets anything",
            agree: Agree::Exactly,
            steps: vec![
                but(&rr, |b| b.iter_mut().for_each(|b| b.state = Down)),
                Syn(1, 5_000),
                Syn(2, 5_000),
            ],
            service: rr,
        },
        Row {
            what: "a sorry server while all are down; who reads it goes on",
            agree: Agree::InShares,
            steps: [
                vec![but(&sorry, all_down)],
                connects(0..5),
                vec![Apply(sorry.clone())],
                datas(0..5),
                connects(100..103),
            ]
            .concat(),
            service: sorry,
        },
        Row {
            what: "the director's own stack as sorry server",
            agree: Agree::Exactly,
            steps: vec![but(&local, all_down), Syn(1, 5_000), Syn(2, 5_000)],
            service: local,
        },
    ]
}

fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a14_0000 + number)
}

/// Where a segment goes: the last byte of the real server's address, 0 for the director itself.
fn ask(plane: &mut dyn Plane, vport: u16, (number, port): (u32, u16), flags: &str) -> u8 {
    let packet = frame(client(number), VIP, 64, transport(port, vport, flags), b"");
    let sent = plane.send(&packet);
    sent.first().map_or(0, |out| {
        assert_eq!(sent, [direct(&packet, out[5])]);
        out[5]
    })
}

/// Where every packet of a row went. Each row has a port of its own: flows outlive their service.
fn play(plane: &mut dyn Plane, row: &Row, vport: u16) -> Vec<u8> {
    let reversed = plane.name() == "IPVS" && row.agree == Agree::FromTheOtherEnd;
    let given = |service: &PlannedService| {
        let mut service = service.clone();
        service.id.ports = Ports::one(vport);
        if reversed {
            service.backends.reverse();
        }
        vec![service]
    };
    plane.apply(given(&row.service));
    let mut homes = BTreeMap::new();
    let mut answers = Vec::new();
    for step in &row.steps {
        let answer = match step {
            Connect(number, port) => {
                let server = ask(plane, vport, (*number, *port), "S");
                let again = ask(plane, vport, (*number, *port), "A");
                assert_eq!(again, server, "{}: client {number}", row.what);
                homes.insert((*number, *port), server);
                server
            }
            Syn(number, port) => ask(plane, vport, (*number, *port), "S"),
            Data(number, port) => {
                let server = ask(plane, vport, (*number, *port), "A");
                assert_eq!(
                    server,
                    homes[&(*number, *port)],
                    "{}: client {number}",
                    row.what
                );
                server
            }
            Fin(number, port) => ask(plane, vport, (*number, *port), "FA"),
            Apply(service) => {
                plane.apply(given(service));
                continue;
            }
        };
        answers.push(answer);
    }
    plane.apply(Vec::new());
    answers
}

fn shares(answers: &[u8]) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(*answer).or_default() += 1;
    }
    shares
}

#[test]
fn the_same_clients_get_the_same_servers() {
    let rows = rows();
    let all = |plane: &mut dyn Plane| -> Vec<Vec<u8>> {
        rows.iter()
            .zip(8_000..)
            .map(|(row, vport)| play(plane, row, vport))
            .collect()
    };
    let [xdp, ipvs] = on_both(all);
    let mut faults = Vec::new();
    for ((row, ours), theirs) in rows.iter().zip(&xdp).zip(&ipvs) {
        let (scheduler, what) = (row.service.scheduler, row.what);
        println!(
            "{scheduler} {what}: XDP {:?}, IPVS {:?}",
            shares(ours),
            shares(theirs)
        );
        let agree = match row.agree {
            Agree::Exactly | Agree::FromTheOtherEnd => ours == theirs,
            Agree::InShares => shares(ours) == shares(theirs),
        };
        if !agree {
            faults.push(format!(
                "{scheduler} {what}:\n  XDP  {ours:?}\n  IPVS {theirs:?}"
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Two more segments of each connection whose server went down.
#[test]
fn connections_of_a_server_that_is_down() {
    let vport = 7_999;
    let mut service = web(Scheduler::Rr, &[1, 1, 1]);
    service.id.ports = Ports::one(vport);
    let mut without = service.clone();
    without.backends[0].state = Down;
    let orphans = |plane: &mut dyn Plane| -> Vec<[u8; 2]> {
        plane.apply(vec![service.clone()]);
        let homes: Vec<(u32, u8)> = (0..9)
            .map(|number| {
                let home = ask(plane, vport, (number, 5_000), "S");
                assert_eq!(ask(plane, vport, (number, 5_000), "A"), home);
                (number, home)
            })
            .collect();
        plane.apply(vec![without.clone()]);
        let mut again = |number: u32| ask(plane, vport, (number, 5_000), "A");
        let lost = homes.into_iter().filter(|(_, home)| *home == 1);
        lost.map(|(number, _)| [again(number), again(number)])
            .collect()
    };
    let [xdp, ipvs] = on_both(orphans);
    assert_eq!((xdp.len(), ipvs.len()), (3, 3));
    // XDP gives them to another one, and stays with it; IPVS to nobody.
    assert!(
        xdp.iter()
            .all(|[first, second]| [2, 3].contains(first) && first == second),
        "{xdp:?}"
    );
    assert_eq!(ipvs, [[0, 0]; 3]);
}
