//! Health checks: is a real server able to do its work?
//!
//! `state` and `plan` are pure; `probe` asks once, and `driver` runs one task per check and tells
//! the daemon of changes.

pub mod driver;
pub mod plan;
pub mod probe;
pub mod state;
