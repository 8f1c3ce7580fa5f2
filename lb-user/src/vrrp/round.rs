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
    let was_master = runner.machine.state() == VrrpState::Master;
    let effects = runner.machine.handle(event, outside.now());
    if !was_master && runner.machine.state() == VrrpState::Master {
        runner.packet.leap();
    }
    for effect in effects {
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

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        net::IpAddr,
    };

    use super::*;
    use crate::{
        config,
        model::{ChecksumForm, Verdict},
        vrrp::driver::{Link, Setup},
    };

    /// Nobody hears what is said here: the sequence numbers of authentication headers.
    #[derive(Default)]
    struct Alone {
        now: Cell<Instant>,
        said: RefCell<Vec<u32>>,
    }

    impl Outside for Alone {
        fn now(&self) -> Instant {
            self.now.get()
        }

        fn count_change(&self) -> u64 {
            0
        }

        fn send(&self, runner: &mut Runner, priority: u8) {
            runner.packet.next(priority, Duration::ZERO);
            let packet = runner
                .packet
                .to(runner.instance.group, ChecksumForm::Message);
            let number = packet[28..32].try_into().unwrap();
            self.said.borrow_mut().push(u32::from_be_bytes(number));
        }

        fn report(&self, _: Report) {}
    }

    /// keepalived believes only numbers above all that it has said and heard. During a partition it goes on
    /// saying one more each time, however long that takes.
    #[test]
    fn one_who_becomes_master_is_ahead_of_a_keepalived_that_does_not_hear_it() {
        let text = "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 20\npriority = 50\n\
                    addresses = [\"10.1.15.50/16\"]\nauthentication = \"ah\"\npassword = \"secret\"\n";
        let instance = config::parse("lbd.toml", text, "host")
            .unwrap()
            .instances
            .remove(0);
        let source = IpAddr::from([10, 1, 15, 43]);
        let mut runner = Runner::new(Setup {
            instance,
            link: Link::Up { ifindex: 1, source },
            verdict: Verdict::default(),
        });
        let outside = Alone::default();
        feed(&outside, &mut runner, Event::Start);
        let heard = 100;
        assert!(runner.is_new([10, 1, 15, 44].into(), heard));
        // Four more adverts before its silence is noticed, and then one for each of ours.
        let mut theirs = heard + 4;
        for _ in 0..1_000 {
            let due = runner.machine.deadline().unwrap();
            outside.now.set(due);
            feed(&outside, &mut runner, Event::Timer);
            theirs += 1;
            let ours = *outside.said.borrow().last().unwrap();
            assert!(ours > theirs, "{ours} after {theirs}");
        }
        assert_eq!(outside.said.borrow().len(), 1_000);
        // What it heard is a lower bound as before.
        assert!(runner.is_new([10, 1, 15, 44].into(), 5_000));
        outside.send(&mut runner, 0);
        assert!(*outside.said.borrow().last().unwrap() > 5_000);
    }
}
