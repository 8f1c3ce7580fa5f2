//! Two machines on one virtual clock with a seeded network between them.

use proptest::prelude::*;

use super::*;

/// A small deterministic generator (xorshift64*): the seed of a failing case replays it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

struct Network {
    machines: [Machine; 2],
    /// Arrival time, receiver, event.
    flying: Vec<(Instant, usize, Event)>,
    random: Random,
    loss_percent: u64,
    delay_max: Duration,
    now: Instant,
    announced: [Option<Instant>; 2],
    two_masters_since: Option<Instant>,
    longest_dual: Duration,
}

impl Network {
    fn new(seed: u64, priorities: [u8; 2], loss_percent: u64, delay_max: Duration) -> Self {
        let machine = |priority, source| {
            Machine::new(Settings {
                source,
                ..settings(priority)
            })
        };
        let mut network = Self {
            machines: [machine(priorities[0], HIGH), machine(priorities[1], LOW)],
            flying: Vec::new(),
            random: Random(seed | 1),
            loss_percent,
            delay_max,
            now: Duration::ZERO,
            announced: [None; 2],
            two_masters_since: None,
            longest_dual: Duration::ZERO,
        };
        network.feed(0, Event::Start);
        network.feed(1, Event::Start);
        network
    }

    fn feed(&mut self, index: usize, event: Event) {
        for effect in self.machines[index].handle(event, self.now) {
            match effect {
                Effect::SendAdvert(priority) => {
                    if self.random.below(100) >= self.loss_percent {
                        let delay = Duration::from_nanos(
                            self.random.below(self.delay_max.as_nanos() as u64 + 1),
                        );
                        let source = self.machines[index].settings().source;
                        let event = advert(priority, source);
                        self.flying.push((self.now + delay, 1 - index, event));
                    }
                }
                Effect::Announce | Effect::Enter(VrrpState::Master, _) => {
                    self.announced[index] = Some(self.now);
                }
                Effect::Enter(..) => {}
            }
        }
        let masters = self.masters();
        match (masters.len(), self.two_masters_since) {
            (2, None) => self.two_masters_since = Some(self.now),
            (0 | 1, Some(since)) => {
                self.longest_dual = self.longest_dual.max(self.now - since);
                self.two_masters_since = None;
            }
            _ => {}
        }
    }

    fn masters(&self) -> Vec<usize> {
        (0..2)
            .filter(|i| self.machines[*i].state() == VrrpState::Master)
            .collect()
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let arrival = self
                .flying
                .iter()
                .enumerate()
                .min_by_key(|(_, f)| f.0)
                .map(|(i, f)| (f.0, i));
            let timer = (0..2)
                .filter_map(|i| self.machines[i].deadline().map(|d| (d, i)))
                .min();
            let next_arrival = arrival.map_or(Duration::MAX, |a| a.0);
            let next_timer = timer.map_or(Duration::MAX, |t| t.0);
            if next_arrival.min(next_timer) > end {
                break;
            }
            if next_arrival <= next_timer {
                let (at, receiver, event) = self.flying.swap_remove(arrival.unwrap().1);
                self.now = at;
                self.feed(receiver, event);
            } else {
                self.now = next_timer;
                self.feed(timer.unwrap().1, Event::Timer);
            }
        }
        self.now = end;
    }
}

proptest! {
    /// Without loss one master is elected, it is the right one, and two never last longer than one
    /// interval, over stops, restarts and link failures at random times.
    #[test]
    fn one_master_without_loss(seed: u64, a in 1u8..=255, b in 1u8..=255) {
        let second = Duration::from_secs(1);
        let mut network = Network::new(seed, [a, b], 0, 5 * MS);
        for _ in 0..8 {
            let index = network.random.below(2) as usize;
            let event = match network.random.below(4) {
                0 => Event::Stop,
                1 => Event::Start,
                2 => Event::LinkDown,
                _ => Event::LinkUp,
            };
            network.feed(index, event);
            let pause = Duration::from_millis(network.random.below(6_000));
            network.run_until(network.now + pause);
        }
        for index in 0..2 {
            network.feed(index, Event::LinkUp);
            network.feed(index, Event::Start);
        }
        network.run_until(network.now + 10 * second);
        let best = usize::from((b, LOW) > (a, HIGH));
        let masters = network.masters();
        prop_assert_eq!(masters.len(), 1);
        // Equal priorities do not preempt: whoever came first stays.
        prop_assert!(masters[0] == best || a == b, "{masters:?} of {a} and {b}");
        prop_assert!(network.longest_dual <= second, "{:?}", network.longest_dual);
    }

    /// Under loss of up to a third there may be two masters for a while, but once the network is
    /// whole again one remains, and it has announced itself since.
    #[test]
    fn recovers_from_loss(seed: u64, a in 1u8..=254, b in 1u8..=254, loss in 1u64..34) {
        let second = Duration::from_secs(1);
        let mut network = Network::new(seed, [a, b], loss, 50 * MS);
        network.run_until(120 * second);
        let dual_before = network.masters().len() == 2;
        network.loss_percent = 0;
        let healed = network.now;
        network.run_until(healed + 10 * second);
        let masters = network.masters();
        prop_assert_eq!(masters.len(), 1);
        if dual_before {
            let at = network.announced[masters[0]];
            prop_assert!(at.is_some_and(|at| at >= healed), "the survivor is silent");
        }
    }

    /// A partition: both become master. When it heals, the survivor announces within an interval.
    #[test]
    fn the_survivor_of_a_partition_announces(seed: u64, a in 1u8..=254, b in 1u8..=254) {
        let second = Duration::from_secs(1);
        let mut network = Network::new(seed, [a, b], 100, 5 * MS);
        network.run_until(20 * second);
        prop_assert_eq!(network.masters().len(), 2);
        network.loss_percent = 0;
        let healed = network.now;
        network.run_until(healed + second + 10 * MS);
        let masters = network.masters();
        prop_assert_eq!(masters.len(), 1);
        prop_assert!(network.announced[masters[0]].is_some_and(|at| at >= healed));
    }
}
