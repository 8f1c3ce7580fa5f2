//! What the figures are to be, and whether they are. Pure.
//!
//! With adverts every 100 ms a backup of priority 98 waits for 362 ms after the last advert, and for 312 ms in the median
//! after the cable went, if that happens in every part of the interval: an aim for what timers decide is one for the median.

use serde::Serialize;

use crate::pair::{Daemon, Timers};

/// Outages of one event in ascending order, in milliseconds.
pub struct Row {
    pub daemon: Daemon,
    pub timers: Timers,
    pub event: &'static str,
    pub outages: Vec<f64>,
}

impl Row {
    /// Of an even number the mean of the two in the middle: one of them alone would be as far off as the times of the
    /// trials lie apart.
    pub fn median(&self) -> f64 {
        let upper = self.outages.len() / 2;
        let lower = (self.outages.len() - 1) / 2;
        f64::midpoint(self.outages[lower], self.outages[upper])
    }

    pub fn longest(&self) -> f64 {
        self.outages[self.outages.len() - 1]
    }
}

/// One aim and what was measured.
#[derive(Serialize)]
pub struct Verdict {
    pub aim: String,
    /// What it is measured by, unless that is missing.
    pub at_most_ms: Option<f64>,
    pub seen_ms: Option<f64>,
    pub judgement: Judgement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    Met,
    Missed,
    /// lbd's figure or the one beside it was not measured.
    NotJudged,
}

impl Judgement {
    /// The word in the figures.
    pub fn word(self) -> &'static str {
        match self {
            Judgement::Met => "met",
            Judgement::Missed => "MISSED",
            Judgement::NotJudged => "not judged",
        }
    }
}

/// How much longer lbd may take than keepalived where timers decide.
const MARGIN_MS: f64 = 10.0;
/// The longest outage when a partition heals.
const HEAL_MS: f64 = 50.0;

/// Every aim, judged where the figures are enough for it.
pub fn judge(rows: &[Row]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for timers in Timers::ALL {
        let name = timers.name();
        let of = |daemon, event| {
            rows.iter()
                .find(|row| (row.daemon, row.timers, row.event) == (daemon, timers, event))
        };
        let longest = of(Daemon::Lbd, "heal").map(Row::longest);
        let aim = format!("{name}: heal in every trial");
        verdicts.push(verdict(aim, longest, Some(HEAL_MS)));
        let median = |daemon, event| of(daemon, event).map(Row::median);
        let port_down = match timers {
            Timers::V2 => None,
            Timers::V3_100 => Some(330.0),
            Timers::V3_10 => Some(45.0),
        };
        if port_down.is_some() {
            let aim = format!("{name}: port-down in the median");
            verdicts.push(verdict(aim, median(Daemon::Lbd, "port-down"), port_down));
        }
        for event in ["stop", "port-down", "silent-cut"] {
            let theirs = median(Daemon::Keepalived, event).map(|theirs| theirs + MARGIN_MS);
            let aim = format!("{name}: {event} in the median, as keepalived and {MARGIN_MS} ms");
            verdicts.push(verdict(aim, median(Daemon::Lbd, event), theirs));
        }
    }
    verdicts
}

fn verdict(aim: String, seen_ms: Option<f64>, at_most_ms: Option<f64>) -> Verdict {
    let judgement = match (seen_ms, at_most_ms) {
        (Some(seen), Some(limit)) if seen <= limit => Judgement::Met,
        (Some(_), Some(_)) => Judgement::Missed,
        (None, _) | (_, None) => Judgement::NotJudged,
    };
    Verdict {
        aim,
        at_most_ms,
        seen_ms,
        judgement,
    }
}

#[cfg(test)]
mod tests {
    use Daemon::{Keepalived, Lbd};
    use Judgement::{Met, Missed, NotJudged};
    use Timers::{V2, V3_10, V3_100};

    use super::*;

    /// The outages of one event for both daemons, and what is said of the only aim whose name begins so.
    #[test]
    fn figures_are_held_against_aims() {
        type Case<'c> = (
            Timers,
            &'static str,
            &'c [f64],
            &'c [f64],
            &'c str,
            Judgement,
        );
        let cases: &[Case<'_>] = &[
            // Every trial counts.
            (V2, "heal", &[0.0, 0.0, 50.0], &[], "v2-1s: heal", Met),
            (V2, "heal", &[0.0, 0.0, 50.1], &[], "v2-1s: heal", Missed),
            (V2, "stop", &[0.0], &[], "v2-1s: heal", NotJudged),
            (V3_10, "heal", &[0.0, 51.0], &[], "v3-10ms: heal", Missed),
            // Half of the trials count.
            (
                V3_100,
                "port-down",
                &[1.0, 330.0, 900.0],
                &[],
                "v3-100ms: port-down in the median",
                Met,
            ),
            (
                V3_100,
                "port-down",
                &[1.0, 331.0, 900.0],
                &[],
                "v3-100ms: port-down in the median",
                Missed,
            ),
            (
                V3_10,
                "port-down",
                &[1.0, 45.0, 90.0],
                &[],
                "v3-10ms: port-down in the median",
                Met,
            ),
            (
                V3_10,
                "port-down",
                &[1.0, 46.0, 90.0],
                &[],
                "v3-10ms: port-down in the median",
                Missed,
            ),
            // Of an even number the two in the middle.
            (
                V3_10,
                "port-down",
                &[1.0, 40.0, 50.0, 90.0],
                &[],
                "v3-10ms: port-down in the median",
                Met,
            ),
            (
                V3_10,
                "port-down",
                &[1.0, 41.0, 50.0, 90.0],
                &[],
                "v3-10ms: port-down in the median",
                Missed,
            ),
            // Beside keepalived.
            (V2, "stop", &[630.0], &[620.0], "v2-1s: stop", Met),
            (V2, "stop", &[630.1], &[620.0], "v2-1s: stop", Missed),
            (
                V2,
                "silent-cut",
                &[3_000.0],
                &[2_000.0, 2_991.0, 9_000.0],
                "v2-1s: silent-cut",
                Met,
            ),
            (
                V2,
                "silent-cut",
                &[3_000.0],
                &[2_000.0, 2_989.0, 9_000.0],
                "v2-1s: silent-cut",
                Missed,
            ),
            (
                V2,
                "port-down",
                &[3_000.0],
                &[2_000.0],
                "v2-1s: port-down",
                Missed,
            ),
            // Nothing to compare with, or nothing to compare.
            (V2, "stop", &[630.0], &[], "v2-1s: stop", NotJudged),
            (V2, "stop", &[], &[620.0], "v2-1s: stop", NotJudged),
            (V3_10, "stop", &[630.0], &[], "v3-10ms: stop", NotJudged),
        ];
        for (timers, event, ours, theirs, begin, expected) in cases {
            let row = |daemon, outages: &[f64]| Row {
                daemon,
                timers: *timers,
                event,
                outages: outages.to_vec(),
            };
            let mut rows = vec![row(Lbd, ours), row(Keepalived, theirs)];
            rows.retain(|row| !row.outages.is_empty());
            let verdicts = judge(&rows);
            let named = |verdict: &&Verdict| verdict.aim.starts_with(begin);
            // Port down has an aim of its own, and one beside keepalived.
            let found = verdicts.iter().find(named).unwrap();
            let seen = (found.seen_ms, found.at_most_ms);
            assert_eq!(found.judgement, *expected, "{timers:?} {event} {seen:?}");
        }
    }

    #[test]
    fn no_aim_is_left_out() {
        let aims = judge(&[]);
        assert_eq!(aims.len(), 3 * 4 + 2);
        assert!(aims.iter().all(|aim| aim.judgement == NotJudged));
    }
}
