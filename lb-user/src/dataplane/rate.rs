//! What comes a second, averaged as IPVS does it: every two seconds a quarter of the difference counts.
//! Pure.

use std::time::Duration;

use super::Traffic;

/// The time in which the average goes a quarter of the way.
const STEP_S: f64 = 2.0;
/// What is left of the difference after that time.
const REMAINS: f64 = 0.75;

/// Rates of five counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    last: Option<[u64; 5]>,
    average: [f64; 5],
}

impl Rates {
    /// Takes the counters as they are now, `elapsed` after the last time.
    pub fn update(&mut self, now: &Traffic, elapsed: Duration) {
        let now = [
            now.connections,
            now.in_packets,
            now.out_packets,
            now.in_bytes,
            now.out_bytes,
        ];
        let seconds = elapsed.as_secs_f64();
        if let Some(last) = self.last
            && seconds > 0.0
        {
            let weight = 1.0 - REMAINS.powf(seconds / STEP_S);
            for ((average, now), last) in self.average.iter_mut().zip(now).zip(last) {
                // A counter that was set back has counted nothing.
                let rate = now.saturating_sub(last) as f64 / seconds;
                *average += weight * (rate - *average);
            }
        }
        self.last = Some(now);
    }

    /// Whole numbers a second.
    pub fn per_second(&self) -> Traffic {
        let [connections, in_packets, out_packets, in_bytes, out_bytes] =
            self.average.map(|average| average.round() as u64);
        Traffic {
            connections,
            in_packets,
            out_packets,
            in_bytes,
            out_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(in_packets: u64) -> Traffic {
        Traffic {
            in_packets,
            ..Traffic::default()
        }
    }

    #[test]
    fn a_steady_rate_is_found_and_forgotten() {
        let mut rates = Rates::default();
        for second in 0..60 {
            rates.update(&packets(second * 1_000), Duration::from_secs(1));
        }
        assert_eq!(rates.per_second().in_packets, 1_000);
        rates.update(&packets(59_000), Duration::from_secs(2));
        assert_eq!(rates.per_second().in_packets, 750);
        for _ in 0..60 {
            rates.update(&packets(59_000), Duration::from_secs(1));
        }
        assert_eq!(rates.per_second(), Traffic::default());
    }

    #[test]
    fn the_first_look_is_no_rate_and_a_reset_is_not_negative() {
        let mut rates = Rates::default();
        rates.update(&packets(1_000_000), Duration::from_secs(1));
        assert_eq!(rates.per_second().in_packets, 0);
        rates.update(&packets(5), Duration::from_secs(1));
        assert_eq!(rates.per_second().in_packets, 0);
    }
}
