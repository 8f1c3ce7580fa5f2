//! How late something happens, counted by all checks together: the beginnings of attempts, and what follows from
//! their ends. Pure; no lock, because every attempt adds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::model::Spread;

/// One counter a millisecond; what is later than that is counted by the last one.
const STEPS: usize = 250;
/// The milliseconds for which it is told how many were less.
const BOUNDS: [u32; 8] = [1, 2, 5, 10, 20, 50, 100, 200];

/// The counters.
#[derive(Debug)]
pub struct Lateness {
    steps: [AtomicU64; STEPS],
    worst_us: AtomicU64,
    sum_us: AtomicU64,
}

impl Default for Lateness {
    fn default() -> Self {
        Self {
            steps: [const { AtomicU64::new(0) }; STEPS],
            worst_us: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }
}

impl Lateness {
    /// Counts one.
    pub fn note(&self, late: Duration) {
        let milliseconds = usize::try_from(late.as_millis()).unwrap_or(STEPS);
        self.steps[milliseconds.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
        let late_us = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.worst_us.fetch_max(late_us, Ordering::Relaxed);
        self.sum_us.fetch_add(late_us, Ordering::Relaxed);
    }

    /// Sums up.
    pub fn read(&self) -> Spread {
        let counts: Vec<u64> = self
            .steps
            .iter()
            .map(|step| step.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let percentile = |share: u64| {
            let mut seen = 0;
            let reached = counts.iter().position(|step| {
                seen += step;
                seen * 100 >= count * share && seen > 0
            });
            reached.map_or(0, |step| step as u64 + 1)
        };
        let below = |bound: u32| counts.iter().take(bound as usize).sum();
        Spread {
            count,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            max_ms: self.worst_us.load(Ordering::Relaxed) as f64 / 1e3,
            sum_s: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6,
            below: BOUNDS.map(|bound| (bound, below(bound))).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let lateness = Lateness::default();
        assert_eq!((lateness.read().count, lateness.read().p99_ms), (0, 0));
        for _ in 0..98 {
            lateness.note(Duration::from_micros(1_500));
        }
        lateness.note(Duration::from_millis(40));
        lateness.note(Duration::from_secs(3));
        let reading = lateness.read();
        assert_eq!(
            (reading.count, reading.p50_ms, reading.p99_ms),
            (100, 2, 41)
        );
        assert!((reading.max_ms - 3_000.0).abs() < 1e-9);
        assert!((reading.sum_s - 3.187).abs() < 1e-9);
        let below = [0, 98, 98, 98, 98, 99, 99, 99];
        assert!(reading.below.iter().map(|(_, count)| *count).eq(below));
    }
}
