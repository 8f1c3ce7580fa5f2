//! The contract between the XDP program and user space: what the BPF maps hold, which verdicts
//! exist, and the arithmetic that both sides must do alike.
//!
//! `no_std`, no dependencies, nothing that touches a map, a socket or a clock. Everything here runs
//! and is tested on the host.
#![no_std]

pub mod address;
pub mod bench;
pub mod capture;
pub mod checksum;
pub mod control;
pub mod flow;
pub mod hashing;
pub mod limits;
pub mod memory;
pub mod probe;
pub mod protect;
pub mod reason;
pub mod service;
pub mod slow;
pub mod table;
pub mod wide;

pub use address::Address;
pub use control::Control;
pub use reason::Reason;
pub use table::{Backend, BackendCounters, BackendFlags, RingChunk};
