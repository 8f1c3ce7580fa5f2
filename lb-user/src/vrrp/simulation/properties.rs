//! What is promised of any number of routers.

use std::time::Duration;

use super::{
    every_seed,
    router::{Packet, Router},
    world::{Network, World},
};
use crate::{
    model::VrrpVersion,
    vrrp::{fsm::Event, runner::Order},
};

/// Whatever happened before: once the network is whole, or divided and calm, each part has one master,
/// two at a time never lasted longer than an interval since, and nothing changes any more.
#[test]
fn one_master_after_any_history() {
    every_seed(33, |seed| {
        let mut world = World::new(seed);
        for index in 0..world.routers.len() {
            world.command(index, Router::start);
        }
        for _ in 0..4 + world.random.below(10) {
            disturb(&mut world);
            let pause = part_of(&mut world, 3);
            world.run(pause);
        }
        calm_down(&mut world);
        world.tell(|_| "calm".to_owned());
        world.longest_dual = Duration::ZERO;
        let bound = world.bound();
        let dual = world.longest() + 2 * world.network.delay;
        world.run(bound);
        world.assert_settled();
        assert!(
            world.longest_dual <= dual,
            "two masters for {:?}",
            world.longest_dual
        );
        stays_so(&mut world, 5);
    });
}

/// Loss of two adverts in a row, copies that come late or twice, threads that sleep: none of it makes
/// anybody change, as long as no three adverts in a row are lost.
#[test]
fn nobody_flaps_below_three_losses() {
    every_seed(20, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let interval = world.routers[master].instances[0].advert_interval;
        // Longer delays than the skew are losses, by the protocol's own measure.
        let skew = |i: usize| world.routers[i].patience(0).1;
        let skew = (0..world.routers.len())
            .filter(|i| *i != master)
            .map(skew)
            .min()
            .unwrap();
        let delay = world.network.delay.min(skew * 9 / 10);
        let kind = world.random.below(3);
        world.network = Network {
            loss: if kind == 0 {
                20 + world.random.below(60)
            } else {
                0
            },
            never_three: true,
            delay,
            duplicates: 20,
            stale: 3 * interval,
        };
        for _ in 0..8 {
            let index = world.random.below(world.routers.len() as u64) as usize;
            if index == master {
                if kind == 2 {
                    let time = interval * world.random.below(190) as u32 / 100;
                    world.put_to_sleep(index, time, false);
                }
            } else if kind != 2 && world.routers[index].is_awake() {
                // A host that stands still loses what comes meanwhile; then nothing else may be lost.
                let time = interval * world.random.below(800) as u32 / 100;
                world.put_to_sleep(index, time, kind == 1);
            }
            let pause = 3 * interval + interval * world.random.below(300) as u32 / 100;
            let before = world.changes;
            world.run(pause);
            assert_eq!(world.changes, before, "somebody flapped");
        }
        assert!(world.masters(0, 0) == [master]);
    });
}

/// Parts with a master each become one network: within an interval the survivor has announced its
/// addresses, on all networks of a group, and the others have let go.
#[test]
fn the_survivor_of_a_partition_announces() {
    every_seed(18, |seed| {
        let mut world = elected(seed);
        let count = world.routers.len();
        let mut parts = vec![0, 1];
        for _ in 2..count {
            parts.push(world.random.below(3) as usize);
        }
        world.divide(parts);
        let bound = world.bound() + part_of(&mut world, 1);
        world.run(bound);
        world.assert_settled();
        let masters: Vec<_> = (0..count)
            .filter(|i| world.routers[*i].is_master(0))
            .collect();
        assert!(masters.len() > 1);
        let rank = |i: &usize| {
            (
                world.routers[*i].runners[0].priority(),
                world.routers[*i].source,
            )
        };
        let best = masters.iter().copied().max_by_key(rank).unwrap();
        let healed = world.now;
        world.divide(vec![0; count]);
        let interval = world.routers[best].instances[0].advert_interval;
        let delay = 3 * world.network.delay;
        world.run(interval + delay);
        for segment in 0..world.segments {
            let at = world.announced[best][segment];
            assert!(
                at.is_some_and(|at| at >= healed),
                "router {best} is silent: {at:?}"
            );
        }
        for loser in masters.iter().filter(|i| **i != best) {
            assert!(
                !world.routers[*loser].is_master(0),
                "router {loser} goes on"
            );
        }
        let bound = world.bound();
        world.run(bound);
        world.assert_settled();
        stays_so(&mut world, 3);
    });
}

/// A master that stops, fails or is asked to yield says so, and is replaced after the skew; one that
/// vanishes is replaced after the silence that its successor waits for.
#[test]
fn a_master_is_replaced_in_time() {
    every_seed(18, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let phase = part_of(&mut world, 2);
        world.run(phase);
        // A last advert that overtakes the farewell makes everybody wait for the next one.
        world.run(world.network.delay + Duration::from_nanos(1));
        let last = world.spoke[master];
        if last[..world.segments]
            .iter()
            .any(|at| *at + world.network.delay >= world.now)
        {
            return;
        }
        let others = || (0..world.routers.len()).filter(|i| *i != master);
        let silence = others()
            .map(|i| world.routers[i].patience(0).0)
            .min()
            .unwrap();
        let skew = others()
            .map(|i| world.routers[i].patience(0).1)
            .min()
            .unwrap();
        let delay = world.network.delay;
        let after_farewell = world.now + skew + delay;
        let after_silence = last.iter().max().copied().unwrap_or_default() + silence + delay;
        let end = match world.random.below(5) {
            0 => {
                world.command(master, Router::stop);
                after_farewell
            }
            1 => {
                world.command(master, |r| r.track(true));
                after_farewell
            }
            2 => {
                world.command(master, |r| r.order(Order::Failover));
                after_farewell
            }
            3 => {
                world.crash(master);
                after_silence
            }
            _ => {
                world.command(master, |r| r.plug(0, false));
                match world.segments {
                    1 => after_silence,
                    // The cable of the other network is well: the group says farewell there.
                    _ => after_silence.max(after_farewell),
                }
            }
        };
        world.run_until(end);
        for segment in 0..world.segments {
            let masters = world.masters(0, segment);
            assert!(!masters.is_empty(), "nobody took over");
            assert!(!masters.contains(&master), "it is master still");
        }
        let bound = world.bound();
        world.run(bound);
        world.assert_settled();
    });
}

/// A master vanishes, and somebody says again and again that it stops: that hastens its successor, and
/// never postpones it, in no network of a group.
#[test]
fn farewells_without_end_postpone_nothing() {
    every_seed(4, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let stranger = world.routers[master].source;
        let interval = world.routers[master].instances[0].advert_interval;
        world.crash(master);
        // The last advert arrives.
        world.run(world.network.delay + Duration::from_nanos(1));
        let others: Vec<_> = (0..world.routers.len()).filter(|i| *i != master).collect();
        let patience = others.iter().map(|i| world.routers[*i].patience(0).1);
        let skew = patience.min().unwrap();
        let step = (skew / 7).max(Duration::from_nanos(1));
        let farewell = Packet::Event(Event::Advert {
            priority: 0,
            source: stranger,
            interval,
        });
        // Members of a group are told one after the other.
        let end = world.now + skew + 3 * step;
        let mut segment = 0;
        while world.now < end {
            for index in others.iter().copied() {
                if world.routers[index].arrive(segment, farewell.clone()) {
                    world.command(index, |_| ());
                }
            }
            segment = (segment + 1) % world.segments;
            world.run(step);
        }
        for segment in 0..world.segments {
            assert!(!world.masters(0, segment).is_empty(), "nobody took over");
        }
    });
}

/// A master that is flooded with adverts of lower priorities, or farewells, answers at once, then no
/// more often than ten times an interval (or every 10 ms), and so do its group; its last announcement
/// comes after the last of them.
#[test]
fn a_flood_is_answered_in_measure() {
    every_seed(4, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let priority = world.routers[master].runners[0].priority();
        if priority == 1 {
            return;
        }
        let settings = *world.routers[master].runners[0].machine.settings();
        let interval = settings.interval;
        let quiet = part_of(&mut world, 2);
        world.run(quiet);
        let before = world.told[master];
        let floods = 1_000;
        let flood = 2 * interval;
        let mut last = world.now;
        for number in 0..floods {
            let segment = number % world.segments;
            let lower = Packet::Event(Event::Advert {
                priority: if number % 3 == 1 { 0 } else { priority - 1 },
                source: [10, 9, 0, 200].into(),
                interval,
            });
            if number % 3 != 1 {
                last = world.now;
            }
            if world.routers[master].arrive(segment, lower) {
                world.command(master, |_| ());
            }
            if number == 0 {
                assert_eq!(world.spoke[master][0], world.now, "not at once");
                assert_eq!(world.announced[master][0], Some(world.now), "not at once");
            }
            // It may be the last word of one that was answered and yields.
            if number == 2 {
                assert_eq!(
                    world.announced[master][segment],
                    Some(world.now),
                    "a last word waits"
                );
            }
            world.run(flood / floods as u32);
        }
        // By the promise, not by the machine.
        let pause = Duration::from_millis(10).max(interval / 10);
        let most = 2 + (flood.as_nanos() / pause.min(interval).as_nanos()) as u64;
        let told = world.told[master].iter().zip(before);
        for (after, before) in told.take(world.segments) {
            let (sent, announced) = (after.0 - before.0, after.1 - before.1);
            assert!(sent <= most, "{sent} adverts, {most} at most");
            assert!(announced <= most, "{announced} reports, {most} at most");
        }
        world.run(interval);
        for segment in 0..world.segments {
            let announced = world.announced[master][segment].unwrap_or_default();
            assert!(announced >= last, "network {segment} was not announced");
        }
        assert!(world.masters(0, 0) == [master]);
    });
}

/// A master that slept while others gave it up says nothing before it has heard somebody, or listened
/// for an interval.
#[test]
fn a_master_that_overslept_listens_first() {
    every_seed(3, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let interval = world.routers[master].instances[0].advert_interval;
        let time = 4 * interval + part_of(&mut world, 8);
        world.put_to_sleep(master, time, true);
        let wakes = world.now + time;
        world.run_until(wakes);
        assert!(world.spoke[master][0] < wakes, "it spoke as it woke");
        let others = |world: &World| {
            let last = (0..world.routers.len()).filter(|i| *i != master);
            // On any network: a group that hears somebody on one yields on all.
            let on_any = last.flat_map(|i| &world.spoke[i][..world.segments]);
            on_any.max().copied().unwrap_or_default()
        };
        let step = (interval / 50).max(Duration::from_nanos(1));
        while world.spoke[master][0] < wakes && world.now < wakes + interval {
            world.run(step);
        }
        let spoke = world.spoke[master][0];
        // What woke it was sent at most one delay before it woke.
        let heard = others(&world) + world.network.delay >= wakes;
        assert!(spoke < wakes || heard || spoke >= wakes + interval);
        let bound = world.bound();
        world.run(bound);
        world.assert_settled();
    });
}

/// The thread of a backup is late, and the advert that should have stopped its timer waits in the queue.
#[test]
fn an_advert_in_the_queue_stops_the_timer() {
    every_seed(3, |seed| {
        let mut world = elected(seed);
        let master = world.masters(0, 0)[0];
        let backup = usize::from(master == 0);
        let interval = world.routers[master].instances[0].advert_interval;
        world.network.loss = 100;
        let due = |world: &World, segment: usize| {
            let machine = &world.routers[backup].runners[segment].machine;
            machine.deadline().unwrap_or_default()
        };
        let step = (interval / 200).max(Duration::from_nanos(1));
        // Adverts that are on their way still move the deadline.
        while world.now + 2 * step < (0..world.segments).map(|s| due(&world, s)).min().unwrap() {
            world.run(step);
        }
        let time = 4 * step;
        world.put_to_sleep(backup, time, false);
        for segment in 0..world.segments {
            let router = &world.routers[master];
            let advert = Packet::Event(Event::Advert {
                priority: router.runners[segment].priority(),
                source: router.source,
                interval,
            });
            world.routers[backup].arrive(segment, advert);
        }
        world.run(time);
        assert!(world.routers[backup].is_awake());
        assert!(!world.routers[backup].is_master(0), "it did not look first");
    });
}

/// One silent network of a group's two makes nobody change sides, and what a member wished meanwhile
/// is forgotten when its network speaks again.
#[test]
fn a_group_stays_with_one_silent_network() {
    every_seed(5, |seed| {
        let mut world = elected(seed);
        if world.segments == 1 {
            return;
        }
        let before = world.changes;
        for segment in [0, 1, 0] {
            world.cut = Some(segment);
            let bound = world.bound();
            world.run(bound);
            assert_eq!(world.changes, before, "network {segment} is silent");
            world.cut = None;
            let rest = 3 * world.longest();
            world.run(rest);
            assert_eq!(world.changes, before, "network {segment} speaks again");
        }
        world.assert_settled();
    });
}

/// All routers run, one is master, and nothing is pending.
fn elected(seed: u64) -> World {
    let mut world = World::new(seed);
    for index in 0..world.routers.len() {
        let pause = part_of(&mut world, 1);
        world.command(index, Router::start);
        world.run(pause);
    }
    let bound = world.bound();
    world.run(bound);
    world.assert_settled();
    world
}

fn stays_so(world: &mut World, intervals: u32) {
    let before = world.changes;
    let time = intervals * world.longest();
    world.run(time);
    assert_eq!(world.changes, before, "it does not last");
    world.assert_settled();
}

/// A random part of so many intervals.
fn part_of(world: &mut World, intervals: u32) -> Duration {
    world.longest() * intervals * world.random.below(1_000) as u32 / 1_000
}

fn disturb(world: &mut World) {
    let count = world.routers.len();
    let index = world.random.below(count as u64) as usize;
    let kind = world.random.below(15);
    if kind > 2 && !world.routers[index].is_awake() {
        // Nobody who sleeps is told anything.
        return;
    }
    let segment = world.random.below(world.segments as u64) as usize;
    let base = world.shortest();
    world.tell(|_| format!("disturbance {kind} of router {index}"));
    match kind {
        0 => {
            let parts = (0..count).map(|_| world.random.below(3) as usize).collect();
            world.divide(parts);
        }
        1 => world.divide(vec![0; count]),
        2 => {
            world.network.loss = world.random.pick(&[0, 5, 30, 60]);
            world.network.duplicates = world.random.pick(&[0, 0, 30]);
            world.network.stale = world.longest() * world.random.below(4) as u32;
            world.network.delay = base * world.random.below(50) as u32 / 100;
        }
        3 | 4 => {
            let time = part_of(world, 8);
            world.put_to_sleep(index, time, kind == 3);
        }
        5 => world.crash(index),
        6 if world.routers[index].is_running() => world.command(index, Router::stop),
        6 | 7 if !world.routers[index].is_running() => world.command(index, Router::start),
        6 | 7 => {}
        8 => world.command(index, |r| r.plug(segment, false)),
        9 => world.command(index, |r| r.plug(segment, true)),
        10 => world.command(index, |r| r.track(true)),
        11 => world.command(index, |r| r.track(false)),
        12 => {
            let priority = 1 + world.random.below(254) as u8;
            let order =
                world
                    .random
                    .pick(&[Order::Failover, Order::Priority(priority), Order::Reset]);
            world.command(index, |r| r.order(order));
        }
        _ => {
            let version = world.routers[index].instances[0].version;
            let priority = 1 + world.random.below(254) as u8;
            let preempt = world.random.percent(70);
            let longer = world.random.pick(&[1, 2]);
            world.command(index, |r| {
                r.reload(|instance| {
                    instance.priority = priority;
                    instance.preempt = preempt;
                    if version == VrrpVersion::V3 && longer * base <= Duration::from_secs(2) {
                        instance.advert_interval = longer * base;
                    }
                });
            });
        }
    }
}

/// Everybody wakes, the network loses nothing, and half of what is broken is mended.
fn calm_down(world: &mut World) {
    let base = world.shortest();
    world.network = Network {
        delay: base / 20,
        ..Network::default()
    };
    // The last sleeper wakes, and the last old copy arrives.
    let rest = 8 * world.longest();
    world.run(rest);
    for index in 0..world.routers.len() {
        if world.random.percent(50) {
            world.command(index, |r| {
                r.track(false);
                for segment in 0..r.carrier.len() {
                    r.plug(segment, true);
                }
                if !r.is_running() {
                    r.start();
                }
            });
        }
    }
    if world.random.percent(60) {
        world.divide(vec![0; world.routers.len()]);
    }
}
