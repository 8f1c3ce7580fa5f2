//! What is live, with counters.

use lb_common::{BackendCounters, BackendFlags, Reason};

use super::{Xdp, dump, keys, maps::PodCounters};
use crate::{
    dataplane::{BackendSnapshot, ServiceSnapshot, plan::PlannedService},
    model::Target,
};

impl Xdp {
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

    pub(super) fn passed(&self) -> Vec<(String, u64)> {
        Reason::ALL
            .iter()
            .map(|reason| {
                let count = self
                    .reasons
                    .get(&(*reason as u32), 0)
                    .map_or(0, |values| values.iter().sum());
                (reason.label().to_owned(), count)
            })
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
            address: service.id.address.to_string(),
            scheduler: service.scheduler,
            serving: self.control.is_serving(service.role),
            always: service.role == 0,
            backends,
        }
    }
}
