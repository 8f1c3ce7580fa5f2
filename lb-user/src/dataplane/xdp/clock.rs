//! The program's clock as user space sees it.
//!
//! The program counts jiffies. The kernel advances them by CLOCK_MONOTONIC, one every jiffy, so the
//! difference between the two never changes: it is measured once, by asking the program.

use std::{error::Error, time::Duration};

use aya::programs::{TestRun, TestRunOptions, Xdp};
use lb_common::flow::tick_shift;
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// Length of a tick, and where the program's count stands against ours.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    tick_ns: u64,
    offset: u32,
}

impl Clock {
    /// A clock whose count is not known yet.
    pub fn new() -> Self {
        // The coarse clock's resolution is the kernel's jiffy (TICK_NSEC).
        let jiffy_ns = nanoseconds(clock_getres(ClockId::MonotonicCoarse)).max(1);
        Self {
            tick_ns: jiffy_ns << tick_shift(jiffy_ns),
            offset: 0,
        }
    }

    /// What the control element must say.
    pub fn shift(&self) -> u32 {
        tick_shift(nanoseconds(clock_getres(ClockId::MonotonicCoarse)).max(1))
    }

    /// Length of a tick in nanoseconds.
    pub fn tick_ns(&self) -> u64 {
        self.tick_ns
    }

    /// Asks the program where its clock stands.
    pub fn synchronise(&mut self, program: &mut Xdp) -> Result<(), Box<dyn Error>> {
        // Any frame will do.
        let frame = [0; 64];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let theirs = program.test_run(options)?.return_value;
        self.offset = 0;
        self.offset = theirs.wrapping_sub(self.now());
        Ok(())
    }

    /// The present tick, within one of the program's.
    pub fn now(&self) -> u32 {
        let ticks = nanoseconds(clock_gettime(ClockId::MonotonicCoarse)) / self.tick_ns;
        (ticks as u32).wrapping_add(self.offset)
    }

    /// The clock by which the program limits rates: CLOCK_MONOTONIC_COARSE.
    pub fn nanoseconds(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::MonotonicCoarse))
    }

    /// Whole seconds in `ticks`.
    pub fn seconds(&self, ticks: u32) -> u64 {
        Duration::from_nanos(u64::from(ticks) * self.tick_ns).as_secs()
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
