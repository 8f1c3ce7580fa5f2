//! Connections that the kernel learns from us, and that it tells us.
//!
//! It learns them as a backup director does: a sync daemon of the kernel's, on the loopback interface for as
//! long as that takes, gets messages of IPVS's own protocol. It tells them in /proc/net/ip_vs_conn.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    Ipvs,
    codec::{Command, Destination, Forward, SyncDaemon, SyncState},
    connections::{self, Connection as Entry, Services},
    desired,
    feed::{self, Fed},
    state_error,
    sync::{Connection, Message, flags},
};
use crate::{
    dataplane::{
        DataPlaneError, Plan,
        carried::{Carried, Phase},
        plan::PlannedBackend,
    },
    model::{Protocol, ServiceId, Target},
};

/// Bytes of a message to a daemon of somebody else's that does not say what it takes: it reads no more than
/// fits into a frame.
pub(super) const SHORT: usize = 1_400;
/// Bytes of a message to ours: 255 connections, which is as many as one can have, take about nine thousand with IPv4.
const LONGEST: usize = 16_000;
/// Where the daemon that learns from us listens: nobody else hears it.
const INTERFACE: &str = "lo";
/// Its sync id: any but 0, which would believe messages for others.
const SYNC_ID: u8 = 111;

/// The kernel's numbers of states: `ip_vs_tcp_s` and `ip_vs_sctp_states` of include/net/ip_vs.h.
mod state {
    pub const TCP_ESTABLISHED: u16 = 1;
    pub const TCP_SYN_RECV: u16 = 3;
    pub const TCP_FIN_WAIT: u16 = 4;
    pub const SCTP_INIT: u16 = 2;
    pub const SCTP_ESTABLISHED: u16 = 8;
    pub const SCTP_SHUTDOWN_SENT: u16 = 9;
    /// Of UDP, and of clients that stick.
    pub const NORMAL: u16 = 0;
}

impl Ipvs {
    /// Makes the kernel hold the services of `plan`. Further packets of TCP connections that it does not know
    /// are not scheduled yet.
    pub fn prepare(&mut self, plan: &Plan) -> Result<(), DataPlaneError> {
        self.learning = true;
        self.put(&Plan::of(plan.services.clone())).map(drop)
    }

    /// Makes the kernel know connections. It forwards them whether or not it holds their service, and counts those with
    /// their real servers that it was told when it did.
    pub fn learn(&mut self, plan: &Plan, list: &[Carried]) -> Result<Fed, DataPlaneError> {
        let told = to_kernel(plan, list);
        if told.is_empty() {
            return Ok(Fed::default());
        }
        let running = self.kernel.daemons()?;
        let theirs = running.into_iter().find(|d| d.state == SyncState::Backup);
        let is_ours = theirs.is_none();
        let daemon = theirs.unwrap_or_else(own_daemon);
        if is_ours && let Err(error) = self.start_learning(&daemon) {
            return Ok(Fed {
                connections: 0,
                trouble: Some(format!(
                    "the kernel could not be told of connections: {error}"
                )),
            });
        }
        let id = u8::try_from(daemon.id).unwrap_or_default();
        let longest = match (is_ours, daemon.length) {
            (true, _) => LONGEST,
            // What is longer it cuts off.
            (false, length) => length.map_or(SHORT, usize::from).min(SHORT),
        };
        let mut trouble = feed::all(&daemon, Message::encode_all(id, &told, longest));
        if is_ours && let Err(error) = self.stop_learning() {
            // It stays noted as ours.
            trouble.get_or_insert(format!("the daemon that learns is not stopped: {error}"));
        }
        Ok(Fed {
            connections: told.len(),
            trouble,
        })
    }

    fn start_learning(&mut self, daemon: &SyncDaemon) -> Result<(), DataPlaneError> {
        self.state.claim_sync(daemon.state).map_err(state_error)?;
        let started = self.kernel.change(&Command::NewDaemon(daemon.clone()));
        started.or_else(|error| {
            // It may run all the same where the answer did not come.
            self.stop_learning()?;
            Err(error.into())
        })
    }

    /// Stops the daemon that learns from us. One that cannot be stopped stays ours; one that somebody else has put in
    /// its place is not.
    fn stop_learning(&mut self) -> Result<(), DataPlaneError> {
        let ours = own_daemon();
        let is_ours = |d: &SyncDaemon| {
            (d.state, &d.interface, d.id) == (ours.state, &ours.interface, ours.id)
        };
        if self.kernel.daemons()?.iter().any(is_ours) {
            // Returns when it has dealt with the message that it is at.
            self.kernel.change(&Command::DeleteDaemon(ours.state))?;
        }
        self.state.forget_sync(ours.state).map_err(state_error)
    }

    /// Forwards from now on, and returns the plan's number. What nobody told of is scheduled by its next packet.
    pub fn serve(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        self.learning = false;
        self.expect_strangers();
        self.put(plan)
    }

    /// Notes whether XDP's connections are still being told: a daemon that dies meanwhile leaves them in XDP's flow tables.
    pub fn set_telling(&mut self, telling: bool) -> Result<(), DataPlaneError> {
        self.state.set_telling(telling).map_err(state_error)
    }

    /// There is no slow path any more: services of its go with the next change, those with connections when they have
    /// none.
    pub fn leave_slow_path(&mut self) {
        self.slow.leave();
    }

    /// Goes on with what an earlier daemon left in the kernel, for as long as its connections go elsewhere.
    pub fn adopt(&mut self, plan: &Plan) {
        self.plan = Some(plan.clone());
    }

    /// The connections of the services that the kernel knows, and clients that stick.
    pub fn connections(&self) -> Result<Vec<Carried>, String> {
        let Some(plan) = &self.plan else {
            return Ok(Vec::new());
        };
        Ok(from_kernel(plan, &connections::read()?))
    }
}

fn own_daemon() -> SyncDaemon {
    SyncDaemon {
        interface: INTERFACE.to_owned(),
        id: u32::from(SYNC_ID),
        ..SyncDaemon::bare(SyncState::Backup)
    }
}

/// Connections as the kernel's sync daemons tell them. Those of real servers that it does not hold are left
/// out.
pub(super) fn to_kernel(plan: &Plan, list: &[Carried]) -> Vec<Connection> {
    let mut servers: HashMap<(ServiceId, Target, bool), Destination> = HashMap::new();
    for service in &plan.services {
        let held = service.backends.iter().filter(|b| !b.state.is_out());
        for backend in held {
            servers
                .entry((service.id, backend.target, backend.sorry))
                .or_insert_with(|| desired::server(service, backend));
        }
    }
    let one = |carried: &Carried| {
        let key = (carried.service, carried.target, carried.sorry);
        let server = servers.get(&key)?;
        // A message has addresses of one version of IP.
        let fits = server.address.is_ipv6() == carried.service.address.is_ipv6();
        fits.then(|| message(server, carried))
    };
    list.iter().filter_map(one).collect()
}

fn message(server: &Destination, carried: &Carried) -> Connection {
    let port = match server.port {
        0 => carried.vip_port,
        port => port,
    };
    let way = match server.forward {
        Forward::Tunnel => flags::TUNNEL | flags::NO_OUTPUT,
        Forward::Masquerade => 0,
        _ => flags::ROUTE | flags::NO_OUTPUT,
    };
    let service = carried.service;
    let (state, kind) = state_of(service.protocol, carried.phase);
    Connection {
        protocol: service.protocol.number(),
        flags: way | kind,
        state,
        client: carried.client,
        vip: SocketAddr::new(service.address, carried.vip_port),
        server: SocketAddr::new(server.address, port),
        mark: 0,
        timeout_s: carried.seconds_left(),
        sequences: None,
        engine: None,
        engine_data: None,
    }
}

/// The kernel's state, and the flags that go with it: what it counts as active is not marked.
fn state_of(protocol: Protocol, phase: Phase) -> (u16, u32) {
    let is_sctp = protocol == Protocol::Sctp;
    match phase {
        Phase::Opening if is_sctp => (state::SCTP_INIT, flags::INACTIVE),
        Phase::Opening => (state::TCP_SYN_RECV, 0),
        Phase::Established if is_sctp => (state::SCTP_ESTABLISHED, 0),
        Phase::Established => (state::TCP_ESTABLISHED, 0),
        Phase::Closing if is_sctp => (state::SCTP_SHUTDOWN_SENT, flags::INACTIVE),
        Phase::Closing => (state::TCP_FIN_WAIT, flags::INACTIVE),
        Phase::Datagrams => (state::NORMAL, flags::INACTIVE),
        Phase::Sticks => (state::NORMAL, flags::TEMPLATE | flags::INACTIVE),
    }
}

/// The kernel's entries that belong to services and real servers of the plan.
pub(super) fn from_kernel(plan: &Plan, table: &[Entry]) -> Vec<Carried> {
    let (services, servers) = (Services::of(Some(plan)), by_server(plan));
    let one = |entry: &Entry| {
        let service = services.of_connection(entry)?;
        // A real server without a port of its own has every one.
        let of_port = |port| servers.get(&(service.id, entry.server.ip(), port));
        let backend = of_port(entry.server.port()).or_else(|| of_port(0))?;
        Some(Carried {
            service: service.id,
            client: entry.client,
            vip_port: entry.vip.port(),
            target: backend.target,
            sorry: backend.sorry,
            phase: connections::phase_of(entry),
            left: Duration::from_secs(entry.expires_in_s),
        })
    };
    table.iter().filter_map(one).collect()
}

/// The real servers of the plan by service, address and port, as the kernel names them.
fn by_server(plan: &Plan) -> HashMap<(ServiceId, IpAddr, u16), &PlannedBackend> {
    let mut servers = HashMap::new();
    for service in &plan.services {
        for backend in &service.backends {
            let server = desired::server(service, backend);
            servers
                .entry((service.id, server.address, server.port))
                .or_insert(backend);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::plan::{BackendState, PlannedService};
    use crate::model::{Forwarding, Persistence, Scheduler, Tunnel};

    const PHASES: [Phase; 4] = [
        Phase::Opening,
        Phase::Established,
        Phase::Closing,
        Phase::Sticks,
    ];

    fn service(protocol: Protocol, vip: &str, servers: &[(&str, BackendState)]) -> PlannedService {
        let of = |(text, state): &(&str, BackendState)| {
            PlannedBackend::new(Target::Host(text.parse().unwrap()), 1, *state)
        };
        let servers = servers.iter().map(of).collect();
        let id = ServiceId::new(protocol, vip.parse().unwrap());
        PlannedService::new(id, 0, Scheduler::Wrr, servers)
    }

    fn plan() -> Plan {
        let up = BackendState::Up;
        let mut web = service(
            Protocol::Tcp,
            "10.1.15.50:80",
            &[("10.1.15.45", up), ("10.1.15.46", BackendState::Down)],
        );
        web.persistence = Some(Persistence {
            timeout: Duration::from_secs(60),
            prefix: 32,
            engine: None,
        });
        let mut sorry = PlannedBackend::new(Target::Local, 1, BackendState::Standby);
        sorry.sorry = true;
        web.backends.push(sorry);
        let mut six = service(Protocol::Udp, "[2001:db8::50]:53", &[("2001:db8::45", up)]);
        six.forwarding = Forwarding::Tunnel(Tunnel::Ipip);
        Plan::of(vec![web, six])
    }

    fn carried(plan: &Plan, service: usize, client: &str, backend: usize, phase: Phase) -> Carried {
        let service = &plan.services[service];
        let backend = &service.backends[backend];
        Carried {
            service: service.id,
            client: client.parse().unwrap(),
            vip_port: service.id.ports.first,
            target: backend.target,
            sorry: backend.sorry,
            phase,
            left: Duration::from_secs(77),
        }
    }

    #[test]
    fn what_the_kernel_is_told() {
        let plan = plan();
        let told = |service, client, backend, phase| {
            let list = [carried(&plan, service, client, backend, phase)];
            let message = to_kernel(&plan, &list).pop()?;
            let server = message.server.to_string();
            Some((message.state, message.flags, server, message.timeout_s))
        };
        let way = flags::ROUTE | flags::NO_OUTPUT;
        let web = |phase| told(0, "192.0.2.9:40000", 0, phase);
        let to = |state, kind: u32| Some((state, way | kind, "10.1.15.45:80".to_owned(), 77));
        assert_eq!(
            PHASES.map(web),
            [
                to(3, 0),
                to(1, 0),
                to(4, flags::INACTIVE),
                to(0, flags::INACTIVE | flags::TEMPLATE),
            ]
        );
        // One that is down is not in the kernel's table; this host's own stack is its loopback.
        assert_eq!(told(0, "192.0.2.9:40000", 1, Phase::Established), None);
        let own = told(0, "192.0.2.9:40000", 2, Phase::Established).unwrap();
        assert_eq!(own.2, "127.0.0.1:80");
        let six = told(1, "[2001:db8::9]:40000", 0, Phase::Datagrams).unwrap();
        let tunnel = flags::TUNNEL | flags::NO_OUTPUT | flags::INACTIVE;
        assert_eq!(
            (six.0, six.1, six.2.as_str()),
            (0, tunnel, "[2001:db8::45]:53")
        );
    }

    /// A message has addresses of one version of IP.
    #[test]
    fn what_cannot_be_told() {
        let mut plan = plan();
        let list = [carried(
            &plan,
            1,
            "[2001:db8::9]:40000",
            0,
            Phase::Datagrams,
        )];
        assert_eq!(to_kernel(&plan, &list).len(), 1);
        plan.services[1].backends[0].target = Target::Host([10, 1, 15, 45].into());
        let list = [carried(
            &plan,
            1,
            "[2001:db8::9]:40000",
            0,
            Phase::Datagrams,
        )];
        assert_eq!(to_kernel(&plan, &list), []);
    }

    /// What the kernel was told comes back as the same connections.
    #[test]
    fn there_and_back() {
        let plan = plan();
        let mut list: Vec<Carried> = PHASES
            .iter()
            .zip(1_u16..)
            .map(|(phase, port)| {
                let port = if *phase == Phase::Sticks { 0 } else { port };
                carried(&plan, 0, &format!("192.0.2.9:{port}"), 0, *phase)
            })
            .collect();
        list.push(carried(&plan, 0, "192.0.2.9:7", 2, Phase::Established));
        list.push(carried(
            &plan,
            1,
            "[2001:db8::9]:40000",
            0,
            Phase::Datagrams,
        ));
        let name = |message: &Connection| match (message.protocol, message.state) {
            (17, _) => "UDP",
            (_, 1) => "ESTABLISHED",
            (_, 3) => "SYN_RECV",
            (_, 4) => "FIN_WAIT",
            _ => "NONE",
        };
        let table: Vec<Entry> = to_kernel(&plan, &list)
            .iter()
            .map(|message| Entry {
                protocol: Protocol::from_number(message.protocol).unwrap(),
                client: message.client,
                vip: message.vip,
                server: message.server,
                state: name(message).to_owned(),
                expires_in_s: u64::from(message.timeout_s),
            })
            .collect();
        assert_eq!(from_kernel(&plan, &table), list);

        // What is not ours stays where it is.
        let mut foreign = table[0].clone();
        foreign.server.set_ip(IpAddr::from([10, 1, 15, 99]));
        let mut other = table[0].clone();
        other.vip.set_port(81);
        assert!(from_kernel(&plan, &[foreign, other]).is_empty());
    }
}
