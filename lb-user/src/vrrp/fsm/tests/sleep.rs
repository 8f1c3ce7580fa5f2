//! A backup whose thread slept, and how that is noticed.

use super::*;
use crate::vrrp::pace::Pace;

const SECOND: Duration = Duration::from_secs(1);

/// It hears an advert at 0, its host stands still from then on, and wakes when its timer has run out
/// long ago: it goes on listening for more than an interval.
#[test]
fn time_asleep_is_no_silence() {
    let mut machine = machine_in(VrrpState::Backup, settings(100));
    let mut pace = Pace::default();
    pace.plan(Duration::ZERO, [&machine].into_iter());
    let late = pace.woke(8 * SECOND);
    machine.handle(Event::Overslept(late), 8 * SECOND);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(10_609_375)));
    machine.handle(advert(200, HIGH), 9 * SECOND);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(12_609_375)));
}

#[test]
fn the_thread_wakes_once_an_interval_and_measures_how_late() {
    let backup = machine_in(VrrpState::Backup, settings(100));
    let mut pace = Pace::default();
    assert_eq!(
        pace.plan(Duration::ZERO, [&backup].into_iter()),
        Some(SECOND)
    );
    // A packet woke it.
    assert_eq!(pace.woke(300 * MS), Duration::ZERO);
    assert_eq!(pace.plan(310 * MS, [&backup].into_iter()), Some(990 * MS));
    assert_eq!(pace.woke(3_300 * MS), 2 * SECOND);
    // The deadline is nearer than an interval.
    let rest = pace.plan(3_300 * MS, [&backup].into_iter());
    assert_eq!(rest, Some(Duration::from_micros(309_375)));
    // A round that takes long is sleep as well.
    pace.woke(3_400 * MS);
    assert_eq!(
        pace.plan(5_000 * MS, [&backup].into_iter()),
        Some(Duration::ZERO)
    );
    assert_eq!(pace.woke(5_000 * MS), Duration::from_nanos(1_390_625_000));
}

#[test]
fn without_backups_only_deadlines_count() {
    let mut pace = Pace::default();
    let master = machine_in(VrrpState::Master, settings(100));
    let fault = machine_in(VrrpState::Fault, settings(100));
    let machines = [master, fault];
    assert_eq!(pace.plan(Duration::ZERO, machines.iter()), Some(SECOND));
    assert_eq!(pace.plan(Duration::ZERO, machines[1..].iter()), None);
    assert_eq!(pace.woke(9 * SECOND), Duration::ZERO);
}

/// A master that owed an answer when its host stood still listens first, and has answered nobody by that: who
/// speaks meanwhile is answered at once, and otherwise its next advert is the answer.
#[test]
fn listening_is_no_answer() {
    for speaks in [true, false] {
        let mut machine = machine_in(VrrpState::Master, settings(100));
        let answer = [Effect::SendAdvert(100), Effect::Announce];
        let mut hears = |at| -> Vec<Effect> {
            let effects = machine.handle(advert(50, LOW), at);
            effects.into_iter().collect()
        };
        assert_eq!(hears(500 * MS), answer);
        assert_eq!(hears(510 * MS), [Effect::Announce]);
        let effects = machine.handle(Event::Timer, 9 * SECOND);
        assert_eq!(effects.into_iter().count(), 0, "it listens");
        if speaks {
            let effects = machine.handle(advert(50, LOW), 9_010 * MS);
            assert_eq!(effects.into_iter().collect::<Vec<_>>(), answer);
        } else {
            assert_eq!(machine.deadline(), Some(10 * SECOND));
            let effects = machine.handle(Event::Timer, 10 * SECOND);
            assert_eq!(effects.into_iter().count(), 1);
            let effects = machine.handle(advert(50, LOW), 10_010 * MS);
            let effects: Vec<_> = effects.into_iter().collect();
            assert_eq!(effects, [Effect::Announce], "too soon after its answer");
        }
    }
}
