//! When an interface that flaps may be used again. Pure.
//!
//! A loss is a change from up to down. An interface is used once it has been up without interruption
//! for long enough: for `up_delay`, and for `hold` after more than `flaps` losses within `window`.
//! Each time that the losses exceed that again, the hold doubles, up to `hold_max`. One that has been
//! in use for a whole window without a loss is as good as new.

use std::{collections::VecDeque, time::Duration};

use crate::model::LinkDamping;

/// A point on the caller's monotonic clock.
pub type Instant = Duration;

/// The link of one instance.
#[derive(Clone, Debug)]
pub struct Damper {
    settings: LinkDamping,
    /// Since when it is up. One that was up when we came may have been so for ever.
    up_since: Option<Since>,
    /// The last losses, oldest first: one more than are borne at most.
    losses: VecDeque<Instant>,
    /// How often the losses were too many; the hold doubles with each.
    level: u32,
}

#[derive(Clone, Copy, Debug)]
enum Since {
    Before,
    At(Instant),
}

/// Why a link that is up is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How long it must have been up.
    pub needed: Duration,
    /// How long that still takes; `None` while it is down.
    pub left: Option<Duration>,
    /// Whether it was lost too often.
    pub is_held: bool,
}

impl Damper {
    /// A link as it is found.
    pub fn new(settings: LinkDamping, up: bool) -> Self {
        Self {
            settings,
            up_since: up.then_some(Since::Before),
            losses: VecDeque::new(),
            level: 0,
        }
    }

    /// Follows a changed configuration. What happened stays known.
    pub fn configure(&mut self, settings: LinkDamping) {
        if settings.flaps == 0 {
            self.losses.clear();
            self.level = 0;
        }
        self.settings = settings;
    }

    /// Takes the present condition. Says whether the losses are too many now.
    pub fn observe(&mut self, up: bool, now: Instant) -> bool {
        match (self.up_since, up) {
            (None, true) => {
                self.up_since = Some(Since::At(now));
                false
            }
            (Some(since), false) => {
                self.up_since = None;
                self.lose(since, now)
            }
            (None, false) | (Some(_), true) => false,
        }
    }

    fn lose(&mut self, since: Since, now: Instant) -> bool {
        let LinkDamping { flaps, window, .. } = self.settings;
        if flaps == 0 {
            return false;
        }
        let calm = match since {
            Since::Before => true,
            Since::At(at) => now.saturating_sub(at) >= self.needed() + window,
        };
        if calm {
            self.level = 0;
            self.losses.clear();
        }
        self.losses.push_back(now);
        while self
            .losses
            .front()
            .is_some_and(|loss| now.saturating_sub(*loss) > window)
        {
            self.losses.pop_front();
        }
        let too_many = self.losses.len() > flaps as usize;
        if too_many {
            self.losses.clear();
            // 2^31 holds are more than any bound.
            self.level = (self.level + 1).min(32);
        }
        too_many
    }

    /// How long it must have been up.
    fn needed(&self) -> Duration {
        let LinkDamping {
            up_delay,
            hold,
            hold_max,
            ..
        } = self.settings;
        match self.level {
            0 => up_delay,
            level => {
                let doubled = hold.saturating_mul(1u32.checked_shl(level - 1).unwrap_or(u32::MAX));
                doubled.min(hold_max).max(up_delay)
            }
        }
    }

    /// Whether it may be used.
    pub fn is_usable(&self, now: Instant) -> bool {
        match self.up_since {
            None => false,
            Some(Since::Before) => true,
            Some(Since::At(at)) => now.saturating_sub(at) >= self.needed(),
        }
    }

    /// When [`Damper::is_usable`] changes by itself.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        match self.up_since {
            Some(Since::At(at)) => Some(at + self.needed()).filter(|due| *due > now),
            Some(Since::Before) | None => None,
        }
    }

    /// Why it is not used although it is up, or will not be at once when it comes up.
    pub fn waiting(&self, now: Instant) -> Option<Waiting> {
        let left = self.due(now).map(|due| due - now);
        let is_held = self.level > 0;
        (left.is_some() || (is_held && self.up_since.is_none())).then(|| Waiting {
            needed: self.needed(),
            left,
            is_held,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn settings(up_delay: u64, flaps: u32) -> LinkDamping {
        LinkDamping {
            up_delay: ms(up_delay),
            flaps,
            window: ms(10_000),
            hold: ms(2_000),
            hold_max: ms(5_000),
        }
    }

    /// What happens at which millisecond: `u`p, `d`own, or a look; and whether the link is usable
    /// afterwards.
    fn play(settings: LinkDamping, events: &[(u64, char, bool)]) {
        let mut damper = Damper::new(settings, true);
        for (at, what, usable) in events {
            if *what != ' ' {
                damper.observe(*what == 'u', ms(*at));
            }
            assert_eq!(damper.is_usable(ms(*at)), *usable, "{what} at {at}");
            if !usable && *what == 'u' {
                let due = damper.due(ms(*at)).unwrap();
                assert!(!damper.is_usable(due - ms(1)) && damper.is_usable(due));
            }
        }
    }

    #[test]
    fn without_damping_the_link_is_what_it_is() {
        let mut events = Vec::new();
        for n in 0..50 {
            events.extend([(n * 10, 'd', false), (n * 10 + 5, 'u', true)]);
        }
        play(settings(0, 0), &events);
    }

    #[test]
    fn a_delay_begins_anew_with_each_loss() {
        play(
            settings(1_000, 0),
            &[
                (0, ' ', true), // it was up when we came
                (10, 'd', false),
                (20, 'u', false),
                (1_019, ' ', false),
                (1_020, ' ', true),
                (2_000, 'd', false),
                (2_010, 'u', false),
                (3_000, 'd', false),
                (3_010, 'u', false),
                (4_009, ' ', false),
                (4_010, ' ', true),
            ],
        );
    }

    #[test]
    fn too_many_losses_hold_the_link_ever_longer() {
        play(
            settings(0, 2),
            &[
                (0, 'd', false),
                (1, 'u', true),
                (2, 'd', false),
                (3, 'u', true),
                // The third within ten seconds: up for two seconds before it is used.
                (4, 'd', false),
                (5, 'u', false),
                (2_004, ' ', false),
                (2_005, ' ', true),
                // Two more are borne, but each must prove itself for as long.
                (2_100, 'd', false),
                (2_101, 'u', false),
                (2_200, 'd', false),
                (2_201, 'u', false),
                // The third: four seconds.
                (2_300, 'd', false),
                (2_301, 'u', false),
                (6_300, ' ', false),
                (6_301, ' ', true),
                // And then the bound, five.
                (6_400, 'd', false),
                (6_401, 'u', false),
                (6_500, 'd', false),
                (6_501, 'u', false),
                (6_600, 'd', false),
                (6_601, 'u', false),
                (11_600, ' ', false),
                (11_601, ' ', true),
                // After a whole window in use it is as good as new.
                (21_601, 'd', false),
                (21_602, 'u', true),
            ],
        );
    }

    #[test]
    fn losses_outside_the_window_do_not_count() {
        play(
            settings(0, 2),
            &[
                (0, 'd', false),
                (1, 'u', true),
                (6_000, 'd', false),
                (6_001, 'u', true),
                (10_001, 'd', false), // the first is too long ago
                (10_002, 'u', true),
                (10_003, 'd', false), // three within ten seconds
                (10_004, 'u', false),
            ],
        );
    }

    #[test]
    fn it_says_why_it_waits() {
        let mut damper = Damper::new(settings(0, 1), true);
        assert_eq!(damper.waiting(ms(0)), None);
        assert!(!damper.observe(false, ms(0)));
        assert_eq!(damper.waiting(ms(0)), None, "down is reason enough");
        damper.observe(true, ms(1));
        assert!(damper.observe(false, ms(2)), "too many");
        let held = |left| {
            Some(Waiting {
                needed: ms(2_000),
                left,
                is_held: true,
            })
        };
        assert_eq!(damper.waiting(ms(3)), held(None));
        damper.observe(true, ms(10));
        assert_eq!(damper.waiting(ms(510)), held(Some(ms(1_500))));
        assert_eq!(damper.waiting(ms(2_010)), None);
        damper.configure(settings(0, 0));
        assert!(damper.is_usable(ms(11)), "damping was turned off");
    }

    #[test]
    fn the_hold_doubles_to_its_bound_and_never_overflows() {
        let mut damper = Damper::new(settings(0, 1), true);
        let mut now = ms(0);
        for _ in 0..200 {
            now += ms(1);
            damper.observe(false, now);
            now += ms(1);
            damper.observe(true, now);
        }
        assert_eq!(damper.due(now), Some(now + ms(5_000)));
    }
}
