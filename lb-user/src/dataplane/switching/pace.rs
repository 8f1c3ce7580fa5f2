//! When XDP is tried again after it was lost. Pure.

use std::time::Duration;

/// The first attempt comes so long after the loss: who detached a program may want something there.
const FIRST: Duration = Duration::from_secs(5);
/// Each wait is twice the one before, and never longer than this.
const LONGEST: Duration = Duration::from_secs(60);
/// XDP that is lost sooner than this after its return makes the waits go on growing.
const STABLE: Duration = Duration::from_secs(600);

/// Waits that grow with each refusal, and with each return that did not last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    wait: Duration,
    due: Option<Duration>,
    returned: Option<Duration>,
}

impl Pace {
    /// XDP was lost.
    pub fn lost(&mut self, now: Duration) {
        let lasted = self
            .returned
            .is_none_or(|at| now.saturating_sub(at) >= STABLE);
        self.wait = match lasted {
            true => FIRST,
            false => (self.wait * 2).clamp(FIRST, LONGEST),
        };
        self.due = Some(now + self.wait);
    }

    /// An attempt was refused.
    pub fn refused(&mut self, now: Duration) {
        self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
        self.due = Some(now + self.wait);
    }

    /// XDP forwards again.
    pub fn returned(&mut self, now: Duration) {
        self.returned = Some(now);
        self.due = None;
    }

    /// How long until the next attempt, if one is to come.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn refusals_come_ever_more_seldom() {
        let mut pace = Pace::default();
        assert_eq!(pace.left(s(1_000)), None);
        pace.lost(s(100));
        let mut now = s(100);
        let waits: Vec<u64> = (0..6)
            .map(|_| {
                let wait = pace.left(now).unwrap();
                let last = Duration::from_millis(1);
                assert_eq!(pace.left(now + wait - last), Some(last));
                now += wait;
                assert_eq!(pace.left(now), Some(Duration::ZERO));
                assert_eq!(pace.left(now + last), Some(Duration::ZERO));
                pace.refused(now);
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn a_return_that_does_not_last_is_no_return() {
        let mut pace = Pace::default();
        let mut now = s(0);
        let mut waits = Vec::new();
        for stays in [s(1), s(1), s(599), s(1), s(600), s(3)] {
            pace.lost(now);
            let wait = pace.left(now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            pace.returned(now);
            assert_eq!(pace.left(now), None);
            now += stays;
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 5]);
    }
}
