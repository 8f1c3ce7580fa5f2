//! The short form of `cargo xtask soak`.

use std::time::Duration;

use lab::soak;

/// What the length of this run allows; `cargo xtask soak` runs for minutes.
const TIME: Duration = Duration::from_secs(20);
/// Adverts in that time, one every 10 ms, of which a busy machine may delay some.
const ADVERTS: u64 = 1_900;

#[test]
fn no_false_failover_while_every_core_is_busy() {
    let seen = soak::run(TIME, |_, _| ()).unwrap();
    let [master, backup] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert!(master.transitions.is_empty(), "{:#?}", master.transitions);
    assert!(backup.transitions.is_empty(), "{:#?}", backup.transitions);
    // The pair spoke all the time: silence would have no transitions either.
    assert!(master.sent >= ADVERTS, "{master:?}");
    assert!(backup.received >= ADVERTS, "{backup:?}");
    assert_eq!((backup.sent, backup.rejected), (0, 0), "{backup:?}");
}
