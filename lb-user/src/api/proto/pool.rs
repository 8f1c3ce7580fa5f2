//! Pools of real servers.

use serde::{Deserialize, Serialize};

/// The pool of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Service, as `TCP 10.1.15.50:80`.
    pub service: String,
    /// Weight that must be alive.
    pub quorum: u32,
    /// How much more gains the quorum, and how much less is borne.
    pub hysteresis: u32,
    /// Weight of the real servers in use.
    pub live_weight: u64,
    /// Whether that is enough.
    pub has_quorum: bool,
    /// Since when it is or is not, in seconds since 1970.
    pub since: u64,
    /// Since when the panic guard keeps real servers that fail.
    pub panic_since: Option<u64>,
    /// Which.
    pub kept: Vec<String>,
    /// Real servers whose weight grows after their return.
    pub growing: Vec<Growing>,
    /// Whether nothing is checked, because this director is BACKUP.
    pub checks_paused: bool,
}

/// A real server whose weight grows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Growing {
    /// Its address.
    pub backend: String,
    /// What it has of its weight, per cent.
    pub percent: u32,
}
