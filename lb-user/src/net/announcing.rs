//! When which address is announced: batches of rounds after an occasion, refreshes, and a least time
//! between frames. Pure: it is handed the time, and says what is due.
//!
//! A batch is a number of rounds, and each round announces every address of the instance once. A second batch
//! may follow. Frames that the least time between frames holds up wait in a queue of their interface and
//! family; a new batch takes the place of what its instance still has there, and begins with the address that
//! was next.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::model::AnnounceTiming;

/// Adverts of lower priority may come every 10 ms from one that does not yield. The answer to each is not
/// refused, because it may be the one that sets clients right, but each but the first two comes this long after
/// the one before. The second must not wait: when a partition heals, the first finds a second master and the next
/// is its last word, after which nobody has the addresses until they are announced.
const LOWER_PRIORITY_REST: Duration = Duration::from_millis(100);

/// Why addresses are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The instance became master, its addresses changed, or an operator asked.
    Promotion,
    /// An advert of lower priority was heard.
    LowerPriority,
    /// Nothing but time.
    Refresh,
}

/// An address that is to be announced now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whose it is.
    pub instance: Arc<str>,
    /// The address.
    pub address: IpAddr,
}

/// All instances that hold addresses.
#[derive(Debug, Default)]
pub struct Announcing {
    masters: BTreeMap<Arc<str>, Master>,
    lines: BTreeMap<(u32, bool), Line>,
}

#[derive(Debug)]
struct Master {
    ifindex: u32,
    addresses: Vec<IpAddr>,
    timing: AnnounceTiming,
    /// Rounds that are left of the running batch, and when the next one is.
    rounds: Option<(u32, Instant)>,
    /// That batch has not begun, and takes the place of what is queued when it does.
    replaces: bool,
    /// The second batch.
    again: Option<(u32, Instant)>,
    refresh: Option<Instant>,
    /// When it last began to answer an advert of lower priority, or is going to.
    answered: Option<Instant>,
    /// When as many answers as were given would have been given at one each [`LOWER_PRIORITY_REST`].
    earned: Option<Instant>,
}

/// Frames of one interface and one family.
#[derive(Debug)]
struct Line {
    queue: VecDeque<Due>,
    free_at: Instant,
}

impl Announcing {
    /// An instance holds these addresses from now on. Nothing is announced yet but the refresh.
    pub fn hold(
        &mut self,
        instance: &str,
        ifindex: u32,
        addresses: Vec<IpAddr>,
        timing: AnnounceTiming,
        now: Instant,
    ) {
        self.forget(instance);
        let master = Master {
            ifindex,
            addresses,
            refresh: later(now, timing.refresh),
            timing,
            rounds: None,
            replaces: false,
            again: None,
            answered: None,
            earned: None,
        };
        self.masters.insert(instance.into(), master);
    }

    /// Instances are called otherwise from now on.
    pub fn rename(&mut self, name: impl Fn(&str) -> Arc<str>) {
        let masters = std::mem::take(&mut self.masters).into_iter();
        self.masters = masters.map(|(old, master)| (name(&old), master)).collect();
        for frame in self.lines.values_mut().flat_map(|line| &mut line.queue) {
            frame.instance = name(&frame.instance);
        }
    }

    /// Follows a changed configuration of an instance that goes on as it is.
    pub fn retime(&mut self, instance: &str, timing: AnnounceTiming, now: Instant) {
        if let Some(master) = self.masters.get_mut(instance)
            && master.timing != timing
        {
            master.refresh = later(now, timing.refresh);
            master.timing = timing;
        }
    }

    /// An instance holds nothing any more.
    pub fn forget(&mut self, instance: &str) {
        self.masters.remove(instance);
        self.drop_queued(instance);
    }

    /// Begins a batch. Says whether the instance holds anything.
    pub fn begin(&mut self, instance: &str, occasion: Occasion, now: Instant) -> bool {
        let Some(master) = self.masters.get_mut(instance) else {
            return false;
        };
        let timing = &master.timing;
        let (rounds, delay, mut at) = match occasion {
            Occasion::Promotion => (timing.master_repeat, timing.master_delay, now),
            Occasion::LowerPriority => (timing.lower_prio_repeat, timing.lower_prio_delay, now),
            Occasion::Refresh => (timing.refresh_repeat, Duration::ZERO, now),
        };
        if occasion == Occasion::LowerPriority {
            // An answer that still waits is the answer to this advert too, also one that is due: who speaks at that
            // very moment each time would put it off for ever.
            let begun = master
                .rounds
                .is_none_or(|(_, at)| Some(at) != master.answered);
            if let Some(waits) = master.answered.filter(|last| *last > now || !begun) {
                at = waits;
            } else {
                let earned = master.earned.unwrap_or(now);
                if earned > now + LOWER_PRIORITY_REST {
                    at = earned - LOWER_PRIORITY_REST;
                }
                master.answered = Some(at);
                master.earned = Some(earned.max(at) + LOWER_PRIORITY_REST);
            }
        }
        if rounds > 0 {
            master.rounds = Some((rounds, at));
            master.replaces = true;
            master.again = later(at, delay).map(|again| (rounds, again));
            master.refresh = later(at, timing.refresh);
        }
        true
    }

    /// What is to be sent at `now`.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        self.make_way(now);
        for (name, master) in &mut self.masters {
            let mut begins = None;
            if master.refresh.is_some_and(|at| at <= now) {
                master.refresh = later(now, master.timing.refresh);
                begins = Some(master.timing.refresh_repeat);
            }
            if let Some((rounds, at)) = master.again
                && at <= now
            {
                master.again = None;
                begins = Some(rounds);
            }
            // What still waits to be sent is as good: the queues stay as long as one batch.
            let waits = |line: &Line| line.queue.iter().any(|frame| frame.instance == *name);
            if let Some(rounds) = begins
                && master.rounds.is_none()
                && !self.lines.values().any(waits)
            {
                master.rounds = Some((rounds, now));
            }
            // Rounds that a late caller missed are not made up for, unless all come at once anyway.
            while let Some((left, at)) = master.rounds
                && at <= now
            {
                let wait = master.timing.repeat_interval;
                master.rounds = (left > 1).then_some((left - 1, now + wait));
                for address in &master.addresses {
                    let key = (master.ifindex, address.is_ipv6());
                    let line = self.lines.entry(key).or_insert_with(|| Line {
                        queue: VecDeque::new(),
                        free_at: now,
                    });
                    line.queue.push_back(Due {
                        instance: name.clone(),
                        address: *address,
                    });
                }
            }
        }
        let mut due = Vec::new();
        for line in self.lines.values_mut() {
            while line.free_at <= now
                && let Some(frame) = line.queue.pop_front()
            {
                let interval = self
                    .masters
                    .get(&frame.instance)
                    .map_or(Duration::ZERO, |master| match frame.address {
                        IpAddr::V4(_) => master.timing.arp_interval,
                        IpAddr::V6(_) => master.timing.na_interval,
                    });
                line.free_at = now + interval;
                due.push(frame);
            }
        }
        self.lines
            .retain(|_, line| !line.queue.is_empty() || line.free_at > now);
        due
    }

    /// When [`Announcing::due`] has something next.
    pub fn next(&self) -> Option<Instant> {
        let batches = self.masters.values().flat_map(|master| {
            let at = |batch: Option<(u32, Instant)>| batch.map(|(_, at)| at);
            [at(master.rounds), at(master.again), master.refresh]
        });
        let waiting = self
            .lines
            .values()
            .filter(|line| !line.queue.is_empty())
            .map(|line| Some(line.free_at));
        batches.chain(waiting).flatten().min()
    }

    /// Drops what is queued of instances whose new batch begins.
    fn make_way(&mut self, now: Instant) {
        let mut begin = Vec::new();
        for (name, master) in &mut self.masters {
            if master.replaces && master.rounds.is_some_and(|(_, at)| at <= now) {
                master.replaces = false;
                begin.push(name.clone());
            }
        }
        for instance in begin {
            self.turn_to_queued(&instance);
            self.drop_queued(&instance);
        }
    }

    /// Puts the addresses that are next to be sent before those of their family that were sent already. Batches that
    /// come faster than one can be sent would never get to the last address otherwise.
    fn turn_to_queued(&mut self, instance: &str) {
        let Some(master) = self.masters.get_mut(instance) else {
            return;
        };
        for line in self.lines.values() {
            let mut queue = line.queue.iter();
            let Some(next) = queue.find(|frame| &*frame.instance == instance) else {
                continue;
            };
            let of_family = |address: &IpAddr| address.is_ipv6() == next.address.is_ipv6();
            let (mut family, other): (Vec<_>, Vec<_>) =
                master.addresses.iter().copied().partition(of_family);
            if let Some(at) = family.iter().position(|address| *address == next.address) {
                family.rotate_left(at);
            }
            family.extend(other);
            master.addresses = family;
        }
    }

    fn drop_queued(&mut self, instance: &str) {
        for line in self.lines.values_mut() {
            line.queue.retain(|frame| &*frame.instance != instance);
        }
    }
}

/// A time after `now`; a zero wait means never.
fn later(now: Instant, wait: Duration) -> Option<Instant> {
    (!wait.is_zero()).then(|| now + wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 15, 50));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 15, 51));
    const VIP6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn timing() -> AnnounceTiming {
        AnnounceTiming {
            master_repeat: 3,
            repeat_interval: ms(100),
            master_delay: ms(1_000),
            refresh: ms(10_000),
            refresh_repeat: 2,
            lower_prio_repeat: 1,
            lower_prio_delay: Duration::ZERO,
            ..AnnounceTiming::default()
        }
    }

    /// Runs until `until`, waking when it is due, and says what came when, in milliseconds.
    fn run(announcing: &mut Announcing, start: Instant, until: u64) -> Vec<(u64, IpAddr)> {
        let mut all = Vec::new();
        while let Some(at) = announcing.next()
            && at <= start + ms(until)
        {
            let due = announcing.due(at);
            let when = (at - start).as_millis() as u64;
            all.extend(due.into_iter().map(|frame| (when, frame.address)));
        }
        all
    }

    fn started(timing: AnnounceTiming, addresses: &[IpAddr]) -> (Announcing, Instant) {
        let start = Instant::now();
        let mut announcing = Announcing::default();
        announcing.hold("VI_1", 7, addresses.to_vec(), timing, start);
        (announcing, start)
    }

    #[test]
    fn batches_of_a_new_master_and_refreshes() {
        let (mut announcing, start) = started(timing(), &[VIP]);
        assert!(announcing.begin("VI_1", Occasion::Promotion, start));
        let times: Vec<u64> = run(&mut announcing, start, 21_000)
            .iter()
            .map(|(at, _)| *at)
            .collect();
        assert_eq!(
            times,
            [
                0, 100, 200, 1_000, 1_100, 1_200, 10_000, 10_100, 20_000, 20_100
            ]
        );
        assert!(!announcing.begin("VI_2", Occasion::Promotion, start));
    }

    #[test]
    fn without_delay_and_refresh_it_ends() {
        let quiet = AnnounceTiming {
            master_delay: Duration::ZERO,
            refresh: Duration::ZERO,
            repeat_interval: Duration::ZERO,
            ..timing()
        };
        let (mut announcing, start) = started(quiet, &[VIP, OTHER]);
        announcing.begin("VI_1", Occasion::Promotion, start);
        let all = run(&mut announcing, start, 100_000);
        assert_eq!(all, [VIP, OTHER, VIP, OTHER, VIP, OTHER].map(|a| (0, a)));
        assert_eq!(announcing.next(), None);
    }

    #[test]
    fn frames_of_a_family_keep_their_distance() {
        let slow = AnnounceTiming {
            master_repeat: 1,
            master_delay: Duration::ZERO,
            arp_interval: ms(20),
            ..timing()
        };
        let (mut announcing, start) = started(slow, &[VIP, VIP6, OTHER, VIP6]);
        // Two instances of one interface share the line.
        announcing.hold("VI_2", 7, vec![VIP], slow, start);
        announcing.begin("VI_1", Occasion::Promotion, start);
        announcing.begin("VI_2", Occasion::Promotion, start);
        let all = run(&mut announcing, start, 1_000);
        let of = |v6: bool| -> Vec<u64> {
            let of_family = all.iter().filter(|(_, address)| address.is_ipv6() == v6);
            of_family.map(|(at, _)| *at).collect()
        };
        assert_eq!(of(false), [0, 20, 40]);
        assert_eq!(of(true), [0, 0]);
    }

    #[test]
    fn answers_to_a_lower_priority_are_limited_and_the_last_is_not_lost() {
        let (mut announcing, start) = started(timing(), &[VIP]);
        let mut all = Vec::new();
        for advert in 0..20 {
            let now = start + ms(advert * 10);
            announcing.begin("VI_1", Occasion::LowerPriority, now);
            let due = announcing.due(now).len();
            all.extend(std::iter::repeat_n(advert * 10, due));
        }
        all.extend(run(&mut announcing, start, 1_000).iter().map(|(at, _)| *at));
        assert!((2..=4).contains(&all.len()), "{all:?}");
        assert_eq!(all[0], 0, "the first is answered at once");
        assert!(all.last().is_some_and(|at| *at >= 190), "{all:?}");
    }

    /// A second master speaks, is answered, and yields with a last word.
    #[test]
    fn a_last_word_is_answered_at_once() {
        let (mut announcing, start) = started(timing(), &[VIP]);
        for heard in [0, 4] {
            let now = start + ms(heard);
            announcing.begin("VI_1", Occasion::LowerPriority, now);
            assert_eq!(announcing.due(now).len(), 1, "{heard} ms");
        }
    }

    /// Who speaks as often as answers are given does not put them off: one that is due, and not sent yet, still waits.
    #[test]
    fn an_answer_that_is_due_is_not_put_off() {
        let (mut announcing, start) = started(timing(), &[VIP]);
        for (heard, sent) in [(0, 1), (4, 1), (50, 0), (100, 1), (150, 0), (201, 1)] {
            let now = start + ms(heard);
            announcing.begin("VI_1", Occasion::LowerPriority, now);
            assert_eq!(announcing.due(now).len(), sent, "{heard} ms");
        }
    }

    /// Answers begin every 100 ms, and each takes 250 ms to send.
    #[test]
    fn answers_that_follow_each_other_reach_every_address() {
        let slow = AnnounceTiming {
            arp_interval: ms(50),
            na_interval: ms(50),
            ..timing()
        };
        let v4 = (50..55).map(|last| IpAddr::from([10, 1, 15, last]));
        let v6 = (1..6).map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
        let all: Vec<IpAddr> = v4.zip(v6).flat_map(|(v4, v6)| [v4, v6]).collect();
        let (mut announcing, start) = started(slow, &all);
        let mut sent = Vec::new();
        for tick in 0..30 {
            let now = start + ms(tick * 10);
            announcing.begin("VI_1", Occasion::LowerPriority, now);
            sent.extend(announcing.due(now).into_iter().map(|frame| frame.address));
        }
        assert_eq!(sent.len(), 12, "{sent:?}");
        for address in all {
            assert!(sent.contains(&address), "{address}: {sent:?}");
        }
    }

    #[test]
    fn other_timing_holds_from_the_next_refresh_on() {
        let (mut announcing, start) = started(timing(), &[VIP]);
        let hourly = AnnounceTiming {
            refresh: ms(3_600_000),
            ..timing()
        };
        announcing.retime("VI_1", timing(), start + ms(5_000));
        assert_eq!(announcing.next(), Some(start + ms(10_000)), "the same");
        announcing.retime("VI_1", hourly, start + ms(5_000));
        assert_eq!(announcing.next(), Some(start + ms(3_605_000)));
    }

    #[test]
    fn what_is_given_up_is_not_announced() {
        let slow = AnnounceTiming {
            arp_interval: ms(500),
            ..timing()
        };
        let (mut announcing, start) = started(slow, &[VIP, OTHER]);
        announcing.begin("VI_1", Occasion::Promotion, start);
        assert_eq!(announcing.due(start).len(), 1);
        announcing.forget("VI_1");
        assert_eq!(run(&mut announcing, start, 100_000), []);
    }

    /// Refreshes every second of what takes three seconds to send.
    #[test]
    fn queues_do_not_grow() {
        let hasty = AnnounceTiming {
            master_repeat: 1,
            refresh: ms(1_000),
            refresh_repeat: 3,
            repeat_interval: Duration::ZERO,
            arp_interval: ms(1_000),
            ..timing()
        };
        let (mut announcing, start) = started(hasty, &[VIP]);
        announcing.begin("VI_1", Occasion::Promotion, start);
        let all = run(&mut announcing, start, 60_000);
        assert!((50..=62).contains(&all.len()), "one a second: {all:?}");
        assert!(announcing.lines.values().all(|line| line.queue.len() <= 3));
    }

    #[test]
    fn a_new_batch_replaces_what_waits() {
        let slow = AnnounceTiming {
            master_repeat: 100,
            repeat_interval: Duration::ZERO,
            arp_interval: ms(500),
            ..timing()
        };
        let (mut announcing, start) = started(slow, &[VIP]);
        for at in 0..50 {
            announcing.begin("VI_1", Occasion::Promotion, start + ms(at));
            announcing.due(start + ms(at));
            assert!(announcing.lines[&(7, false)].queue.len() <= 100);
        }
    }
}
