//! Tables of what becomes of pools.

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(index: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, index as u8])
}

/// Real servers of these weights; those named are down.
fn servers(weights: &[u32], down: &[usize]) -> Vec<Server> {
    let server = |(index, weight): (usize, &u32)| Server {
        address: address(index),
        weight: *weight,
        up: !down.contains(&index),
        down_for: None,
    };
    weights.iter().enumerate().map(server).collect()
}

fn rules(quorum: u32, hysteresis: u32) -> PoolRules {
    PoolRules {
        quorum,
        hysteresis,
        ..PoolRules::default()
    }
}

/// Quorum and hysteresis, and live weights one after the other with whether there is a quorum then:
/// gained at quorum + hysteresis, lost at 0 or below quorum - hysteresis, as keepalived defines it.
#[test]
fn quorum_and_hysteresis() {
    type Row<'a> = (&'a str, u32, u32, &'a [(u32, bool)]);
    let rows: &[Row<'_>] = &[
        (
            "defaults",
            1,
            0,
            &[(0, false), (1, true), (5, true), (0, false), (1, true)],
        ),
        (
            "no hysteresis",
            3,
            0,
            &[(2, false), (3, true), (2, false), (3, true)],
        ),
        (
            "hysteresis 1 of 3",
            3,
            1,
            &[
                (3, false),
                (4, true),
                (3, true),
                (2, true),
                (1, false),
                (3, false),
                (4, true),
            ],
        ),
        (
            "lost at 0 whatever the hysteresis",
            5,
            4,
            &[(9, true), (1, true), (0, false), (8, false), (9, true)],
        ),
    ];
    for (what, quorum, hysteresis, steps) in rows {
        let mut pool = Pool::default();
        let mut before = false;
        for (index, (live, expected)) in steps.iter().enumerate() {
            let now = at(10 * index as u64);
            let turns = pool.look(&rules(*quorum, *hysteresis), &servers(&[*live], &[]), now);
            assert_eq!(pool.has_quorum(), *expected, "{what}: step {index}");
            let live = u64::from(*live);
            let told = match (before, *expected) {
                (false, true) => {
                    matches!(turns[..], [Turn::QuorumGained { live: l, .. }] if l == live)
                }
                (true, false) => {
                    matches!(turns[..], [Turn::QuorumLost { live: l, .. }] if l == live)
                }
                (false, false) | (true, true) => turns.is_empty(),
            };
            assert!(told, "{what}: step {index}: {turns:?}");
            before = *expected;
        }
    }
}

#[test]
fn the_weights_of_those_that_are_down_do_not_count() {
    let mut pool = Pool::default();
    let rules = rules(4, 0);
    pool.look(&rules, &servers(&[1, 3, 2], &[]), at(0));
    assert_eq!((pool.live(), pool.has_quorum()), (6, true));
    let turns = pool.look(&rules, &servers(&[1, 3, 2], &[1]), at(7));
    let lost = Turn::QuorumLost {
        live: 3,
        lasted: at(7),
    };
    assert_eq!(turns, [lost]);
    assert_eq!(pool.is_in_use(address(1)), Some(false));
    assert_eq!(pool.is_in_use(address(9)), None);
}

/// Threshold in per cent, and times with those that are down, in use, and whether there is a panic.
#[test]
fn the_panic_guard() {
    type Step<'a> = (u64, &'a [usize], &'a [usize], bool);
    type Row<'a> = (&'a str, Option<u8>, &'a [Step<'a>]);
    let rows: &[Row<'_>] = &[
        (
            "without a guard",
            None,
            &[
                (0, &[], &[0, 1, 2, 3], false),
                (1, &[0, 1, 2, 3], &[], false),
            ],
        ),
        (
            "all at once",
            Some(50),
            &[
                (0, &[], &[0, 1, 2, 3], false),
                (1, &[0, 1, 2, 3], &[0, 1, 2, 3], true),
                // It lasts as long as they fail, whatever the window.
                (900, &[0, 1, 2, 3], &[0, 1, 2, 3], true),
                (901, &[0, 1, 2], &[0, 1, 2, 3], true),
                // Two of four are not more than half: they go now, and do not begin it anew.
                (902, &[0, 1], &[2, 3], false),
                (903, &[0, 1], &[2, 3], false),
                (904, &[], &[0, 1, 2, 3], false),
            ],
        ),
        (
            "one after the other within the window",
            Some(50),
            &[
                (0, &[], &[0, 1, 2, 3], false),
                (1, &[0], &[1, 2, 3], false),
                (20, &[0, 1], &[2, 3], false),
                (40, &[0, 1, 2], &[0, 1, 2, 3], true),
                (50, &[0, 1, 2, 3], &[0, 1, 2, 3], true),
            ],
        ),
        (
            "one that was dead before is not kept",
            Some(50),
            &[
                (0, &[], &[0, 1, 2, 3], false),
                (1, &[0], &[1, 2, 3], false),
                (100, &[0, 1, 2], &[3], false),
                (101, &[0, 1, 2, 3], &[1, 2, 3], true),
            ],
        ),
        (
            "slow deaths are none",
            Some(50),
            &[
                (0, &[], &[0, 1, 2, 3], false),
                (100, &[0], &[1, 2, 3], false),
                (200, &[0, 1], &[2, 3], false),
                (300, &[0, 1, 2], &[3], false),
                (400, &[0, 1, 2, 3], &[], false),
            ],
        ),
        (
            "who was never up has not failed",
            Some(50),
            &[
                (0, &[0, 1, 2, 3], &[], false),
                (1, &[0, 1, 2, 3], &[], false),
            ],
        ),
    ];
    for (what, threshold, steps) in rows {
        let rules = PoolRules {
            panic_threshold: *threshold,
            ..PoolRules::default()
        };
        let mut pool = Pool::default();
        for (now, down, in_use, panic) in *steps {
            let servers = servers(&[1; 4], down);
            let turns = pool.look(&rules, &servers, at(*now));
            let seen: Vec<usize> = (0..4)
                .filter(|index| pool.is_in_use(address(*index)) == Some(true))
                .collect();
            assert_eq!(seen, *in_use, "{what} at {now}: {turns:?}");
            assert_eq!(pool.panic_since().is_some(), *panic, "{what} at {now}");
            assert_eq!(pool.has_quorum(), !in_use.is_empty(), "{what} at {now}");
        }
    }
}

/// For how many seconds each server has been down when the daemon begins, and who is in use then; who is down
/// besides after 30 s, within the window, and who is in use then.
#[test]
fn a_panic_outlives_the_daemon() {
    type Row<'a> = (&'a [Option<u64>], &'a [usize], usize, &'a [usize]);
    let rows: &[Row<'_>] = &[
        (
            &[Some(500), Some(490), Some(470), None],
            &[0, 1, 2, 3],
            3,
            &[0, 1, 2, 3],
        ),
        // Old failures are not made fresh by the new daemon.
        (&[Some(500), Some(490), None, None], &[2, 3], 2, &[3]),
        // Fresh ones stay fresh.
        (&[Some(5), Some(3), None, None], &[2, 3], 2, &[0, 1, 2, 3]),
        // One was dead long before.
        (&[Some(9_000), Some(490), Some(470), None], &[3], 3, &[]),
        (
            &[Some(9_000), Some(490), Some(470), Some(470)],
            &[1, 2, 3],
            3,
            &[1, 2, 3],
        ),
    ];
    let rules = PoolRules {
        panic_threshold: Some(50),
        ..PoolRules::default()
    };
    for (down_for, in_use, next, in_use_then) in rows {
        let mut servers = servers(&[1; 4], &[]);
        for (server, seconds) in servers.iter_mut().zip(*down_for) {
            server.up = seconds.is_none();
            server.down_for = seconds.map(at);
        }
        let mut pool = Pool::default();
        let seen = |pool: &Pool| -> Vec<usize> {
            (0..4)
                .filter(|index| pool.is_in_use(address(*index)) == Some(true))
                .collect()
        };
        pool.look(&rules, &servers, at(0));
        assert_eq!(seen(&pool), *in_use, "{down_for:?}");
        servers[*next].up = false;
        servers[*next].down_for = Some(at(0));
        pool.look(&rules, &servers, at(30));
        assert_eq!(seen(&pool), *in_use_then, "{down_for:?}, then {next}");
    }
}

#[test]
fn a_panic_ends_when_its_rule_goes() {
    let guarded = PoolRules {
        panic_threshold: Some(50),
        ..PoolRules::default()
    };
    let mut pool = Pool::default();
    pool.look(&guarded, &servers(&[1; 2], &[]), at(0));
    let turns = pool.look(&guarded, &servers(&[1; 2], &[0, 1]), at(1));
    assert_eq!(turns, [Turn::Panic { failed: 2, all: 2 }]);
    assert_eq!(pool.held().len(), 2);
    let turns = pool.look(&PoolRules::default(), &servers(&[1; 2], &[0, 1]), at(5));
    let calm = Turn::Calm {
        failed: 2,
        lasted: at(4),
    };
    let lost = Turn::QuorumLost {
        live: 0,
        lasted: at(5),
    };
    assert_eq!(turns, [calm, lost]);
}

/// Seconds after the return, the step, and when the next one is due.
#[test]
fn a_weight_grows_in_steps() {
    let rules = PoolRules {
        slow_start: at(20),
        ..PoolRules::default()
    };
    let mut pool = Pool::default();
    // Those that were there from the beginning have their weight.
    pool.look(&rules, &servers(&[4, 4], &[]), at(0));
    assert_eq!(pool.step(&rules, address(0), at(0)), RAMP_STEPS);
    assert_eq!(pool.next_step(&rules, at(0)), None);
    pool.look(&rules, &servers(&[4, 4], &[1]), at(50));
    assert_eq!(pool.next_step(&rules, at(50)), None);
    let rows = [
        (100, 1, Some(102)),
        (101, 1, Some(102)),
        (102, 2, Some(104)),
        (111, 6, Some(112)),
        (117, 9, Some(118)),
        (118, 10, None),
        (200, 10, None),
    ];
    for (now, step, next) in rows {
        pool.look(&rules, &servers(&[4, 4], &[]), at(now));
        assert_eq!(pool.step(&rules, address(1), at(now)), step, "at {now}");
        assert_eq!(pool.step(&rules, address(0), at(now)), RAMP_STEPS);
        assert_eq!(pool.next_step(&rules, at(now)), next.map(at), "at {now}");
    }
    // One that dies in the middle begins anew.
    pool.look(&rules, &servers(&[4, 4], &[1]), at(300));
    pool.look(&rules, &servers(&[4, 4], &[]), at(301));
    pool.look(&rules, &servers(&[4, 4], &[1]), at(310));
    assert_eq!(pool.next_step(&rules, at(310)), None);
    pool.look(&rules, &servers(&[4, 4], &[]), at(320));
    assert_eq!(pool.step(&rules, address(1), at(321)), 1);
}

#[test]
fn who_was_kept_needs_no_slow_start() {
    let rules = PoolRules {
        slow_start: at(20),
        panic_threshold: Some(50),
        ..PoolRules::default()
    };
    let mut pool = Pool::default();
    pool.look(&rules, &servers(&[1; 2], &[]), at(0));
    pool.look(&rules, &servers(&[1; 2], &[0, 1]), at(1));
    pool.look(&rules, &servers(&[1; 2], &[]), at(2));
    assert_eq!(pool.step(&rules, address(0), at(2)), RAMP_STEPS);
    assert!(pool.panic_since().is_none());
}
