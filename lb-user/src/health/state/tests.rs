use super::*;

const TIMING: Timing = Timing {
    interval: Duration::from_secs(5),
    rising_interval: Duration::from_secs(2),
    down_interval: Duration::from_secs(9),
    rise: 1,
    fall: 1,
    retries: 0,
    delay_before_retry: Duration::from_millis(300),
    warmup: Duration::ZERO,
    jitter: 0,
};

/// Attempts: `+` passed, `-` failed, `U` and `D` told so, `?` nothing. What each changes: `u`, `d`,
/// `.`. What is waited for then: the `i`nterval, the one while `r`ising or `d`own, the delay before a
/// retry (`t`).
fn run(health: Health, timing: &Timing, attempts: &str) -> (String, String) {
    let mut state = CheckState::new(health, 1);
    let (mut changes, mut waits) = (String::new(), String::new());
    for attempt in attempts.chars() {
        let attempt = match attempt {
            '+' => Attempt::Passed,
            '-' => Attempt::Failed,
            'U' => Attempt::Told(Health::Up),
            'D' => Attempt::Told(Health::Down),
            '?' => Attempt::Nothing,
            other => panic!("no attempt is written {other}"),
        };
        let next = state.attempt(attempt, timing);
        changes.push(match next.change {
            Some(Health::Up) => 'u',
            Some(Health::Down) => 'd',
            None => '.',
        });
        waits.push(match next.wait {
            wait if wait == TIMING.interval => 'i',
            wait if wait == TIMING.rising_interval => 'r',
            wait if wait == TIMING.down_interval => 'd',
            wait if wait == TIMING.delay_before_retry => 't',
            other => panic!("waits {other:?}"),
        });
    }
    (changes, waits)
}

#[test]
fn runs_of_attempts() {
    use Health::{Down, Up};
    // Begins as, rise, fall, retries; attempts, changes, waits.
    let rows = [
        (Up, 1, 1, 0, "-", "d", "d"),
        (Up, 1, 1, 0, "+-+", ".du", "idi"),
        (Up, 1, 1, 2, "---", "..d", "ttd"),
        (Up, 1, 1, 2, "--+--", ".....", "ttitt"),
        (Up, 1, 1, 2, "---++", "..du.", "ttdii"),
        (Up, 1, 1, 1, "-----", ".d...", "tdddd"),
        (Up, 1, 1, 1, "--+--", ".du.d", "tditd"),
        // No retries while down: nothing depends on them.
        (Down, 1, 1, 3, "--+", "..u", "ddi"),
        (Down, 3, 1, 0, "+++", "..u", "rri"),
        (Down, 3, 1, 0, "++-+++", ".....u", "rrdrri"),
        (Up, 1, 3, 0, "---", "..d", "iid"),
        (Up, 1, 3, 0, "--+---", ".....d", "iiiiid"),
        // A failure is an attempt and all its retries.
        (Up, 1, 2, 1, "----", "...d", "titd"),
        (Up, 1, 2, 1, "---+----", ".......d", "titititd"),
        // A server that says what it is needs no second saying.
        (Up, 3, 3, 3, "DU", "du", "di"),
        (Up, 3, 3, 3, "UDD", ".d.", "idd"),
        // What says nothing changes nothing, and forgets nothing.
        (Up, 1, 2, 0, "-?-", "..d", "iid"),
        (Down, 2, 1, 0, "+?+", "..u", "rdi"),
        (Down, 1, 1, 0, "???", "...", "ddd"),
    ];
    for (begins, rise, fall, retries, attempts, changes, waits) in rows {
        let timing = Timing {
            rise,
            fall,
            retries,
            ..TIMING
        };
        let seen = run(begins, &timing, attempts);
        let what = format!("{begins:?} rise {rise} fall {fall} retries {retries}: {attempts}");
        assert_eq!(
            (seen.0.as_str(), seen.1.as_str()),
            (changes, waits),
            "{what}"
        );
    }
}

#[test]
fn jitter_stays_within_its_bounds_and_follows_the_seed() {
    let timing = Timing {
        jitter: 10,
        ..TIMING
    };
    let waits = |seed| {
        let mut state = CheckState::new(Health::Up, seed);
        let mut wait = || state.attempt(Attempt::Passed, &timing).wait;
        (0..1_000).map(|_| wait()).collect::<Vec<_>>()
    };
    let some = waits(7);
    assert_eq!(some, waits(7));
    assert_ne!(some, waits(8));
    let (least, most) = (some.iter().min().unwrap(), some.iter().max().unwrap());
    assert!(*least >= Duration::from_millis(4_500) && *least < Duration::from_millis(4_550));
    assert!(*most <= Duration::from_millis(5_500) && *most > Duration::from_millis(5_450));
    let mean = some.iter().sum::<Duration>() / 1_000;
    assert!(
        mean.abs_diff(TIMING.interval) < Duration::from_millis(50),
        "{mean:?}"
    );
}
