//! Version 3's learned interval, the delay of preemption, and late awakenings.

use super::*;

fn third(priority: u8, interval: Duration) -> Settings {
    Settings {
        version: VrrpVersion::V3,
        interval,
        ..settings(priority)
    }
}

/// RFC 9568 section 6.1: three of the master's intervals, and the skew as a share of it.
#[test]
fn the_masters_interval_is_learned_and_forgotten() {
    let mut machine = machine_in(VrrpState::Backup, third(100, 1_000 * MS));
    assert_eq!(machine.deadline(), Some(Duration::from_micros(3_609_375)));
    machine.handle(every(2_000 * MS, 200, HIGH), 1_000 * MS);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(8_218_750)));
    // A master that stops: the skew of its interval (captured from keepalived: 1.219 s).
    machine.handle(every(2_000 * MS, 0, HIGH), 2_000 * MS);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(3_218_750)));
    machine.handle(Event::Timer, 3_219 * MS);
    assert_eq!(machine.state(), VrrpState::Master);
    assert_eq!(machine.deadline(), Some(4_219 * MS), "its own interval now");
    machine.handle(every(100 * MS, 200, HIGH), 4_000 * MS);
    assert_eq!(
        machine.deadline(),
        Some(4_300 * MS + Duration::from_nanos(60_937_500)),
        "one that yields waits as long as the new master's interval demands"
    );
}

/// Both routers have 1 s; the backup's file changes first. Its master has not.
#[test]
fn a_shorter_interval_of_our_own_does_not_hasten_a_masters() {
    let mut machine = machine_in(VrrpState::Backup, third(100, 1_000 * MS));
    machine.handle(every(1_000 * MS, 200, HIGH), 1_000 * MS);
    let before = machine.deadline();
    machine.reconfigure(third(100, 100 * MS), 1_500 * MS);
    assert_eq!(machine.deadline(), before);
    let mut alone = machine_in(VrrpState::Backup, third(100, 1_000 * MS));
    alone.reconfigure(third(100, 100 * MS), Duration::ZERO);
    assert_eq!(alone.deadline(), Some(Duration::from_nanos(360_937_500)));
}

/// FRR's shortest and RFC 9568's: 10 ms. Priority 100 waits 36.09 ms.
#[test]
fn a_hundredth_of_a_second() {
    let machine = machine_in(VrrpState::Backup, third(100, 10 * MS));
    assert_eq!(machine.deadline(), Some(Duration::from_nanos(36_093_750)));
}

#[test]
fn a_lower_master_is_left_in_peace_for_the_delay() {
    let delayed = Settings {
        preempt_delay: 5_000 * MS,
        ..settings(100)
    };
    let mut machine = machine_in(VrrpState::Backup, delayed);
    let down = Duration::from_micros(3_609_375);
    for second in 1..=5 {
        machine.handle(advert(50, LOW), second * 1_000 * MS);
        assert_eq!(machine.deadline(), Some(second * 1_000 * MS + down));
    }
    machine.handle(advert(50, LOW), 6_000 * MS);
    assert_eq!(machine.deadline(), Some(5_000 * MS + down), "no longer");
    // A higher one in between, and the delay begins anew.
    machine.handle(advert(150, LOW), 6_500 * MS);
    machine.handle(advert(50, LOW), 7_000 * MS);
    assert_eq!(machine.deadline(), Some(7_000 * MS + down));
}

#[test]
fn one_who_overslept_listens_first() {
    let mut machine = machine_in(VrrpState::Master, third(100, 100 * MS));
    let effects = machine.handle(Event::Timer, 300 * MS);
    assert_eq!(
        effects.into_iter().count(),
        1,
        "two intervals late: still master to all"
    );
    let effects = machine.handle(Event::Timer, 700 * MS);
    assert_eq!(
        effects,
        Effects::default(),
        "three late: others may be master"
    );
    assert_eq!(machine.deadline(), Some(800 * MS));
    assert_eq!(machine.state(), VrrpState::Master);
    let effects = machine.handle(Event::Timer, 800 * MS);
    assert_eq!(
        effects,
        Effects::of([Effect::SendAdvert(100)]),
        "nobody was heard"
    );
}
