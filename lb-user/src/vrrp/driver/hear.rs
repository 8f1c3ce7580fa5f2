//! Adverts that come in.

use std::{net::IpAddr, time::Instant};

use super::{Loop, RECEIVE_BURST, Report, wall};
use crate::vrrp::{
    fsm::Event,
    packet::{Received, Rejection},
    round::{self, Outside},
    runner::Runner,
    socket::{Buffer, Kind},
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
                            self.reject(runner, rejection, source);
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
                *runner.rejected.entry(Rejection::WrongVrid).or_default() += 1;
            }
            return;
        };
        let runner = &mut runners[index];
        let wall = wall();
        if let Some(stamp) = received.claimed_stamp()
            && !runner.is_timely(stamp, wall)
        {
            return self.reject(runner, Rejection::Stale, Some(received.source));
        }
        let advert = match received.check(&runner.instance) {
            Ok(advert) => advert,
            Err(rejection) => return self.reject(runner, rejection, Some(received.source)),
        };
        if let Some(sequence) = advert.sequence
            && !runner.is_new(advert.source, sequence)
        {
            return self.reject(runner, Rejection::Replayed, Some(advert.source));
        }
        if let Some(stamp) = advert.stamp
            && !runner.is_new_stamp(advert.source, stamp, wall)
        {
            return self.reject(runner, Rejection::Replayed, Some(advert.source));
        }
        runner.received += 1;
        runner.peer = Some((advert.source, advert.priority, Instant::now()));
        runner.heard_checksum = Some(advert.checksum);
        runner.addresses_differ = !advert.same_addresses;
        if !advert.same_addresses && !std::mem::replace(&mut runner.noted_addresses, true) {
            let what = format!(
                "{}: {} advertises other virtual addresses than are configured here",
                runner.instance.name, advert.source
            );
            self.report(Report::Odd {
                interface: runner.instance.interface.clone(),
                what,
            });
        }
        let event = Event::Advert {
            priority: advert.priority,
            source: advert.source,
            interval: advert.interval,
        };
        round::hear(self, runner, event);
    }

    /// Counts; tells the daemon only the first time.
    fn reject(&self, runner: &mut Runner, rejection: Rejection, source: Option<IpAddr>) {
        let count = runner.rejected.entry(rejection).or_default();
        *count += 1;
        if *count == 1 {
            let source = source.map_or_else(|| "an unknown sender".to_owned(), |s| s.to_string());
            let what = format!(
                "{}: ignoring an advert from {source}: {rejection}; further ones are only counted",
                runner.instance.name
            );
            self.report(Report::Odd {
                interface: runner.instance.interface.clone(),
                what,
            });
        }
    }
}
