//! What VRRP instances watch besides their own interface: `state` is pure, `driver` runs scripts.

pub mod driver;
pub mod state;
