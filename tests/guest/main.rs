//! Tests that need the guest's kernel (`cargo xtask vm`): VLAN devices, tunnels, SCTP, IPVS.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod hashing;
#[path = "../cases/program.rs"]
#[allow(dead_code, reason = "the other tests of packets need the rest of it")]
mod program;
mod traffic;
