//! Tests that need the guest's kernel (`cargo xtask vm`): VLAN devices, tunnels, SCTP, IPVS.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../cases/certificates.rs"]
mod certificates;
mod clock;
mod cluster;
mod hashing;
mod hosts;
mod ipvs;
mod marks;
mod mixed;
mod oddities;
mod on_vip;
mod planes;
mod pool_weights;
#[path = "../cases/program.rs"]
#[allow(dead_code, reason = "the other tests of packets need the rest of it")]
mod program;
mod reloads;
mod rival;
mod silent;
#[path = "../cases/silent/story.rs"]
mod silent_story;
mod slow_path;
mod switching;
mod traffic;
#[path = "../cases/on_vip/grid.rs"]
mod vip_grid;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The kernel's modules: used by many tests at once, or taken away by one.
static MODULES: RwLock<()> = RwLock::new(());

/// Nobody unloads IPVS for as long as this lives.
pub fn with_modules() -> RwLockReadGuard<'static, ()> {
    MODULES.read().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody uses IPVS for as long as this lives.
pub fn without_modules() -> RwLockWriteGuard<'static, ()> {
    MODULES.write().unwrap_or_else(PoisonError::into_inner)
}
