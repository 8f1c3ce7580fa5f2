//! The clock, the network between the routers, and what must hold after every step.

use std::{collections::BTreeMap, net::IpAddr, sync::OnceLock, time::Duration};

use super::{
    Random,
    router::{Deed, Packet, Router, Sleep},
};
use crate::{
    config,
    model::{Auth, Instance, VrrpState, VrrpVersion},
    vrrp::fsm::Instant,
};

/// How the network treats packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network {
    /// Chance of a loss, in percent.
    pub loss: u64,
    /// Nobody loses three adverts of one sender in a row.
    pub never_three: bool,
    /// The longest that a packet travels.
    pub delay: Duration,
    /// Chance of a second copy, in percent.
    pub duplicates: u64,
    /// The longest that a second copy travels: it may overtake, or come long after.
    pub stale: Duration,
}

struct Flight {
    from: usize,
    to: usize,
    segment: usize,
    packet: Packet,
}

/// Everything.
pub struct World {
    pub random: Random,
    pub now: Instant,
    pub routers: Vec<Router>,
    pub network: Network,
    /// Which part of a partitioned network each router is in.
    pub parts: Vec<usize>,
    /// The network that carries nothing.
    pub cut: Option<usize>,
    /// Networks with an instance each, all of one sync group; or one network.
    pub segments: usize,
    /// When each router announced addresses last, by segment.
    pub announced: Vec<[Option<Instant>; 2]>,
    /// When each router spoke last, by segment.
    pub spoke: Vec<[Instant; 2]>,
    /// How many adverts each router sent and announcements it asked for, by segment.
    pub told: Vec<[(u64, u64); 2]>,
    /// States entered.
    pub changes: u64,
    /// The longest that two of one part were master at a time.
    pub longest_dual: Duration,
    dual_since: Option<Instant>,
    lost_in_a_row: BTreeMap<(usize, usize, usize), u8>,
    flying: BTreeMap<(Instant, u64), Flight>,
    packets: u64,
    is_told: bool,
}

fn templates() -> &'static [Instance] {
    static TEMPLATES: OnceLock<Vec<Instance>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let instance = |segment: u8| {
            format!(
                "[[vrrp]]\nname = \"VI_{segment}\"\ninterface = \"eth{segment}\"\n\
                 virtual_router_id = {}\npriority = 100\naddresses = [\"10.9.{segment}.50/24\"]\n",
                segment + 1
            )
        };
        let text = instance(0) + &instance(1);
        config::parse("simulation", &text, "host")
            .unwrap()
            .instances
    })
}

impl World {
    /// Routers that do not run yet, drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 2 + random.below(4) as usize;
        let segments = if random.percent(20) { 2 } else { 1 };
        let as_bytes = seed.is_multiple_of(8);
        let version = random.pick(&[VrrpVersion::V2, VrrpVersion::V3]);
        let base = match version {
            VrrpVersion::V2 => Duration::from_secs(random.pick(&[1, 1, 2])),
            VrrpVersion::V3 => Duration::from_millis(random.pick(&[10, 100, 1_000])),
        };
        let auth = match version {
            VrrpVersion::V2 => {
                random.pick(&[Auth::None, Auth::Pass(*b"6b8a916c"), Auth::Ah(*b"secret12")])
            }
            VrrpVersion::V3 => Auth::None,
        };
        let is_mixed = version == VrrpVersion::V3 && random.percent(40);
        // Few values, so that some are equal.
        let priorities: Vec<u8> = (0..3).map(|_| 1 + random.below(254) as u8).collect();
        let routers = (0..count)
            .map(|number| {
                let source = IpAddr::from([10, 9, 0, 1 + number as u8]);
                let interval = match is_mixed {
                    true => base * random.pick(&[1, 2, 3]),
                    false => base,
                };
                let priority = match random.percent(5) {
                    true => 255,
                    false => random.pick(&priorities),
                };
                let preempt = random.percent(70);
                let preempt_delay = match random.percent(30) {
                    true => base * (1 + random.below(3) as u32),
                    false => Duration::ZERO,
                };
                let own = |template: &Instance| Instance {
                    version,
                    priority,
                    advert_interval: interval,
                    preempt,
                    preempt_delay,
                    auth: auth.clone(),
                    sync_group: (segments == 2).then(|| "VG".to_owned()),
                    ..template.clone()
                };
                let instances = templates()[..segments].iter().map(own).collect();
                Router::new(instances, source, as_bytes)
            })
            .collect();
        let mut world = Self {
            random,
            now: Duration::ZERO,
            routers,
            network: Network::default(),
            parts: vec![0; count],
            cut: None,
            segments,
            announced: vec![[None; 2]; count],
            spoke: vec![[Duration::ZERO; 2]; count],
            told: vec![[(0, 0); 2]; count],
            changes: 0,
            longest_dual: Duration::ZERO,
            dual_since: None,
            lost_in_a_row: BTreeMap::new(),
            flying: BTreeMap::new(),
            packets: 0,
            is_told: std::env::var_os("LBD_SIM_SEED").is_some(),
        };
        let share = world.random.pick(&[50, 10, 10]);
        world.network.delay = world.shortest() / share;
        world.tell(|w| {
            let describe = |r: &Router| {
                let i = &r.instances[0];
                let (p, d) = (i.priority, i.preempt_delay);
                format!(
                    "{p} {:?} preempt {} after {d:?}",
                    i.advert_interval, i.preempt
                )
            };
            let list: Vec<_> = w.routers.iter().map(describe).collect();
            format!("version {version}, {segments} networks: {list:?}")
        });
        world
    }

    /// The shortest interval of any router.
    pub fn shortest(&self) -> Duration {
        self.intervals().min().unwrap_or_default()
    }

    /// The longest interval of any router.
    pub fn longest(&self) -> Duration {
        self.intervals().max().unwrap_or_default()
    }

    fn intervals(&self) -> impl Iterator<Item = Duration> {
        self.routers.iter().map(|r| r.instances[0].advert_interval)
    }

    /// Within which a whole network has one master: a delay of preemption, a silence that ends in an
    /// election, the silence until a better one preempts, and an interval for each to be heard.
    /// Members of a group wait for one another, each for a silence more.
    pub fn bound(&self) -> Duration {
        let delay = self.routers.iter().map(|r| r.instances[0].preempt_delay);
        let silence = 4 * self.longest();
        delay.max().unwrap_or_default() + 2 * silence * self.segments as u32 + 2 * self.longest()
    }

    /// Lets a time pass.
    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub fn run_until(&mut self, end: Instant) {
        loop {
            let arrival = self.flying.first_key_value().map(|(key, _)| key.0);
            let timer = (0..self.routers.len())
                .filter_map(|index| Some((self.routers[index].wake()?, index)))
                .min();
            let next = [arrival, timer.map(|t| t.0)].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = at;
            if arrival == Some(at) {
                self.deliver();
            } else if let Some((_, index)) = timer {
                self.command(index, |_| ());
            }
        }
        self.now = end;
    }

    fn deliver(&mut self) {
        let Some((_, flight)) = self.flying.pop_first() else {
            return;
        };
        let Flight {
            from,
            to,
            segment,
            packet,
        } = flight;
        let connected = self.parts[from] == self.parts[to] && self.routers[to].carrier[segment];
        if connected && self.routers[to].arrive(segment, packet) {
            self.command(to, |_| ());
        }
    }

    /// Has a router's thread run a round, beginning with a command.
    pub fn command(&mut self, index: usize, command: impl FnOnce(&mut Router)) {
        self.routers[index].round(self.now, command);
        self.after(index);
    }

    /// Stops a router's thread, or the whole host if it is `deaf`.
    pub fn put_to_sleep(&mut self, index: usize, time: Duration, deaf: bool) {
        self.tell(|_| format!("router {index} sleeps for {time:?}, deaf: {deaf}"));
        let until = self.now + time;
        self.routers[index].sleep = Some(Sleep { until, deaf });
    }

    pub fn crash(&mut self, index: usize) {
        self.tell(|_| format!("router {index} crashes"));
        self.routers[index].crash();
        self.note_duals();
    }

    pub fn divide(&mut self, parts: Vec<usize>) {
        self.tell(|_| format!("parts {parts:?}"));
        self.parts = parts;
        self.note_duals();
    }

    fn after(&mut self, index: usize) {
        let done = self.routers[index].outbox.done.take();
        for (segment, deed) in done {
            match deed {
                Deed::Entered(state, why) => {
                    self.tell(|_| format!("router {index} network {segment}: {state}, {why}"));
                    self.changes += 1;
                    if state == VrrpState::Master {
                        self.announced[index][segment] = Some(self.now);
                    }
                }
                Deed::Announced => {
                    self.tell(|_| format!("router {index} network {segment} announces"));
                    self.told[index][segment].1 += 1;
                    self.announced[index][segment] = Some(self.now);
                }
            }
        }
        let sent = self.routers[index].outbox.sent.take();
        for (segment, priority, packet) in sent {
            self.spoke[index][segment] = self.now;
            self.told[index][segment].0 += 1;
            self.tell(|_| format!("router {index} network {segment} sends {priority}"));
            self.transmit(index, segment, &packet);
        }
        self.check(index);
        self.note_duals();
    }

    fn transmit(&mut self, from: usize, segment: usize, packet: &Packet) {
        if !self.routers[from].carrier[segment] || self.cut == Some(segment) {
            return;
        }
        for to in 0..self.routers.len() {
            if to == from || self.parts[to] != self.parts[from] {
                continue;
            }
            let lost = self.lost_in_a_row.entry((from, to, segment)).or_default();
            let must_pass = self.network.never_three && *lost == 2;
            if self.random.percent(self.network.loss) && !must_pass {
                *lost += 1;
                continue;
            }
            *lost = 0;
            self.fly(from, to, segment, packet, self.network.delay);
            if self.random.percent(self.network.duplicates) {
                self.fly(from, to, segment, packet, self.network.stale);
            }
        }
    }

    fn fly(&mut self, from: usize, to: usize, segment: usize, packet: &Packet, longest: Duration) {
        let delay = Duration::from_nanos(self.random.below(longest.as_nanos() as u64 + 1));
        self.packets += 1;
        let flight = Flight {
            from,
            to,
            segment,
            packet: packet.clone(),
        };
        self.flying.insert((self.now + delay, self.packets), flight);
    }

    /// What holds of a router after each of its rounds.
    fn check(&self, index: usize) {
        let router = &self.routers[index];
        let states: Vec<_> = (0..self.segments).map(|s| router.state(s)).collect();
        for runner in &router.runners {
            let state = runner.machine.state();
            let waits = matches!(state, VrrpState::Backup | VrrpState::Master);
            assert_eq!(runner.machine.deadline().is_some(), waits, "{state}");
            assert!(
                !(waits && runner.is_broken()),
                "{state} though it is broken"
            );
        }
        let all_same = states.iter().all(|state| *state == states[0]);
        assert!(all_same, "a group in {states:?}");
    }

    /// Masters of a part on a segment.
    pub fn masters(&self, part: usize, segment: usize) -> Vec<usize> {
        (0..self.routers.len())
            .filter(|i| self.parts[*i] == part && self.routers[*i].is_master(segment))
            .collect()
    }

    fn note_duals(&mut self) {
        let has_two = |part: &usize| {
            (0..self.segments).any(|segment| {
                let masters = self.masters(*part, segment);
                masters
                    .iter()
                    .filter(|i| self.routers[**i].is_awake())
                    .count()
                    > 1
            })
        };
        let is_dual = self.parts.iter().any(has_two);
        match (is_dual, self.dual_since) {
            (true, None) => self.dual_since = Some(self.now),
            (true, Some(since)) => self.longest_dual = self.longest_dual.max(self.now - since),
            (false, Some(since)) => {
                self.longest_dual = self.longest_dual.max(self.now - since);
                self.dual_since = None;
            }
            (false, None) => {}
        }
    }

    /// One master for each part that has a router fit for it, and nobody who would preempt it.
    pub fn assert_settled(&self) {
        for part in &self.parts {
            let members: Vec<_> = (0..self.routers.len())
                .filter(|i| self.parts[*i] == *part && self.routers[*i].is_fit())
                .collect();
            for segment in 0..self.segments {
                let masters = self.masters(*part, segment);
                let expected = usize::from(!members.is_empty());
                assert_eq!(
                    masters.len(),
                    expected,
                    "part {part}: {masters:?} of {members:?}"
                );
                let Some(master) = masters.first() else {
                    continue;
                };
                let priority = |i: usize| self.routers[i].runners[segment].priority();
                for i in &members {
                    let preempts = self.routers[*i].runners[segment].instance.preempt;
                    assert!(
                        !preempts || priority(*i) <= priority(*master),
                        "router {i} with {} does not preempt router {master} with {}",
                        priority(*i),
                        priority(*master)
                    );
                }
            }
        }
    }

    pub fn tell(&self, what: impl FnOnce(&Self) -> String) {
        if self.is_told {
            eprintln!("{:>12.6} {}", self.now.as_secs_f64(), what(self));
        }
    }
}
