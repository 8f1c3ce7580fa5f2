//! What `lbctl why` predicts of a new connection is what then becomes of it.

use std::time::Duration;

use lb_user::{
    dataplane::{
        DataPlane, Why, WhyQuery,
        plan::{
            BackendState::{Down, Draining, Resetting, Up},
            PlannedService,
        },
        xdp::Xdp,
    },
    model::{Hashing, Persistence, RateLimit, Scheduler},
};

use crate::{
    choosing::{client, connect, packet, ready, with},
    program::{TX, VIP, apply, in_namespace},
};

fn asked(xdp: &Xdp, number: u32) -> Why {
    xdp.why(&WhyQuery {
        client: format!("{}:5000", client(number)),
        vip: format!("{VIP}:80"),
        protocol: None,
    })
    .unwrap()
}

/// One set-up after the other: sixty clients are asked about, then connect.
#[test]
fn comes_true() {
    let base = |scheduler, weights: &[u32]| with(scheduler, weights);
    let change = |mut planned: PlannedService, change: fn(&mut PlannedService)| {
        change(&mut planned);
        planned
    };
    let rows = [
        ("rr", base(Scheduler::Rr, &[1, 1, 1])),
        ("wrr", base(Scheduler::Wrr, &[1, 3, 2])),
        ("lc", base(Scheduler::Lc, &[1, 1, 1])),
        ("wlc", base(Scheduler::Wlc, &[1, 5, 2])),
        ("fo", base(Scheduler::Fo, &[1, 9, 5])),
        ("sh", base(Scheduler::Sh, &[1, 2, 1])),
        ("mh", base(Scheduler::Mh, &[1, 2, 1])),
        (
            "wrr with a threshold",
            change(base(Scheduler::Wrr, &[1, 3, 2]), |planned| {
                planned.backends[1].upper = 7;
            }),
        ),
        (
            "wrr, the heavy one full: the ring has hardly anybody else",
            change(base(Scheduler::Wrr, &[1, 1000]), |planned| {
                planned.backends[1].upper = 5;
            }),
        ),
        (
            "lc with thresholds",
            change(base(Scheduler::Lc, &[1, 1, 1]), |planned| {
                planned.backends[0].upper = 3;
                planned.backends[2].upper = 4;
            }),
        ),
        (
            "mh, one drained, with fallback",
            change(base(Scheduler::Mh, &[1, 2, 1]), |planned| {
                planned.hashing = Hashing {
                    port: true,
                    fallback: true,
                };
                planned.backends[1].state = Draining;
            }),
        ),
        (
            "sh with a threshold and fallback",
            change(base(Scheduler::Sh, &[1, 2, 1]), |planned| {
                planned.hashing = Hashing {
                    port: false,
                    fallback: true,
                };
                planned.backends[1].upper = 6;
            }),
        ),
        (
            "persistence of networks",
            change(base(Scheduler::Rr, &[1, 1, 1]), |planned| {
                planned.persistence = Some(Persistence {
                    timeout: Duration::from_secs(60),
                    prefix: 28,
                    engine: None,
                });
            }),
        ),
    ];
    for (name, planned) in rows {
        in_namespace(|_| {
            let mut xdp = ready(planned);
            for number in 0..60 {
                let predicted = asked(&xdp, number);
                let server = connect(&mut xdp, client(number), 5000);
                assert_eq!(
                    predicted.backend.as_deref(),
                    Some(format!("10.0.0.{server}").as_str()),
                    "{name}, client {number}: {predicted:?}"
                );
            }
        });
    }
}

#[test]
fn names_the_full_server_and_the_rate() {
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1]);
        planned.backends[0].upper = 2;
        let mut xdp = ready(planned);
        for number in 0..2 {
            connect(&mut xdp, client(number), 5000);
        }
        let full = asked(&xdp, 9);
        assert_eq!(
            (full.backend.as_deref(), full.because.as_str()),
            (None, "no_backend")
        );
        assert!(
            full.steps
                .iter()
                .any(|step| step.contains("2 connections, and its upper threshold is 2")),
            "{full:?}"
        );
    });
    in_namespace(|_| {
        let mut planned = with(Scheduler::Rr, &[1]);
        planned.rate = Some(RateLimit {
            per_second: 1,
            burst: 3,
        });
        let mut xdp = ready(planned);
        for number in 0..3 {
            assert_eq!(asked(&xdp, number).because, "ring");
            assert_eq!(
                xdp.run(&packet(client(number), 5000, "S"), 0).unwrap().0,
                TX
            );
        }
        assert_eq!(asked(&xdp, 9).because, "service_rate");
    });
}

/// What becomes of the next packet of a connection, when its real server has changed since.
#[test]
fn tells_of_known_flows() {
    in_namespace(|_| {
        for (state, because, step) in [
            (Up, "flow", "forwarded to 10.0.0.1 by direct return"),
            (Draining, "flow", "forwarded to 10.0.0.1 by direct return"),
            (Resetting, "reset", "its connections are reset"),
            (Down, "ring", "no flow of this client is known"),
        ] {
            let mut planned = with(Scheduler::Rr, &[1, 1]);
            let mut xdp = ready(planned.clone());
            connect(&mut xdp, client(1), 5000);
            let first = asked(&xdp, 1);
            assert_eq!(first.because, "flow");
            let gone = usize::from(first.backend.as_deref() != Some("10.0.0.1"));
            planned.backends[gone].state = state;
            apply(&mut xdp, vec![planned]);
            let why = asked(&xdp, 1);
            assert_eq!(why.because, because, "{state:?}: {why:?}");
            let step = step.replace("10.0.0.1", first.backend.as_deref().unwrap());
            assert!(
                why.steps.iter().any(|s| s.contains(&step)),
                "{state:?}: {why:?}"
            );
        }
    });
}
