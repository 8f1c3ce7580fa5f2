//! Notices that the thread did not run when it should have. Pure.
//!
//! A thread that waits for packets cannot tell a master's silence from its own sleep: a host that was
//! stopped for a while wakes to a timer that ran out, and to no packets. So a thread with a backup
//! wakes once an interval, packets or not, and measures how late that is.

use std::time::Duration;

use super::fsm::{Instant, Machine};
use crate::model::VrrpState;

/// When the thread last woke, and when it should have.
#[derive(Debug, Default)]
pub(super) struct Pace {
    woke: Instant,
    due: Option<Instant>,
}

impl Pace {
    /// How long the thread may sleep, at `now`: to the first deadline, and no longer than one interval
    /// of a master that is listened to.
    pub(super) fn plan<'m>(
        &mut self,
        now: Instant,
        machines: impl Iterator<Item = &'m Machine>,
    ) -> Option<Duration> {
        let due = |machine: &Machine| {
            let deadline = machine.deadline()?;
            Some(match machine.state() {
                VrrpState::Backup => deadline.min(self.woke + machine.master_interval()),
                VrrpState::Init | VrrpState::Master | VrrpState::Fault => deadline,
            })
        };
        self.due = machines.filter_map(due).min();
        self.due.map(|due| due.saturating_sub(now))
    }

    /// The thread runs again at `now`. Returns how much later than planned: what it did in the round
    /// before counts too.
    pub(super) fn woke(&mut self, now: Instant) -> Duration {
        let late = self
            .due
            .map_or(Duration::ZERO, |due| now.saturating_sub(due.max(self.woke)));
        self.woke = now;
        late
    }
}
