//! How late attempts begin, counted by all checks together. Pure; no lock, because every attempt adds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// One counter a millisecond; what is later than that is counted by the last one.
const STEPS: usize = 250;

/// The counters.
#[derive(Debug)]
pub struct Lateness {
    steps: [AtomicU64; STEPS],
    worst_us: AtomicU64,
}

/// What they say, in milliseconds; percentiles are rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatenessReading {
    /// Attempts counted.
    pub attempts: u64,
    /// Half of them were not later.
    pub p50_ms: u64,
    /// 99 of 100 were not later.
    pub p99_ms: u64,
    /// The latest.
    pub max_ms: f64,
}

impl Default for Lateness {
    fn default() -> Self {
        Self {
            steps: [const { AtomicU64::new(0) }; STEPS],
            worst_us: AtomicU64::new(0),
        }
    }
}

impl Lateness {
    /// Counts an attempt.
    pub fn note(&self, late: Duration) {
        let milliseconds = usize::try_from(late.as_millis()).unwrap_or(STEPS);
        self.steps[milliseconds.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
        let late_us = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.worst_us.fetch_max(late_us, Ordering::Relaxed);
    }

    /// Sums up.
    pub fn read(&self) -> LatenessReading {
        let counts: Vec<u64> = self
            .steps
            .iter()
            .map(|step| step.load(Ordering::Relaxed))
            .collect();
        let attempts: u64 = counts.iter().sum();
        let percentile = |share: u64| {
            let mut seen = 0;
            let reached = counts.iter().position(|count| {
                seen += count;
                seen * 100 >= attempts * share && seen > 0
            });
            reached.map_or(0, |step| step as u64 + 1)
        };
        LatenessReading {
            attempts,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            max_ms: self.worst_us.load(Ordering::Relaxed) as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let lateness = Lateness::default();
        assert_eq!(lateness.read(), LatenessReading::default());
        for _ in 0..98 {
            lateness.note(Duration::from_micros(1_500));
        }
        lateness.note(Duration::from_millis(40));
        lateness.note(Duration::from_secs(3));
        let reading = lateness.read();
        assert_eq!(
            (reading.attempts, reading.p50_ms, reading.p99_ms),
            (100, 2, 41)
        );
        assert!((reading.max_ms - 3_000.0).abs() < 1e-9);
    }
}
