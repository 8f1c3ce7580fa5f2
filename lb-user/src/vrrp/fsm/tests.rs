use std::{collections::BTreeSet, net::Ipv4Addr};

use super::*;

mod intervals;
mod sleep;

const MS: Duration = Duration::from_millis(1);
const HIGH: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const SELF: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
const LOW: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn settings(priority: u8) -> Settings {
    Settings {
        version: VrrpVersion::V2,
        priority,
        interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        source: SELF,
    }
}

fn machine_in(state: VrrpState, settings: Settings) -> Machine {
    let mut machine = Machine::new(settings);
    match state {
        VrrpState::Init => {}
        VrrpState::Backup => drop(machine.handle(Event::Start, Duration::ZERO)),
        VrrpState::Master => {
            machine.handle(Event::Start, Duration::ZERO);
            machine.handle(Event::Timer, Duration::ZERO);
        }
        VrrpState::Fault => drop(machine.handle(Event::LinkDown, Duration::ZERO)),
    }
    assert_eq!(machine.state(), state);
    machine
}

fn advert(priority: u8, source: IpAddr) -> Event {
    every(Duration::from_secs(1), priority, source)
}

fn every(interval: Duration, priority: u8, source: IpAddr) -> Event {
    Event::Advert {
        priority,
        source,
        interval,
    }
}

type Row = (VrrpState, Event, VrrpState, Option<u64>, Vec<Effect>);

/// Every state with every event: new state, deadline in ms after the event (`None`: no timer), and
/// the effects. Priority 100: skew 609.375 ms, master down 3609.375 ms.
#[test]
fn full_table() {
    use Effect::{Announce, Enter, SendAdvert};
    use VrrpState::{Backup, Fault, Init, Master};
    const DOWN: Option<u64> = Some(3_609_375);
    const SKEW: Option<u64> = Some(609_375);
    const NEXT: Option<u64> = Some(1_000_000);
    const LONG: Duration = Duration::from_secs(9);
    let higher = |priority, source| Reason::HigherPriority { priority, source };
    let rows: Vec<Row> = vec![
        (
            Init,
            Event::Start,
            Backup,
            DOWN,
            vec![Enter(Backup, Reason::Started)],
        ),
        (Init, Event::Stop, Init, None, vec![]),
        (Init, advert(0, HIGH), Init, None, vec![]),
        (Init, advert(50, HIGH), Init, None, vec![]),
        (Init, advert(100, HIGH), Init, None, vec![]),
        (Init, advert(200, HIGH), Init, None, vec![]),
        (Init, Event::Timer, Init, None, vec![]),
        (Init, Event::Yield, Init, None, vec![]),
        (Backup, Event::Yield, Backup, DOWN, vec![]),
        (
            Master,
            Event::Yield,
            Backup,
            DOWN,
            vec![SendAdvert(0), Enter(Backup, Reason::Asked)],
        ),
        (Fault, Event::Yield, Fault, None, vec![]),
        (
            Init,
            Event::TrackDown,
            Fault,
            None,
            vec![Enter(Fault, Reason::TrackDown)],
        ),
        (
            Backup,
            Event::TrackDown,
            Fault,
            None,
            vec![Enter(Fault, Reason::TrackDown)],
        ),
        (
            Master,
            Event::TrackDown,
            Fault,
            None,
            vec![SendAdvert(0), Enter(Fault, Reason::TrackDown)],
        ),
        (Fault, Event::TrackDown, Fault, None, vec![]),
        (Init, Event::TrackUp, Init, None, vec![]),
        (Backup, Event::TrackUp, Backup, DOWN, vec![]),
        (Master, Event::TrackUp, Master, NEXT, vec![]),
        (
            Fault,
            Event::TrackUp,
            Backup,
            DOWN,
            vec![Enter(Backup, Reason::TrackUp)],
        ),
        (
            Init,
            Event::LinkDown,
            Fault,
            None,
            vec![Enter(Fault, Reason::LinkDown)],
        ),
        (Init, Event::LinkUp, Init, None, vec![]),
        (Backup, Event::Start, Backup, DOWN, vec![]),
        (
            Backup,
            Event::Stop,
            Init,
            None,
            vec![Enter(Init, Reason::Stopped)],
        ),
        (Backup, advert(0, HIGH), Backup, SKEW, vec![]),
        (Backup, advert(200, HIGH), Backup, DOWN, vec![]),
        (Backup, advert(100, LOW), Backup, DOWN, vec![]),
        (Backup, advert(50, HIGH), Backup, DOWN, vec![]),
        (
            Backup,
            Event::Timer,
            Master,
            NEXT,
            vec![SendAdvert(100), Enter(Master, Reason::MasterSilent)],
        ),
        (
            Backup,
            Event::LinkDown,
            Fault,
            None,
            vec![Enter(Fault, Reason::LinkDown)],
        ),
        (Backup, Event::LinkUp, Backup, DOWN, vec![]),
        (Master, Event::Start, Master, NEXT, vec![]),
        (
            Master,
            Event::Stop,
            Init,
            None,
            vec![SendAdvert(0), Enter(Init, Reason::Stopped)],
        ),
        (Master, advert(0, HIGH), Master, NEXT, vec![SendAdvert(100)]),
        (
            Master,
            advert(200, LOW),
            Backup,
            DOWN,
            vec![SendAdvert(100), Enter(Backup, higher(200, LOW))],
        ),
        (
            Master,
            advert(100, HIGH),
            Backup,
            DOWN,
            vec![SendAdvert(100), Enter(Backup, higher(100, HIGH))],
        ),
        (
            Master,
            advert(100, LOW),
            Master,
            NEXT,
            vec![SendAdvert(100), Announce],
        ),
        (Master, advert(100, SELF), Master, NEXT, vec![]),
        (
            Master,
            advert(50, HIGH),
            Master,
            NEXT,
            vec![SendAdvert(100), Announce],
        ),
        (Master, Event::Timer, Master, NEXT, vec![SendAdvert(100)]),
        (
            Master,
            Event::LinkDown,
            Fault,
            None,
            vec![SendAdvert(0), Enter(Fault, Reason::LinkDown)],
        ),
        (Master, Event::LinkUp, Master, NEXT, vec![]),
        (Fault, Event::Start, Fault, None, vec![]),
        (
            Fault,
            Event::Stop,
            Init,
            None,
            vec![Enter(Init, Reason::Stopped)],
        ),
        (Fault, advert(0, HIGH), Fault, None, vec![]),
        (Fault, advert(50, HIGH), Fault, None, vec![]),
        (Fault, advert(100, HIGH), Fault, None, vec![]),
        (Fault, advert(200, HIGH), Fault, None, vec![]),
        (Fault, Event::Timer, Fault, None, vec![]),
        (Fault, Event::LinkDown, Fault, None, vec![]),
        (
            Fault,
            Event::LinkUp,
            Backup,
            DOWN,
            vec![Enter(Backup, Reason::LinkUp)],
        ),
        (Init, Event::Hold, Init, None, vec![]),
        (Backup, Event::Hold, Backup, DOWN, vec![]),
        (Master, Event::Hold, Master, NEXT, vec![]),
        (Fault, Event::Hold, Fault, None, vec![]),
        (Init, Event::Overslept(LONG), Init, None, vec![]),
        (
            Backup,
            Event::Overslept(LONG),
            Backup,
            Some(12_609_375),
            vec![],
        ),
        (Master, Event::Overslept(LONG), Master, NEXT, vec![]),
        (Fault, Event::Overslept(LONG), Fault, None, vec![]),
        (Init, Event::Follow(Init), Init, None, vec![]),
        (Init, Event::Follow(Backup), Init, None, vec![]),
        (Init, Event::Follow(Master), Init, None, vec![]),
        (Init, Event::Follow(Fault), Init, None, vec![]),
        (Backup, Event::Follow(Init), Backup, DOWN, vec![]),
        (Backup, Event::Follow(Backup), Backup, DOWN, vec![]),
        (
            Backup,
            Event::Follow(Master),
            Master,
            NEXT,
            vec![SendAdvert(100), Enter(Master, Reason::Group)],
        ),
        (
            Backup,
            Event::Follow(Fault),
            Fault,
            None,
            vec![Enter(Fault, Reason::Group)],
        ),
        (Master, Event::Follow(Init), Master, NEXT, vec![]),
        (
            Master,
            Event::Follow(Backup),
            Backup,
            DOWN,
            vec![SendAdvert(0), Enter(Backup, Reason::Group)],
        ),
        (Master, Event::Follow(Master), Master, NEXT, vec![]),
        (
            Master,
            Event::Follow(Fault),
            Fault,
            None,
            vec![SendAdvert(0), Enter(Fault, Reason::Group)],
        ),
        (Fault, Event::Follow(Init), Fault, None, vec![]),
        (
            Fault,
            Event::Follow(Backup),
            Backup,
            DOWN,
            vec![Enter(Backup, Reason::Group)],
        ),
        (Fault, Event::Follow(Master), Fault, None, vec![]),
        (Fault, Event::Follow(Fault), Fault, None, vec![]),
    ];
    every_pair_is_a_row(&rows);
    for (state, event, expected, deadline, effects) in rows {
        let mut machine = machine_in(state, settings(100));
        let seen: Vec<Effect> = machine.handle(event, Duration::ZERO).into_iter().collect();
        let what = format!("{state} {event:?}");
        assert_eq!(machine.state(), expected, "{what}");
        assert_eq!(seen, effects, "{what}");
        assert_eq!(
            machine.deadline().map(|d| d.as_micros() as u64),
            deadline,
            "{what}"
        );
    }
}

/// What kind of event it is: the columns of the table. No `_`: a new event needs rows.
fn kind(event: Event) -> &'static str {
    match event {
        Event::Start => "start",
        Event::Stop => "stop",
        Event::Advert { priority: 0, .. } => "advert 0",
        Event::Advert { priority, .. } => match priority.cmp(&100) {
            Ordering::Less => "lower advert",
            Ordering::Equal => "equal advert",
            Ordering::Greater => "higher advert",
        },
        Event::Timer => "timer",
        Event::LinkDown => "link down",
        Event::LinkUp => "link up",
        Event::Yield => "yield",
        Event::TrackDown => "track down",
        Event::TrackUp => "track up",
        Event::Overslept(_) => "overslept",
        Event::Hold => "hold",
        Event::Follow(VrrpState::Init) => "follow init",
        Event::Follow(VrrpState::Backup) => "follow backup",
        Event::Follow(VrrpState::Master) => "follow master",
        Event::Follow(VrrpState::Fault) => "follow fault",
    }
}

/// How many kinds there are: as many as arms above.
const KINDS: usize = 18;

fn every_pair_is_a_row(rows: &[Row]) {
    use VrrpState::{Backup, Fault, Init, Master};
    let kinds: BTreeSet<_> = rows.iter().map(|row| kind(row.1)).collect();
    assert_eq!(kinds.len(), KINDS, "{kinds:?}");
    for state in [Init, Backup, Master, Fault] {
        let of_state = |row: &&Row| row.0 == state;
        let here: BTreeSet<_> = rows.iter().filter(of_state).map(|r| kind(r.1)).collect();
        let missing: Vec<_> = kinds.difference(&here).collect();
        assert!(missing.is_empty(), "{state} lacks {missing:?}");
    }
}

#[test]
fn lower_priority_does_not_reset_the_timer() {
    let mut machine = machine_in(VrrpState::Backup, settings(100));
    let before = machine.deadline();
    machine.handle(advert(50, HIGH), 2_000 * MS);
    assert_eq!(machine.deadline(), before);
    let effects: Vec<_> = machine
        .handle(Event::Timer, 3_610 * MS)
        .into_iter()
        .collect();
    assert_eq!(
        effects[1],
        Effect::Enter(VrrpState::Master, Reason::Preempted)
    );
}

#[test]
fn without_preemption_a_lower_master_stays() {
    let mut machine = machine_in(
        VrrpState::Backup,
        Settings {
            preempt: false,
            ..settings(100)
        },
    );
    machine.handle(advert(50, LOW), 2_000 * MS);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(5_609_375)));
}

#[test]
fn the_owner_is_master_at_once() {
    let mut machine = Machine::new(settings(255));
    let effects: Vec<_> = machine
        .handle(Event::Start, Duration::ZERO)
        .into_iter()
        .collect();
    let owner = Effect::Enter(VrrpState::Master, Reason::Owner);
    assert_eq!(effects, [Effect::SendAdvert(255), owner]);
    assert_eq!(
        machine.settings().skew(Duration::from_secs(1)),
        Duration::from_micros(3_906) + Duration::from_nanos(250)
    );
}

#[test]
fn a_stopped_master_is_replaced_after_the_skew() {
    let mut machine = machine_in(VrrpState::Backup, settings(98));
    machine.handle(advert(0, HIGH), 500 * MS);
    assert_eq!(
        machine.deadline(),
        Some(500 * MS + Duration::from_nanos(617_187_500))
    );
    let effects: Vec<_> = machine
        .handle(Event::Timer, 1_118 * MS)
        .into_iter()
        .collect();
    assert_eq!(
        effects[1],
        Effect::Enter(VrrpState::Master, Reason::MasterStopped)
    );
}

/// Farewells, in ms after the start, and the deadline after them.
#[test]
fn a_farewell_never_postpones_the_timer() {
    let rows: [(&[u32], u64); 4] = [
        (&[500], 1_109_375),
        (&[500, 800, 1_100], 1_109_375),
        (&[3_500], 3_609_375),
        (&[3_500, 3_600], 3_609_375),
    ];
    for (farewells, deadline) in rows {
        let mut machine = machine_in(VrrpState::Backup, settings(100));
        for at in farewells {
            machine.handle(advert(0, HIGH), *at * MS);
        }
        let due = machine.deadline().map(|due| due.as_micros() as u64);
        assert_eq!(due, Some(deadline), "{farewells:?}");
    }
}

#[test]
fn a_new_priority_moves_the_running_timer_by_the_difference() {
    let mut machine = machine_in(VrrpState::Backup, settings(100));
    machine.reconfigure(settings(228), 1_000 * MS);
    assert_eq!(machine.deadline(), Some(Duration::from_micros(3_109_375)));
}
