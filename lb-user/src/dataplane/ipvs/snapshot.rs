//! What is live, with the kernel's counters.

use super::{
    Ipvs,
    codec::{DestinationEntry, Stats, SyncState},
    desired,
};
use crate::{
    dataplane::{
        BackendSnapshot, ServiceSnapshot, Snapshot, Traffic,
        plan::{PlannedBackend, PlannedService},
        switching::Switching,
    },
    model::Target,
};

impl Ipvs {
    pub(super) fn show(&self) -> Snapshot {
        let services = self.plan.iter().flat_map(|plan| &plan.services);
        Snapshot {
            kind: "ipvs".to_owned(),
            choice: String::new(),
            interfaces: Vec::new(),
            generation: self.generation,
            flow_slots: self.table_size,
            flow_tables: Vec::new(),
            services: services.map(|service| self.service(service)).collect(),
            passed: Vec::new(),
            sync: self.show_sync(),
            repairs: self.repairs.clone(),
            trouble: self
                .trouble
                .as_deref()
                .or(self.sharing.trouble())
                .map(str::to_owned),
            switching: Switching::default(),
            slow_path: None,
        }
    }

    fn show_sync(&self) -> Option<String> {
        if self.sharing.trouble().is_some() {
            return None;
        }
        let daemon = self.sync_daemon(self.plan.as_ref()?)?;
        let (interface, id) = (daemon.interface, daemon.id);
        Some(match daemon.state {
            SyncState::Master => format!("tells of its connections on {interface}, sync id {id}"),
            SyncState::Backup => format!("learns connections on {interface}, sync id {id}"),
        })
    }

    fn service(&self, service: &PlannedService) -> ServiceSnapshot {
        let key = desired::key(service);
        let held = self.held.iter().find(|(entry, _)| entry.service.key == key);
        let servers = held.map_or(&[][..], |(_, servers)| servers);
        let stats = held.map(|(entry, _)| entry.stats).unwrap_or_default();
        let (total, rates) = traffic(&stats);
        ServiceSnapshot {
            protocol: service.id.protocol.to_string(),
            address: service.id.endpoint(),
            fwmark: service.fwmark,
            scheduler: service.scheduler,
            flags: service.flags(),
            listed: held.is_some(),
            serving: self.is_serving(service.role),
            always: service.role == 0,
            persistent_s: service.persistence.map(|p| p.timeout.as_secs()),
            reasons: Vec::new(),
            total,
            rates,
            backends: service
                .backends
                .iter()
                .map(|backend| show(service, backend, servers))
                .collect(),
        }
    }
}

fn show(
    service: &PlannedService,
    backend: &PlannedBackend,
    held: &[DestinationEntry],
) -> BackendSnapshot {
    let meant = desired::server(service, backend);
    let entry = held.iter().find(|entry| {
        (entry.destination.address, entry.destination.port) == (meant.address, meant.port)
    });
    let (total, rates) = traffic(&entry.map(|entry| entry.stats).unwrap_or_default());
    let seen = entry.map_or(meant, |entry| entry.destination);
    BackendSnapshot {
        address: match backend.target {
            Target::Local => "local".to_owned(),
            Target::Host(address) => address.to_string(),
        },
        port: meant.port,
        forward: seen.forward.label().to_owned(),
        sorry: backend.sorry,
        listed: entry.is_some(),
        weight: backend.weight,
        listed_weight: seen.weight,
        state: backend.state.label().to_owned(),
        mac: None,
        active: entry.map_or(0, |entry| u64::from(entry.active)),
        inactive: entry.map_or(0, |entry| u64::from(entry.inactive)),
        connections: total.connections,
        packets: total.in_packets,
        bytes: total.in_bytes,
        out_packets: total.out_packets,
        out_bytes: total.out_bytes,
        rates,
    }
}

fn traffic(stats: &Stats) -> (Traffic, Traffic) {
    let of = |words: [u64; 5]| {
        let [connections, in_packets, out_packets, in_bytes, out_bytes] = words;
        Traffic {
            connections,
            in_packets,
            out_packets,
            in_bytes,
            out_bytes,
        }
    };
    let total = [
        stats.connections,
        stats.in_packets,
        stats.out_packets,
        stats.in_bytes,
        stats.out_bytes,
    ];
    (of(total), of(stats.rates))
}
