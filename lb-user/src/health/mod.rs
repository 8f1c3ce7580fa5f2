//! Health checks: is a real server able to do its work?
//!
//! `state`, `plan`, `board`, `memory`, `lateness` and `words` are pure; `probe` asks once, and `driver` runs one task per check and
//! tells the daemon of changes, which `board` sums up for each real server.

pub mod board;
pub mod driver;
pub mod lateness;
pub mod memory;
pub mod paths;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod state;
pub mod words;
