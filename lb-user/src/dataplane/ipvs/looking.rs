//! Looks for half-open connections in the kernel's table, on a thread of their own: whoever lists the table waits for it.
//! `unanswered` says when, and what it means.

use std::thread::JoinHandle;

use super::{
    Ipvs,
    connections::{self, Connection, Services},
    desired,
    unanswered::{Counters, HalfOpen, Look, Unanswered},
};
use crate::{
    dataplane::{
        BackendKey,
        plan::{PlannedBackend, PlannedService},
        silence::Silence,
    },
    model::Protocol,
};

/// How long the kernel keeps a half-open connection after its last packet, IP_VS_TCP_S_SYN_RECV. No setting changes that.
const SYN_RECV_S: u64 = 60;
/// One whose last SYN is longer ago was given up: its client would have sent another one.
const GIVEN_UP_S: u64 = 6;

/// What is known of silent real servers, and the look under way.
#[derive(Debug, Default)]
pub(super) struct Looking {
    unanswered: Unanswered,
    look: Option<JoinHandle<Result<Vec<Connection>, String>>>,
}

impl Looking {
    /// Real servers that most new connections got no answer from.
    pub fn silent(&self) -> Vec<(BackendKey, Silence)> {
        self.unanswered.silent()
    }

    fn take(&mut self) -> Option<Result<Vec<Connection>, String>> {
        let look = self.look.take_if(|look| look.is_finished())?;
        Some(
            look.join()
                .unwrap_or_else(|_| Err("it panicked".to_owned())),
        )
    }
}

impl Ipvs {
    /// Follows what the kernel has counted and, where that is suspicious, what is half-open.
    pub(super) fn look_for_silence(&mut self) {
        let look = match (self.looking.take(), &self.looking.look) {
            (Some(Ok(all)), _) => Look::Done(self.half_open(&all)),
            (Some(Err(error)), _) => {
                tracing::debug!(error, "cannot look for half-open connections");
                Look::None
            }
            (None, Some(_)) => Look::Pending,
            (None, None) => Look::None,
        };
        let is_pending = look == Look::Pending;
        let servers = self.held.iter().flat_map(|(_, servers)| servers);
        let all = servers
            .map(|server| u64::from(server.active) + u64::from(server.inactive))
            .sum();
        let counters = self.counters();
        let is_worthwhile = self.looking.unanswered.sweep(&counters, all, look);
        if is_worthwhile && !is_pending {
            let builder = std::thread::Builder::new().name("ipvs-looking".to_owned());
            self.looking.look = builder.spawn(connections::opening).ok();
        }
    }

    /// What the kernel has counted of all real servers of TCP.
    fn counters(&self) -> Vec<(BackendKey, Counters)> {
        let services = self.plan.iter().flat_map(|plan| &plan.services);
        let tcp = services.filter(|service| service.id.protocol == Protocol::Tcp);
        let of = |service: &PlannedService| {
            let key = desired::key(service);
            let held = self.held.iter().find(|(entry, _)| entry.service.key == key);
            let servers = held.map_or(&[][..], |(_, servers)| servers);
            let of_one = |backend| {
                let meant = desired::server(service, backend);
                let entry = servers.iter().find(|entry| {
                    let it = entry.destination;
                    (it.address, it.port) == (meant.address, meant.port)
                })?;
                let counters = Counters {
                    connections: entry.stats.connections,
                    packets: entry.stats.in_packets,
                };
                Some(((service.id, backend.target, backend.sorry), counters))
            };
            service
                .backends
                .iter()
                .filter_map(of_one)
                .collect::<Vec<_>>()
        };
        tcp.flat_map(of).collect()
    }

    /// The half-open connections of clients among these, with their real servers.
    fn half_open(&self, all: &[Connection]) -> Vec<HalfOpen> {
        let services = Services::of(self.plan.as_ref());
        let of_plan = |c: &Connection| {
            if c.expires_in_s + GIVEN_UP_S < SYN_RECV_S
                || self.probes.made(c.client, c.vip, c.server)
            {
                return None;
            }
            let service = services.of_connection(c)?;
            let is_its = |backend: &&PlannedBackend| {
                desired::server(service, backend).address == c.server.ip()
            };
            let backend = service.backends.iter().find(is_its)?;
            Some(HalfOpen {
                server: (service.id, backend.target, backend.sorry),
                client: c.client,
                port: c.vip.port(),
            })
        };
        all.iter().filter_map(of_plan).collect()
    }
}
