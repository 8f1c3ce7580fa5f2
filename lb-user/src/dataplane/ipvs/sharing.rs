//! The kernel's own synchronisation of connections with other directors, as VRRP has it. Pure decisions are in
//! `reconcile`.
//!
//! What is wrong with it is told, and tried again every second; services and real servers do not wait for it.

use std::collections::BTreeSet;

use nix::net::if_::if_nametoindex;

use super::{
    Ipvs,
    codec::{Command, SyncDaemon, SyncState},
    connections, feed,
    handover::{SHORT, from_kernel, to_kernel},
    kernel::{KernelError, Table, describe},
    own::is_own,
    reconcile, state_error,
    sync::Message,
};
use crate::dataplane::{DataPlaneError, Plan};

/// Nobody tells the others of more connections at the end: whoever lists the table waits for it.
const MOST_TOLD: u64 = 10_000;

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
        let ours = self.state.sync_daemons().clone();
        if wanted.is_none() && ours.is_empty() {
            self.sharing = Sharing::default();
            return Ok(());
        }
        let state = wanted.as_ref().map(|wanted| wanted.state);
        let index = wanted.as_ref().and_then(index_of);
        // Without an interface none is started: one that runs is of somebody else.
        if let (Some(state), Some(_)) = (state, index) {
            self.state.claim_sync(state).map_err(state_error)?;
        }
        let was_well = self.sharing.trouble.is_none();
        match self.bring_sync(plan, wanted.as_ref(), index, &ours) {
            Ok(changes) => {
                // What became possible was changed by nobody.
                if was_well {
                    done.extend(changes);
                } else {
                    tracing::info!("the kernel shares connections again");
                }
                self.sharing.trouble = None;
                self.state.keep_sync(state).map_err(state_error)
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

    /// Returns what had to be done, but for what only an interface that was made again demanded: that is no change of
    /// IPVS by others, and told here.
    fn bring_sync(
        &mut self,
        plan: &Plan,
        wanted: Option<&SyncDaemon>,
        index: Option<u32>,
        ours: &BTreeSet<SyncState>,
    ) -> Result<Vec<String>, KernelError> {
        let made_again =
            matches!((self.sharing.bound, index), (Some(old), Some(new)) if old != new);
        let held = self.kernel.daemons()?;
        let yields = wanted.is_some_and(|wanted| wanted.state == SyncState::Backup);
        let telling = held.iter().find(|held| held.state == SyncState::Master);
        let tells = ours.contains(&SyncState::Master);
        if let (true, true, Some(telling)) = (yields, tells, telling) {
            self.tell_at_the_end(plan, telling);
        }
        let steps = |is_deaf| reconcile::sync_steps(wanted, &held, ours, is_deaf);
        let mut changes = Vec::new();
        for command in steps(made_again) {
            if matches!(command, Command::NewDaemon(_)) && index.is_none() {
                continue;
            }
            self.kernel.change(&command)?;
            changes.push(describe(&command));
            if let Command::DeleteDaemon(state) = command
                && !ours.contains(&state)
            {
                tracing::warn!(
                    "stopped the {} sync daemon of somebody else: it is not the one of [lvs_sync_daemon]",
                    state.name()
                );
            }
        }
        if made_again {
            tracing::info!(
                changes = changes.join("; "),
                "the interface of the kernel's sync daemon was made again"
            );
            if steps(false).is_empty() {
                changes.clear();
            }
        }
        match (wanted, index) {
            (Some(wanted), None) => Err(KernelError::NoSyncInterface(wanted.interface.clone())),
            (Some(_), Some(_)) | (None, _) => {
                self.sharing.bound = index;
                Ok(changes)
            }
        }
    }

    /// Tells the other directors of all connections. The kernel's daemon tells of one when its third packet has
    /// come, a second or two later, and forgets what it has not told yet when it is stopped
    /// (`sync_thread_master` of net/netfilter/ipvs/ip_vs_sync.c).
    fn tell_at_the_end(&self, plan: &Plan, daemon: &SyncDaemon) {
        let count = entries(&self.held);
        if count > MOST_TOLD {
            tracing::info!(
                count,
                "too many connections to tell other directors of the youngest"
            );
            return;
        }
        let told = connections::read().and_then(|mut table| {
            table.retain(|c| {
                !(self.probes.made(c.client, c.vip, c.server) && is_own(c.client.ip()))
            });
            let told = to_kernel(plan, &from_kernel(plan, &table));
            let id = u8::try_from(daemon.id).unwrap_or_default();
            let longest = daemon.length.map_or(SHORT, usize::from).min(SHORT);
            let sent = feed::others(daemon, Message::encode_all(id, &told, longest));
            sent.map(|()| told.len()).map_err(|error| error.to_string())
        });
        match told {
            Ok(count) => tracing::debug!(count, "told other directors of all connections"),
            // As when the interface is down: nobody would hear it.
            Err(error) => tracing::info!(
                error,
                "other directors are not told of the youngest connections"
            ),
        }
    }
}

fn index_of(daemon: &SyncDaemon) -> Option<u32> {
    if_nametoindex(daemon.interface.as_str()).ok()
}

/// Connections to the real servers of a table, and clients that stick to them.
fn entries(table: &Table) -> u64 {
    let servers = table.iter().flat_map(|(_, servers)| servers);
    let counts = servers.flat_map(|server| [server.active, server.inactive, server.persistent]);
    counts.map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::ipvs::codec::{
        Destination, DestinationEntry, Forward, Key, Service, ServiceEntry, Stats, Wrapping,
    };

    #[test]
    fn clients_that_stick_are_told_as_well() {
        let service = |servers: &[[u32; 3]]| {
            let key = Key::Mark { mark: 1, v6: false };
            let entry = ServiceEntry {
                service: Service::bare(key),
                stats: Stats::default(),
            };
            let server = |counts: &[u32; 3]| DestinationEntry {
                destination: Destination {
                    address: [10, 1, 15, 45].into(),
                    port: 80,
                    forward: Forward::Route,
                    wrapping: Wrapping::default(),
                    weight: 1,
                    upper: 0,
                    lower: 0,
                },
                active: counts[0],
                inactive: counts[1],
                persistent: counts[2],
                stats: Stats::default(),
            };
            (entry, servers.iter().map(server).collect())
        };
        let table = vec![
            service(&[[1, 20, 300], [4_000, 0, 0]]),
            service(&[]),
            service(&[[0, 0, u32::MAX]]),
        ];
        assert_eq!(entries(&table), 4_321 + u64::from(u32::MAX));
    }
}
