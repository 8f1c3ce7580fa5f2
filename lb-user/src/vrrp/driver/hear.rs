//! Adverts that come in.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use super::{
    RECEIVE_BURST,
    thread::{Loop, wall},
};
use crate::{
    model::{ChecksumForm, VrrpState, VrrpVersion},
    vrrp::{
        fsm::Event,
        oddities::{Oddities, Oddity},
        packet::{Advert, Received, Rejection},
        ports::Place,
        round,
        runner::Runner,
        socket::Buffer,
    },
};

/// Whom the packets of one socket are for.
pub(super) struct Audience {
    /// Places in the thread's list, by virtual router id.
    by_vrid: [Option<usize>; 256],
    /// What no instance could be named for. It concerns all of them, and is counted once.
    strays: Oddities,
}

impl Audience {
    pub(super) fn strays(&self) -> &Oddities {
        &self.strays
    }
}

/// The audiences of all sockets; what was counted goes on.
pub(super) fn audiences(
    runners: &[Runner],
    mut before: BTreeMap<Place, Audience>,
) -> BTreeMap<Place, Audience> {
    let mut all: BTreeMap<Place, Audience> = BTreeMap::new();
    for (place, runner) in runners.iter().enumerate() {
        let socket = &runner.socket;
        let audience = all.entry(socket.clone()).or_insert_with(|| Audience {
            by_vrid: [None; 256],
            strays: before
                .remove(socket)
                .map(|old| old.strays)
                .unwrap_or_default(),
        });
        audience.by_vrid[usize::from(runner.instance.vrid)] = Some(place);
    }
    all
}

impl Loop {
    pub(super) fn receive(&mut self, buffer: &mut Buffer) {
        let mut runners = std::mem::take(&mut self.runners);
        let mut audiences = std::mem::take(&mut self.audiences);
        for (place, socket) in &self.sockets {
            let Some(audience) = audiences.get_mut(place) else {
                continue;
            };
            for _ in 0..RECEIVE_BURST {
                // An error here (interface gone, say) also arrives as a link event.
                let Ok(Some((source, heard))) = socket.receive(buffer) else {
                    break;
                };
                match heard {
                    Ok(received) => self.heard(&received, &mut runners, audience),
                    Err(rejection) => audience.strays.count(Oddity::Rejected(rejection), source),
                }
            }
        }
        self.runners = runners;
        self.audiences = audiences;
    }

    fn heard(&self, received: &Received<'_>, runners: &mut [Runner], audience: &mut Audience) {
        let place = audience.by_vrid[usize::from(received.vrid)];
        let Some(runner) = place.and_then(|place| runners.get_mut(place)) else {
            // Other routers of the segment are no news.
            let oddity = Oddity::Rejected(Rejection::WrongVrid);
            audience.strays.count(oddity, Some(received.source));
            return;
        };
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
        note_differences(runner, &advert);
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

/// What is believed, though it is not as it is configured here.
fn note_differences(runner: &mut Runner, advert: &Advert) {
    let instance = &runner.instance;
    let is_v3 = instance.version == VrrpVersion::V3;
    let is_other_form = match instance.checksum {
        ChecksumForm::Auto => false,
        form => is_v3 && !instance.is_v6() && advert.checksum != form,
    };
    let differences = [
        (Oddity::OtherAddresses, !advert.same_addresses),
        (
            Oddity::OtherInterval,
            is_v3 && advert.interval != instance.advert_interval,
        ),
        (Oddity::OtherChecksum, is_other_form),
    ];
    for (oddity, differs) in differences {
        if differs {
            runner.oddities.count(oddity, Some(advert.source));
        }
    }
}

/// Only counted: the daemon looks at the counts, and tells of those that are new.
fn reject(runner: &mut Runner, rejection: Rejection, source: Option<IpAddr>) {
    runner.oddities.count(Oddity::Rejected(rejection), source);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config,
        model::{Instance, Verdict},
        vrrp::{
            driver::{Link, Setup},
            socket::Kind,
        },
    };

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 15, 44));

    fn instances(text: &str) -> Vec<Instance> {
        config::parse("lbd.toml", text, "host").unwrap().instances
    }

    fn runner(instance: Instance) -> Runner {
        Runner::new(Setup {
            instance,
            link: Link::Down,
            verdict: Verdict::default(),
        })
    }

    fn with_checksum(form: &str) -> Runner {
        let text = format!(
            "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 20\nversion = 3\n\
             advert_interval = \"100ms\"\nchecksum = \"{form}\"\naddresses = [\"10.1.15.50/16\"]\n"
        );
        runner(instances(&text).remove(0))
    }

    #[test]
    fn what_is_believed_and_differs_is_counted() {
        let alike = Advert {
            source: PEER,
            priority: 100,
            interval: Duration::from_millis(100),
            same_addresses: true,
            checksum: ChecksumForm::PseudoHeader,
            sequence: None,
            stamp: None,
        };
        let slower = Advert {
            interval: Duration::from_millis(250),
            ..alike
        };
        let other_list = Advert {
            same_addresses: false,
            ..alike
        };
        let rows = [
            ("auto", alike, None),
            ("pseudo-header", alike, None),
            ("rfc9568", alike, Some(Oddity::OtherChecksum)),
            ("auto", slower, Some(Oddity::OtherInterval)),
            ("auto", other_list, Some(Oddity::OtherAddresses)),
        ];
        for (form, advert, expected) in rows {
            let mut runner = with_checksum(form);
            note_differences(&mut runner, &advert);
            let counted = runner.oddities.and(None);
            let expected: Vec<_> = expected
                .map(|oddity| (oddity, Some(PEER), 1))
                .into_iter()
                .collect();
            assert_eq!(counted, expected, "{form}: {advert:?}");
        }
    }

    #[test]
    fn a_socket_knows_whom_it_is_for() {
        let text: String = (1..=255)
            .map(|vrid| {
                let interface = if vrid < 200 { "eth0" } else { "eth1" };
                format!(
                    "[[vrrp]]\nname = \"VI_{vrid}\"\ninterface = \"{interface}\"\nvirtual_router_id = {vrid}\n\
                     addresses = [\"10.1.16.{vrid}/32\"]\n"
                )
            })
            .collect();
        let runners: Vec<Runner> = instances(&text).into_iter().map(runner).collect();
        let (eth0, eth1) = (("eth0".to_owned(), Kind::V4), ("eth1".to_owned(), Kind::V4));
        let mut all = audiences(&runners, BTreeMap::new());
        assert_eq!(all.len(), 2);
        assert_eq!(all[&eth0].by_vrid[7], Some(6));
        assert_eq!(
            (all[&eth0].by_vrid[200], all[&eth1].by_vrid[200]),
            (None, Some(199))
        );
        let stray = Oddity::Rejected(Rejection::WrongVrid);
        all.get_mut(&eth1).unwrap().strays.count(stray, Some(PEER));
        let all = audiences(&runners[..200], all);
        let shown = runners[199].snapshot(Duration::ZERO, Some(all[&eth1].strays()));
        assert_eq!(shown.oddities, [(stray, Some(PEER), 1)], "it goes on");
        assert_eq!(all[&eth1].by_vrid[201], None);
    }
}
