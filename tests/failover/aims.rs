//! What the figures are to be, and whether they are. Pure.
//!
//! With adverts every 100 ms a backup of priority 98 waits for 362 ms after the last advert, and with a random
//! phase for 312 ms in the median after the cable went: an aim for what timers decide is one for the median.

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
    pub fn median(&self) -> f64 {
        self.outages[self.outages.len() / 2]
    }

    pub fn longest(&self) -> f64 {
        self.outages[self.outages.len() - 1]
    }
}

/// One aim and what was measured.
#[derive(Serialize)]
pub struct Verdict {
    pub aim: String,
    pub at_most_ms: f64,
    pub seen_ms: f64,
    pub met: bool,
}

/// How much longer lbd may take than keepalived where timers decide.
const MARGIN_MS: f64 = 10.0;
/// The longest outage when a partition heals.
const HEAL_MS: f64 = 50.0;

/// All aims that the figures are enough for.
pub fn judge(rows: &[Row]) -> Vec<Verdict> {
    rows.iter()
        .filter(|row| row.daemon == Daemon::Lbd)
        .flat_map(|row| {
            absolute(row)
                .into_iter()
                .chain(against_keepalived(row, rows))
        })
        .collect()
}

fn absolute(row: &Row) -> Option<Verdict> {
    let name = row.timers.name();
    let (what, seen, limit) = match (row.event, row.timers) {
        ("heal", _) => ("in every trial", row.longest(), HEAL_MS),
        ("port-down", Timers::V3_100) => ("in the median", row.median(), 330.0),
        ("port-down", Timers::V3_10) => ("in the median", row.median(), 45.0),
        _ => return None,
    };
    Some(verdict(
        format!("{name}: {} {what}", row.event),
        seen,
        limit,
    ))
}

fn against_keepalived(row: &Row, rows: &[Row]) -> Option<Verdict> {
    if !["stop", "port-down", "silent-cut"].contains(&row.event) {
        return None;
    }
    let same = |other: &&Row| {
        (other.daemon, other.timers, other.event) == (Daemon::Keepalived, row.timers, row.event)
    };
    let limit = rows.iter().find(same)?.median() + MARGIN_MS;
    let name = row.timers.name();
    let aim = format!(
        "{name}: {} in the median, as keepalived and {MARGIN_MS} ms",
        row.event
    );
    Some(verdict(aim, row.median(), limit))
}

fn verdict(aim: String, seen_ms: f64, at_most_ms: f64) -> Verdict {
    Verdict {
        aim,
        at_most_ms,
        seen_ms,
        met: seen_ms <= at_most_ms,
    }
}
