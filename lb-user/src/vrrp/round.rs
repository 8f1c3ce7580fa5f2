//! What the thread does with its instances in one round, whatever carries the packets: sockets in the
//! driver, a virtual network in the simulation. Has no clock of its own.
//!
//! The order of a round: [`wake`], commands, adverts ([`hear`]), [`finish`]. Adverts come before
//! timers, because one that waited in a queue may be the one that stops a timer.

use std::time::{Duration, SystemTime};

use super::{
    driver::Report,
    fsm::{Effect, Event, Instant, Reason},
    groups::{self, Groups},
    runner::Runner,
};
use crate::model::VrrpState;

/// The world as an instance knows it.
pub(super) trait Outside {
    /// The machines' clock.
    fn now(&self) -> Instant;
    /// Counts changes of state over all instances.
    fn count_change(&self) -> u64;
    /// Sends an advert with this priority.
    fn send(&self, runner: &mut Runner, priority: u8);
    /// Tells the daemon.
    fn report(&self, report: Report);
}

/// Gives a machine an event and does what it asks for.
pub(super) fn feed(outside: &impl Outside, runner: &mut Runner, event: Event) {
    for effect in runner.machine.handle(event, outside.now()) {
        match effect {
            Effect::SendAdvert(priority) => outside.send(runner, priority),
            Effect::Announce => {
                runner.announced = true;
                runner.to_announce = true;
            }
            Effect::Enter(state, reason) => {
                // One that just started leads no group.
                if reason != Reason::Started {
                    runner.changed = outside.count_change();
                }
                runner.wants_to_be_master = false;
                runner.entered[state as usize] += 1;
                runner.reason = reason;
                runner.since = SystemTime::now();
                outside.report(Report::Entered {
                    instance: runner.instance.name.clone(),
                    router: runner.instance.router(),
                    state,
                    reason,
                    priority: runner.priority(),
                });
            }
        }
    }
}

/// Gives a machine an advert.
pub(super) fn hear(outside: &impl Outside, runner: &mut Runner, advert: Event) {
    let before = runner.machine.deadline();
    feed(outside, runner, advert);
    let is_farewell = matches!(advert, Event::Advert { priority: 0, .. });
    if runner.machine.deadline() != before && !is_farewell {
        // A master of equal or higher priority.
        runner.wants_to_be_master = false;
    }
}

/// Begins the round of a thread that woke this much too late.
pub(super) fn wake(outside: &impl Outside, runners: &mut [Runner], late: Duration) {
    if !late.is_zero() {
        for runner in runners {
            runner.worst_lateness = runner.worst_lateness.max(late);
            feed(outside, runner, Event::Overslept(late));
        }
    }
}

/// Ends a round: timers, then sync groups.
pub(super) fn finish(outside: &impl Outside, runners: &mut [Runner], groups: &Groups) {
    for runner in runners.iter_mut() {
        expire(outside, runner);
    }
    groups::settle_all(outside, runners, groups);
    for runner in runners {
        tell_to_announce(outside, runner);
    }
}

/// Not more often than answers, but for one that may follow another at once: the last word of a master that yields.
/// What is told too soon waits for a later round, which comes with the next advert.
fn tell_to_announce(outside: &impl Outside, runner: &mut Runner) {
    if !runner.to_announce {
        return;
    }
    let now = outside.now();
    let pause = runner.machine.settings().pause();
    if runner.machine.state() != VrrpState::Master {
        runner.to_announce = false;
    } else if runner.told.is_none_or(|earned| earned <= now + pause) {
        runner.to_announce = false;
        runner.told = Some(runner.told.map_or(now, |earned| earned.max(now)) + pause);
        outside.report(Report::Announce {
            instance: runner.instance.name.clone(),
            router: runner.instance.router(),
        });
    }
}

fn expire(outside: &impl Outside, runner: &mut Runner) {
    let now = outside.now();
    let Some(late) = runner
        .machine
        .deadline()
        .and_then(|due| now.checked_sub(due))
    else {
        return;
    };
    runner.worst_lateness = runner.worst_lateness.max(late);
    let event = match runner.must_ask_group() {
        true => Event::Hold,
        false => Event::Timer,
    };
    feed(outside, runner, event);
}
