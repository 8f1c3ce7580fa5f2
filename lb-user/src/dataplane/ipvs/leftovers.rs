//! What an earlier daemon left in the kernel's IPVS.

use std::path::{Path, PathBuf};

use super::{
    codec::Command,
    codec::Timeouts,
    kernel::Kernel,
    reconcile,
    state::StateFile,
    state_error,
    sysctl::{self, Needs},
    sysctl_error,
};
use crate::{dataplane::DataPlaneError, model::Runtime};

/// Whether the kernel's IPVS forwarded for an earlier daemon, and still does.
pub fn was_left(runtime: &Runtime) -> bool {
    StateFile::open(&runtime.socket).was_left()
}

/// Whether the kernel has IPVS without being asked to load it.
pub fn is_loaded() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

/// Removes what a daemon with another data plane left in the kernel's IPVS, if it left anything.
pub fn remove_leftovers(runtime: &Runtime) -> Result<bool, DataPlaneError> {
    let mut state = StateFile::open(&runtime.socket);
    if state.is_empty() {
        return Ok(false);
    }
    let mut kernel = Kernel::open()?;
    for (entry, _) in kernel.table()? {
        let key = entry.service.key;
        if state.has(&key) {
            kernel.change(&Command::DeleteService(key))?;
        }
    }
    if !state.sync_daemons().is_empty() {
        let ours = state.sync_daemons();
        for command in reconcile::sync_steps(None, &kernel.daemons()?, ours, false) {
            kernel.change(&command)?;
        }
        state.keep_sync(None).map_err(state_error)?;
    }
    sysctl::apply(Needs::default(), &mut state).map_err(sysctl_error)?;
    sysctl::accept_own(&[], &mut state).map_err(sysctl_error)?;
    if let Some([tcp, tcp_fin, udp]) = state.timeouts() {
        let before = Timeouts { tcp, tcp_fin, udp };
        kernel.change(&Command::SetTimeouts(before))?;
    }
    state.remove().map_err(state_error)?;
    Ok(true)
}

/// Where a daemon with this socket keeps what it must not forget about IPVS.
pub fn state_path(socket: &Path) -> PathBuf {
    StateFile::path_of(socket)
}
