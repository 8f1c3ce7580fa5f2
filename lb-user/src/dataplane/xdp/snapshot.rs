//! What is live, with counters.

use lb_common::{BackendCounters, BackendFlags, Reason, flow::FlowTable, reason::REASON_SLOTS};

use super::{Xdp, dump, keys, maps::PodCounters};
use crate::{
    dataplane::{BackendSnapshot, FlowTableSnapshot, ServiceSnapshot, plan::PlannedService},
    model::{Forwarding, Target},
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
        let backends = service
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
                    sorry: backend.sorry,
                    weight: backend.weight,
                    state: backend.state.label().to_owned(),
                    mac: resolved.then(|| dump::mac(element.destination_mac())),
                    active,
                    inactive,
                    connections: counters.connections,
                    packets: counters.packets,
                    bytes: counters.bytes,
                }
            })
            .collect();
        ServiceSnapshot {
            protocol: service.id.protocol.to_string(),
            address: service.id.endpoint(),
            scheduler: service.scheduler,
            serving: self.control.is_serving(service.role),
            always: service.role == 0,
            forward: match service.forwarding {
                Forwarding::Dr => "Route",
                Forwarding::Tunnel => "Tunnel",
            }
            .to_owned(),
            persistent_s: service.persistence.map(|p| p.timeout.as_secs()),
            reasons: self.service_reasons(service),
            backends,
        }
    }
}
