//! The kernel's own synchronisation of connections with other directors, as VRRP has it. Pure decisions are in
//! `reconcile`.
//!
//! What is wrong with it is told, and tried again every second; services and real servers do not wait for it.

use nix::net::if_::if_nametoindex;

use super::{
    Ipvs,
    codec::{Command, SyncDaemon, SyncState},
    kernel::{KernelError, describe},
    reconcile, state_error,
};
use crate::dataplane::{DataPlaneError, Plan};

/// What the sync daemon is known to be at.
#[derive(Debug, Default)]
pub struct Sharing {
    /// The interface that its socket is bound to. One of the same name that was made again is another one.
    bound: Option<u32>,
    /// Why it does not share connections.
    trouble: Option<String>,
}

impl Sharing {
    /// Why connections are not shared.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

impl Ipvs {
    /// The sync daemon that should run: MASTER tells, all else learns.
    pub(super) fn sync_daemon(&self, plan: &Plan) -> Option<SyncDaemon> {
        plan.sync.as_ref().map(|(config, role)| SyncDaemon {
            state: match self.is_serving(*role) {
                true => SyncState::Master,
                false => SyncState::Backup,
            },
            interface: config.interface.clone(),
            id: u32::from(config.id),
            length: config.length,
            group: config.group,
            port: config.port,
            ttl: config.ttl,
        })
    }

    /// Makes the kernel run that one. An error means that it cannot be noted whose it is.
    pub(super) fn follow_sync(
        &mut self,
        plan: &Plan,
        done: &mut Vec<String>,
    ) -> Result<(), DataPlaneError> {
        let wanted = self.sync_daemon(plan);
        let ours = self.state.has_sync();
        if wanted.is_none() && !ours {
            self.sharing = Sharing::default();
            return Ok(());
        }
        self.state.claim_sync(true).map_err(state_error)?;
        let was_well = self.sharing.trouble.is_none();
        match self.bring_sync(wanted.as_ref(), ours) {
            Ok(changes) => {
                // What became possible was changed by nobody.
                if was_well {
                    done.extend(changes);
                } else {
                    tracing::info!("the kernel shares connections again");
                }
                self.sharing.trouble = None;
                self.state.claim_sync(wanted.is_some()).map_err(state_error)
            }
            Err(error) => {
                let text = format!("connections are not shared with other directors: {error}");
                if self.sharing.trouble.as_ref() != Some(&text) {
                    tracing::error!("{text}; trying again every second");
                    self.sharing.trouble = Some(text);
                }
                Ok(())
            }
        }
    }

    fn bring_sync(
        &mut self,
        wanted: Option<&SyncDaemon>,
        ours: bool,
    ) -> Result<Vec<String>, KernelError> {
        let index = wanted.and_then(|wanted| if_nametoindex(wanted.interface.as_str()).ok());
        let made_again =
            matches!((self.sharing.bound, index), (Some(old), Some(new)) if old != new);
        let held = self.kernel.daemons()?;
        let mut changes = Vec::new();
        for command in reconcile::sync_steps(wanted, &held, ours, made_again) {
            if matches!(command, Command::NewDaemon(_)) && index.is_none() {
                continue;
            }
            self.kernel.change(&command)?;
            changes.push(describe(&command));
        }
        match (wanted, index) {
            (Some(wanted), None) => Err(KernelError::NoSyncInterface(wanted.interface.clone())),
            (Some(_), Some(_)) | (None, _) => {
                self.sharing.bound = index;
                Ok(changes)
            }
        }
    }
}
