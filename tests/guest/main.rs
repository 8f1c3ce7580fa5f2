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
mod sync_daemons;
mod traffic;
mod tunnels;
#[path = "../cases/on_vip/grid.rs"]
mod vip_grid;

use std::{
    process::Command,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use lab::network::run;

/// The kernel's modules: used by many tests at once, or taken away by one.
static MODULES: RwLock<()> = RwLock::new(());

/// IPVS is loaded, and nobody unloads it for as long as this lives.
pub fn with_modules() -> RwLockReadGuard<'static, ()> {
    let guard = MODULES.read().unwrap_or_else(PoisonError::into_inner);
    run(Command::new("modprobe").arg("ip_vs")).unwrap();
    guard
}

/// Nobody uses IPVS for as long as this lives.
pub fn without_modules() -> RwLockWriteGuard<'static, ()> {
    MODULES.write().unwrap_or_else(PoisonError::into_inner)
}
