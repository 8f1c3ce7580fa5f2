//! What is live, with counters.

use std::time::Duration;

use lb_common::{BackendCounters, BackendFlags, Reason, flow::FlowTable, reason::REASON_SLOTS};

use super::{Xdp, dump, keys, maps::PodCounters};
use crate::{
    dataplane::{
        BackendSnapshot, FlowTableSnapshot, ServiceSnapshot, Traffic,
        plan::{BackendState, PlannedService},
        rate::Rates,
    },
    model::{Forwarding, Ports, Target},
};

impl Xdp {
    pub(super) fn flow_tables(&self) -> Vec<FlowTableSnapshot> {
        let (slots, live) = (self.flows.slots(), self.flows.live());
        FlowTable::ALL
            .iter()
            .map(|table| FlowTableSnapshot {
                name: table.label().to_owned(),
                slots: slots[*table as usize],
                used: live[*table as usize],
            })
            .collect()
    }

    pub(super) fn counters(&self, id: u16) -> BackendCounters {
        let Ok(values) = self.stats.get(&u32::from(id), 0) else {
            return BackendCounters::default();
        };
        values
            .iter()
            .fold(BackendCounters::default(), |sum, PodCounters(one)| {
                BackendCounters {
                    connections: sum.connections + one.connections,
                    packets: sum.packets + one.packets,
                    bytes: sum.bytes + one.bytes,
                    reserved: 0,
                }
            })
    }

    /// Packets of a service that were not forwarded, by reason; of service 0, those of none.
    pub(super) fn reasons_of(&self, service: u16) -> Vec<u64> {
        let first = u32::from(service) * REASON_SLOTS;
        let count = |reason: &Reason| {
            self.reasons
                .get(&(first + *reason as u32), 0)
                .map_or(0, |values| values.iter().sum())
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// The same over all services that are or were.
    pub(super) fn passed(&self) -> Vec<(String, u64)> {
        let mut sums = self.reasons_of(0);
        for service in self.service_ids.ever_given() {
            for (sum, count) in sums.iter_mut().zip(self.reasons_of(service)) {
                *sum += count;
            }
        }
        Reason::ALL
            .iter()
            .zip(sums)
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect()
    }

    fn service_reasons(&self, service: &PlannedService) -> Vec<(String, u64)> {
        let id = self.service_ids.get(&service.id).unwrap_or_default();
        let counts = self.reasons_of(id);
        Reason::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect()
    }

    pub(super) fn service_snapshot(&self, service: &PlannedService) -> ServiceSnapshot {
        let backends: Vec<BackendSnapshot> = service
            .backends
            .iter()
            .zip(keys(service))
            .map(|(backend, key)| {
                let id = self.backend_id(&key);
                let element = self.backends.load(usize::from(id));
                let counters = self.counters(id);
                let (active, inactive) = self.flow_counts.get(&id).copied().unwrap_or_default();
                let resolved = element.flags() & BackendFlags::RESOLVED != 0;
                BackendSnapshot {
                    address: match backend.target {
                        Target::Local => "local".to_owned(),
                        Target::Host(address) => address.to_string(),
                    },
                    port: match service.id.ports {
                        Ports::ALL => 0,
                        ports => ports.first,
                    },
                    forward: match (backend.target, service.forwarding) {
                        (Target::Local, _) => "Local",
                        (_, Forwarding::Tunnel(_)) => "Tunnel",
                        (_, Forwarding::Dr | Forwarding::Nat) => "Route",
                    }
                    .to_owned(),
                    sorry: backend.sorry,
                    // Those that IPVS would hold.
                    listed: match backend.state {
                        BackendState::Up => true,
                        BackendState::Draining
                        | BackendState::Inhibited
                        | BackendState::Standby => !backend.sorry,
                        BackendState::Unresolved | BackendState::Resetting | BackendState::Down => {
                            false
                        }
                    },
                    weight: backend.weight,
                    listed_weight: match backend.state {
                        BackendState::Inhibited | BackendState::Standby => 0,
                        BackendState::Up => backend.share,
                        _ => backend.weight,
                    },
                    state: backend.state.label().to_owned(),
                    mac: resolved.then(|| dump::mac(element.destination_mac())),
                    active,
                    inactive,
                    connections: counters.connections,
                    packets: counters.packets,
                    bytes: counters.bytes,
                    out_packets: 0,
                    out_bytes: 0,
                    rates: self
                        .rates
                        .get(&id)
                        .map(Rates::per_second)
                        .unwrap_or_default(),
                }
            })
            .collect();
        ServiceSnapshot {
            protocol: service.id.protocol.to_string(),
            address: service.id.endpoint(),
            fwmark: None,
            scheduler: service.scheduler,
            flags: service.flags(),
            listed: true,
            serving: self.control.is_serving(service.role),
            always: service.role == 0,
            persistent_s: service.persistence.map(|p| p.timeout.as_secs()),
            reasons: self.service_reasons(service),
            total: sum(&backends, |b| Traffic {
                connections: b.connections,
                in_packets: b.packets,
                in_bytes: b.bytes,
                ..Traffic::default()
            }),
            rates: sum(&backends, |b| b.rates),
            backends,
        }
    }

    /// Follows the counters of every backend, once a sweep.
    pub(super) fn update_rates(&mut self) {
        let elapsed = self.swept.map_or(Duration::ZERO, |at| at.elapsed());
        let services = &self.plan.services;
        let ids: Vec<u16> = services
            .iter()
            .flat_map(keys)
            .map(|key| self.backend_id(&key))
            .collect();
        self.rates.retain(|id, _| ids.contains(id));
        for id in ids {
            let counters = self.counters(id);
            let now = Traffic {
                connections: counters.connections,
                in_packets: counters.packets,
                in_bytes: counters.bytes,
                ..Traffic::default()
            };
            self.rates.entry(id).or_default().update(&now, elapsed);
        }
    }
}

fn sum(backends: &[BackendSnapshot], of: impl Fn(&BackendSnapshot) -> Traffic) -> Traffic {
    backends
        .iter()
        .map(of)
        .fold(Traffic::default(), |a, b| Traffic {
            connections: a.connections + b.connections,
            in_packets: a.in_packets + b.in_packets,
            out_packets: a.out_packets + b.out_packets,
            in_bytes: a.in_bytes + b.in_bytes,
            out_bytes: a.out_bytes + b.out_bytes,
        })
}
