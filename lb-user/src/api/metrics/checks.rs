//! Metrics of health checks: how punctual they are, and how soon they are followed.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::{api::proto::Status, model::Spread};

pub(super) fn checks(registry: &mut Registry, status: &Status) {
    for (name, help, spread) in [
        (
            "check_lateness",
            "How late attempts of health checks began",
            &status.probes.lateness,
        ),
        (
            "check_reaction",
            "From the end of an attempt that changed something to the data plane that follows it",
            &status.probes.reaction,
        ),
    ] {
        registry.register_with_unit(name, help, Unit::Seconds, Histogram(spread.clone()));
    }
}

/// A histogram that was counted elsewhere.
#[derive(Debug)]
struct Histogram(Spread);

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Spread { count, sum_s, .. } = self.0;
        let mut before = 0;
        // The library adds them up.
        let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(self.0.below.len() + 1);
        for (bound_ms, below) in &self.0.below {
            buckets.push((f64::from(*bound_ms) / 1e3, below - before));
            before = *below;
        }
        buckets.push((f64::INFINITY, count - before));
        encoder.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let mut registry = Registry::default();
        let spread = Spread {
            count: 5,
            sum_s: 0.75,
            below: vec![(1, 2), (10, 4)],
            ..Spread::default()
        };
        registry.register_with_unit("late", "Late", Unit::Seconds, Histogram(spread));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let expected = "# HELP late_seconds Late.\n# TYPE late_seconds histogram\n# UNIT late_seconds seconds\n\
                        late_seconds_sum 0.75\nlate_seconds_count 5\nlate_seconds_bucket{le=\"0.001\"} 2\n\
                        late_seconds_bucket{le=\"0.01\"} 4\nlate_seconds_bucket{le=\"+Inf\"} 5\n# EOF\n";
        assert_eq!(text, expected);
    }
}
