//! The short form of `cargo xtask soak`. A test program of its own, so that no other test runs beside it:
//! it keeps every core busy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use lab::soak;

/// What the length of this run allows; `cargo xtask soak` runs for minutes.
const TIME: Duration = Duration::from_secs(20);
/// Adverts in that time, one every 10 ms, of which a busy machine may delay some.
const ADVERTS: u64 = 1_900;

/// A run in which the machine stood still says nothing about lbd; so many are tried.
const ATTEMPTS: usize = 3;

#[test]
fn no_false_failover_while_every_core_is_busy() {
    let mut runs = (0..ATTEMPTS).map(|_| soak::run(TIME, |_, _| ()).unwrap());
    let soak = runs.find(|soak| soak.is_quiet() || !soak.stood_still());
    let soak = soak.expect("a machine that does not stand still");
    assert!(soak.is_quiet(), "{soak:#?}");
    let [master, backup] = soak.directors.as_slice() else {
        panic!("{soak:?}");
    };
    // The pair spoke all the time: silence would have no transitions either.
    assert!(master.sent >= ADVERTS, "{master:?}");
    assert!(backup.received >= ADVERTS, "{backup:?}");
    assert_eq!((backup.sent, backup.rejected), (0, 0), "{backup:?}");
}
