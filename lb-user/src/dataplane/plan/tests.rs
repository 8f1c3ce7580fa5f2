use std::net::SocketAddr;

use super::*;
use crate::model::{Advice, Engine, MemberRules, PoolRules};

fn host(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 15, last).into()
}

fn service(weights: &[u32], sorry: Option<Target>, scheduler: Scheduler) -> VirtualService {
    VirtualService {
        id: ServiceId::new(Protocol::Tcp, SocketAddr::new(host(50), 80)),
        fwmark: None,
        scheduler,
        hashing: Hashing::default(),
        forwarding: Forwarding::Dr,
        persistence: None,
        one_packet: false,
        rate: None,
        instance: Some("VI_1".into()),
        sorry: sorry.into_iter().collect(),
        sorry_checks: Vec::new(),
        pool: PoolRules::default(),
        backends: (45..)
            .zip(weights)
            .map(|(last, weight)| RealServer {
                address: host(last),
                port: None,
                weight: *weight,
                upper: 0,
                lower: 0,
                checks: Vec::new(),
                member: MemberRules::default(),
            })
            .collect(),
    }
}

fn fine() -> Condition {
    Condition::default()
}

fn is_host(target: Target, last: &[u8]) -> bool {
    last.iter().any(|last| target == Target::Host(host(*last)))
}

/// Weights, which servers are down, and the turns of each backend, the sorry server last.
#[test]
fn who_gets_new_connections() {
    type Row<'a> = (&'a str, Scheduler, &'a [u32], &'a [u8], &'a [u32]);
    let rows: &[Row<'_>] = &[
        ("all up", Scheduler::Wrr, &[1, 3], &[], &[1, 3, 0]),
        (
            "rr ignores weights",
            Scheduler::Rr,
            &[1, 3],
            &[],
            &[1, 1, 0],
        ),
        ("one down", Scheduler::Wrr, &[1, 3], &[46], &[1, 0, 0]),
        (
            "all down: sorry",
            Scheduler::Wrr,
            &[1, 3],
            &[45, 46],
            &[0, 0, 1],
        ),
        (
            "all down: sorry, rr",
            Scheduler::Rr,
            &[1, 3],
            &[45, 46],
            &[0, 0, 1],
        ),
        (
            "weight 0 is drained in rr too",
            Scheduler::Rr,
            &[0, 2],
            &[],
            &[0, 1, 0],
        ),
        (
            "only weight 0 left: sorry, as weight 0 is no quorum",
            Scheduler::Wrr,
            &[0, 2],
            &[46],
            &[0, 0, 1],
        ),
    ];
    for (what, scheduler, weights, down, expected) in rows {
        let service = service(weights, Some(Target::Local), *scheduler);
        let condition = |target| Condition {
            up: !is_host(target, down),
            ..fine()
        };
        let backends = backends(&service, &condition);
        let planned = PlannedService::new(service.id, 1, *scheduler, backends);
        assert_eq!(planned.ring_weights(), *expected, "{what}");
    }
}

#[test]
fn the_sorry_server_keeps_its_readers_when_servers_return() {
    let service = service(&[1], Some(Target::Local), Scheduler::Wrr);
    let planned = backends(&service, &|_| fine());
    assert_eq!(planned[1].state, BackendState::Draining);
}

/// Three sorry servers, of which some are dead, without and with a real server that is up.
#[test]
fn dead_sorry_servers_do_not_answer_while_others_would() {
    use BackendState::{Down, Draining, Standby, Up};
    let rows: [(&[u8], bool, [BackendState; 4]); 5] = [
        (&[45], false, [Down, Up, Up, Up]),
        (&[45, 91], false, [Down, Up, Down, Up]),
        // Somebody must answer: the check may be wrong.
        (&[45, 90, 91, 92], false, [Down, Up, Up, Up]),
        (&[91], true, [Standby, Up, Down, Up]),
        // Nobody goes to the dead.
        (&[90, 91, 92], true, [Up, Draining, Draining, Draining]),
    ];
    for (dead, no_quorum, expected) in rows {
        let mut service = service(&[1], None, Scheduler::Wrr);
        service.sorry = [90, 91, 92].map(|last| Target::Host(host(last))).to_vec();
        let planned = backends(&service, &|target| Condition {
            up: !is_host(target, dead),
            no_quorum,
            ..fine()
        });
        let states: Vec<BackendState> = planned.iter().map(|backend| backend.state).collect();
        assert_eq!(states, expected, "{dead:?} {no_quorum}");
    }
}

/// What is known of the first of two servers (weights 2 and 3), and what becomes of the servers and of
/// two sorry servers.
#[test]
fn a_pool_that_fails() {
    use BackendState::{Down, Draining, Inhibited, Resetting, Standby, Unresolved, Up};
    let udp = |s: &mut VirtualService| s.id.protocol = Protocol::Udp;
    let keep = |s: &mut VirtualService| s.pool.on_down = OnDown::Keep;
    let inhibit = |s: &mut VirtualService| s.backends[0].member.inhibit = true;
    let reset = |s: &mut VirtualService| s.pool.on_down = OnDown::Reset;
    let reset_inhibited = |s: &mut VirtualService| {
        reset(s);
        inhibit(s);
    };
    let down = Condition {
        up: false,
        ..fine()
    };
    let no_quorum = Condition {
        no_quorum: true,
        ..fine()
    };
    type Change<'a> = &'a dyn Fn(&mut VirtualService);
    type Row<'a> = (&'a str, Change<'a>, Condition, Condition, [BackendState; 4]);
    let keep_udp = |s: &mut VirtualService| {
        keep(s);
        udp(s);
    };
    let inhibit_udp = |s: &mut VirtualService| {
        inhibit(s);
        udp(s);
    };
    let nobody = |s: &mut VirtualService| {
        s.sorry = vec![Target::Host(host(90)), Target::Host(host(91))];
    };
    let rows: &[Row<'_>] = &[
        (
            "moves",
            &|_| {},
            down,
            fine(),
            [Down, Up, Draining, Draining],
        ),
        (
            "keeps",
            &keep,
            down,
            fine(),
            [Inhibited, Up, Draining, Draining],
        ),
        (
            "UDP moves",
            &keep_udp,
            down,
            fine(),
            [Down, Up, Draining, Draining],
        ),
        (
            "resets",
            &reset,
            down,
            fine(),
            [Resetting, Up, Draining, Draining],
        ),
        (
            "keeps its own rather than resets",
            &reset_inhibited,
            down,
            fine(),
            [Inhibited, Up, Draining, Draining],
        ),
        (
            "inhibited",
            &inhibit,
            down,
            fine(),
            [Inhibited, Up, Draining, Draining],
        ),
        (
            "inhibited UDP",
            &inhibit_udp,
            down,
            fine(),
            [Inhibited, Up, Draining, Draining],
        ),
        (
            "inhibited and nobody else",
            &inhibit,
            down,
            down,
            [Inhibited, Down, Up, Up],
        ),
        (
            "no quorum",
            &|_| {},
            down,
            no_quorum,
            [Down, Standby, Up, Up],
        ),
        (
            "no quorum, and no sorry server to be found",
            &nobody,
            down,
            no_quorum,
            [Down, Up, Draining, Draining],
        ),
        (
            "two sorry servers",
            &|_| {},
            down,
            down,
            [Down, Down, Up, Up],
        ),
        (
            "neither alive nor to be found",
            &nobody,
            down,
            down,
            [Down, Down, Unresolved, Unresolved],
        ),
    ];
    for (what, change, first, second, expected) in rows {
        let mut service = service(&[2, 3], Some(Target::Local), Scheduler::Wrr);
        service.sorry.push(Target::Host(host(47)));
        change(&mut service);
        let condition = |target| match target {
            target if is_host(target, &[45]) => *first,
            target if is_host(target, &[46]) => *second,
            target => Condition {
                resolved: !is_host(target, &[90, 91]),
                ..fine()
            },
        };
        let planned = backends(&service, &condition);
        let states: Vec<_> = planned.iter().map(|b| b.state).collect();
        assert_eq!(states, expected, "{what}");
    }
}

/// Without sorry servers those that are alive go on.
#[test]
fn a_lost_quorum_alone_takes_nobody_out() {
    let service = service(&[2, 3], None, Scheduler::Wrr);
    let condition = |_| Condition {
        no_quorum: true,
        ..fine()
    };
    let planned = backends(&service, &condition);
    assert!(planned.iter().all(|b| b.state == BackendState::Up));
}

/// Weights, steps of ten, and shares.
#[test]
fn growing_weights_have_exact_shares() {
    type Row<'a> = (&'a [u32], &'a [u32], &'a [u32]);
    let rows: &[Row<'_>] = &[
        (&[2, 4], &[10, 10], &[2, 4]),
        (&[1, 1], &[1, 10], &[1, 10]),
        (&[1, 1], &[5, 10], &[1, 2]),
        (&[3, 1], &[7, 10], &[21, 10]),
        (&[4, 4], &[2, 2], &[1, 1]),
        (&[0, 1, 1], &[10, 3, 10], &[0, 3, 10]),
        // Not exact, but everybody has a part.
        (&[65_535, 65_534, 1], &[10, 10, 1], &[65_535, 65_534, 1]),
    ];
    for (weights, steps, expected) in rows {
        let service = service(weights, None, Scheduler::Wrr);
        let step = |target| {
            let index = service
                .backends
                .iter()
                .position(|b| Target::Host(b.address) == target);
            Condition {
                step: steps[index.unwrap()],
                ..fine()
            }
        };
        let planned = backends(&service, &step);
        let shares: Vec<u32> = planned.iter().map(|b| b.share).collect();
        assert_eq!(shares, *expected, "{weights:?} {steps:?}");
        let seen: Vec<u32> = planned.iter().map(|b| b.weight).collect();
        assert_eq!(seen, *weights, "the weight shown is the configured one");
        let service = PlannedService::new(service.id, 0, Scheduler::Wrr, planned);
        assert_eq!(service.ring_weights(), *expected);
    }
}

/// What the kernel's `last_weight` is after the same: a server of weight 5 that is drained, another weight
/// while it is, back at 7, down, and added again with nothing to give.
#[test]
fn the_latest_share_is_remembered() {
    use BackendState::{Down, Draining, Inhibited, Resetting, Unresolved, Up};
    let mut before = Plan::default();
    for (state, share, expected) in [
        (Unresolved, 5, 0),
        (Up, 5, 5),
        (Draining, 5, 5),
        (Inhibited, 6, 5),
        (Up, 7, 7),
        (Draining, 0, 7),
        (Down, 7, 7),
        (Draining, 7, 0),
        (Up, 2, 2),
        (Resetting, 2, 2),
        (Draining, 2, 0),
    ] {
        let id = ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap());
        let mut backend = PlannedBackend::new(Target::Host(host(45)), 5, state);
        backend.share = share;
        let service = PlannedService::new(id, 0, Scheduler::Mh, vec![backend]);
        let mut plan = Plan::of(vec![service]);
        plan.remember(&before);
        let last = plan.services[0].backends[0].last_share;
        assert_eq!(last, expected, "{state:?} {share}");
        before = plan;
    }
}

#[test]
fn nobody_is_sent_to_a_host_that_cannot_be_found() {
    let service = service(&[1, 1], Some(Target::Local), Scheduler::Wrr);
    let states = |lost: &[u8]| {
        let condition = |target| Condition {
            resolved: !is_host(target, lost),
            ..fine()
        };
        let planned = backends(&service, &condition);
        planned.iter().map(|b| b.state).collect::<Vec<_>>()
    };
    use BackendState::{Draining, Unresolved, Up};
    assert_eq!(states(&[46]), [Up, Unresolved, Draining]);
    assert_eq!(states(&[45, 46]), [Unresolved, Unresolved, Up]);
}

#[test]
fn an_operator_has_the_last_word() {
    let service = service(&[1, 1, 0], None, Scheduler::Wrr);
    let condition = |target| Condition {
        steered: match target {
            Target::Host(address) if address == host(45) => Some(Steering::Drain),
            Target::Host(address) if address == host(47) => Some(Steering::Weight(7)),
            _ => None,
        },
        ..fine()
    };
    let planned = backends(&service, &condition);
    let seen: Vec<_> = planned.iter().map(|b| (b.weight, b.state)).collect();
    use BackendState::{Draining, Up};
    assert_eq!(seen, [(1, Draining), (1, Up), (7, Up)]);
}

/// As ipvsadm 1.31 printed them.
#[test]
fn flags_in_the_words_of_ipvsadm() {
    let of = |vip: &str, change: &dyn Fn(&mut PlannedService)| {
        let id = ServiceId::new(Protocol::Udp, vip.parse().unwrap());
        let mut service = PlannedService::new(id, 0, Scheduler::Mh, Vec::new());
        change(&mut service);
        service.flags()
    };
    let sticky = |timeout, prefix| {
        Some(Persistence {
            timeout: std::time::Duration::from_secs(timeout),
            prefix,
            engine: None,
        })
    };
    assert_eq!(of("10.1.15.50:53", &|_| {}), "");
    let both = |s: &mut PlannedService| {
        s.hashing = Hashing {
            port: true,
            fallback: true,
        };
        s.persistence = sticky(360, 64);
    };
    let expected = " (mh-fallback,mh-port) persistent 360 mask 64";
    assert_eq!(of("[2001:db8::50]:443", &both), expected);
    let ops = |s: &mut PlannedService| {
        s.persistence = sticky(300, 24);
        s.one_packet = true;
    };
    let expected = " persistent 300 mask 255.255.255.0 ops";
    assert_eq!(of("10.1.15.50:53", &ops), expected);
    let sip = |s: &mut PlannedService| {
        ops(s);
        s.persistence.as_mut().unwrap().engine = Some(Engine::Sip);
    };
    let expected = " persistent 300 mask 255.255.255.0 pe sip ops";
    assert_eq!(of("10.1.15.50:53", &sip), expected);
    let whole = |s: &mut PlannedService| s.persistence = sticky(300, 32);
    assert_eq!(of("10.1.15.50:53", &whole), " persistent 300");
}

#[test]
fn checks_may_want_another_weight() {
    let service = service(&[4, 4, 4], None, Scheduler::Wrr);
    let advice = |target| match is_host(target, &[46]) {
        true => Advice::Drain,
        false => Advice::Percent(50),
    };
    let condition = |target| {
        let mut advised = Advised::default();
        advised.add(advice(target));
        Condition {
            steered: is_host(target, &[47]).then_some(Steering::Weight(9)),
            advised,
            ..fine()
        }
    };
    let planned = backends(&service, &condition);
    let seen: Vec<_> = planned.iter().map(|b| (b.weight, b.state)).collect();
    use BackendState::{Draining, Up};
    assert_eq!(seen, [(2, Up), (0, Draining), (9, Up)]);
}
