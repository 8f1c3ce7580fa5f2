//! Adverts that come in.

use std::{net::IpAddr, time::Instant};

use super::{Loop, RECEIVE_BURST, wall};
use crate::{
    model::VrrpState,
    vrrp::{
        fsm::Event,
        oddities::Oddity,
        packet::{Received, Rejection},
        round,
        runner::Runner,
        socket::{Buffer, Kind},
    },
};

impl Loop {
    pub(super) fn receive(&mut self, buffer: &mut Buffer) {
        let mut runners = std::mem::take(&mut self.runners);
        for ((interface, kind), socket) in &self.sockets {
            for _ in 0..RECEIVE_BURST {
                // An error here (interface gone, say) also arrives as a link event.
                let Ok(Some((source, heard))) = socket.receive(buffer) else {
                    break;
                };
                let here = |r: &Runner| {
                    r.instance.interface == *interface && Kind::of(&r.instance) == *kind
                };
                match heard {
                    Ok(received) => self.heard(&received, &mut runners, here),
                    Err(rejection) => {
                        for runner in runners.iter_mut().filter(|r| here(r)) {
                            reject(runner, rejection, source);
                        }
                    }
                }
            }
        }
        self.runners = runners;
    }

    fn heard(
        &self,
        received: &Received<'_>,
        runners: &mut [Runner],
        here: impl Fn(&Runner) -> bool,
    ) {
        let of_router = |r: &Runner| here(r) && r.instance.vrid == received.vrid;
        let Some(index) = runners.iter().position(of_router) else {
            // Other routers of the segment are no news.
            for runner in runners.iter_mut().filter(|r| here(r)) {
                let oddity = Oddity::Rejected(Rejection::WrongVrid);
                runner.oddities.count(oddity, Some(received.source));
            }
            return;
        };
        let runner = &mut runners[index];
        let wall = wall();
        if let Some(stamp) = received.claimed_stamp()
            && !runner.is_timely(stamp, wall)
        {
            return reject(runner, Rejection::Stale, Some(received.source));
        }
        let advert = match received.check(&runner.instance) {
            Ok(advert) => advert,
            Err(rejection) => return reject(runner, rejection, Some(received.source)),
        };
        if let Some(sequence) = advert.sequence
            && !runner.is_new(advert.source, sequence)
        {
            return reject(runner, Rejection::Replayed, Some(advert.source));
        }
        if let Some(stamp) = advert.stamp
            && !runner.is_new_stamp(advert.source, stamp, wall)
        {
            return reject(runner, Rejection::Replayed, Some(advert.source));
        }
        runner.received += 1;
        runner.peer = Some((advert.source, advert.priority, Instant::now()));
        runner.heard_checksum = Some(advert.checksum);
        runner.addresses_differ = !advert.same_addresses;
        if !advert.same_addresses {
            runner
                .oddities
                .count(Oddity::OtherAddresses, Some(advert.source));
        }
        let was_master = runner.machine.state() == VrrpState::Master;
        let event = Event::Advert {
            priority: advert.priority,
            source: advert.source,
            interval: advert.interval,
        };
        round::hear(self, runner, event);
        let is_master = runner.machine.state() == VrrpState::Master;
        if was_master && is_master && advert.priority != 0 && runner.is_second_master(advert.source)
        {
            runner
                .oddities
                .count(Oddity::SecondMaster, Some(advert.source));
        }
    }
}

/// Only counted: the daemon looks at the counts, and tells of those that are new.
fn reject(runner: &mut Runner, rejection: Rejection, source: Option<IpAddr>) {
    runner.oddities.count(Oddity::Rejected(rejection), source);
}
