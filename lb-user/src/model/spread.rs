//! How long something took, many times over.

use serde::{Deserialize, Serialize};

/// What counters of times say. Percentiles are rounded up to milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How often.
    pub count: u64,
    /// Half of them took no longer, in milliseconds.
    pub p50_ms: u64,
    /// 99 of 100 took no longer.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: f64,
    /// All together, in seconds.
    pub sum_s: f64,
    /// For some numbers of milliseconds, growing: how many took less.
    pub below: Vec<(u32, u64)>,
}
