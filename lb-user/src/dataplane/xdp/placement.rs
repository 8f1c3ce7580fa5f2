//! Who stands where in the table of a service. Pure.

use crate::{
    dataplane::plan::{BackendState, PlannedBackend, PlannedService},
    model::{Scheduler, Target, address::wire},
    schedule::{hashed, ring},
};

/// The table of a service: indexes into its backends, `None` where nobody is.
pub fn table(service: &PlannedService) -> Vec<Option<u16>> {
    let sorry = service.is_sorry();
    match service.scheduler {
        // The sorry server serves alone.
        Scheduler::Sh | Scheduler::Mh if !sorry => hashed_table(service),
        Scheduler::Fo if !sorry => by_weight(&service.backends),
        _ => ring::build(&service.ring_weights())
            .into_iter()
            .map(Some)
            .collect(),
    }
}

/// keepalived adds real servers in the order of its file, and the kernel puts each in front of the
/// others; those that are down it takes out.
fn hashed_table(service: &PlannedService) -> Vec<Option<u16>> {
    let members: Vec<hashed::Member> = service
        .backends
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, backend)| !backend.sorry && !backend.state.is_out())
        .filter_map(|(index, backend)| {
            let Target::Host(address) = backend.target else {
                return None;
            };
            Some(hashed::Member {
                index: index as u16,
                address: wire(address),
                // As the kernel knows them: 0 for a service of all ports.
                port: service.id.ports.first,
                weight: match service.scheduler {
                    Scheduler::Mh => backend.last_share,
                    _ => backend.given(),
                },
            })
        })
        .collect();
    match service.scheduler {
        Scheduler::Sh => hashed::source(&members),
        _ => hashed::maglev(&members),
    }
}

/// The highest weight first; of equal ones the last of the file, which stands first in the kernel.
fn by_weight(backends: &[PlannedBackend]) -> Vec<Option<u16>> {
    let mut order: Vec<(u32, u16)> = backends
        .iter()
        .zip(0..)
        .filter(|(backend, _)| backend.state == BackendState::Up)
        .map(|(backend, index)| (backend.weight, index))
        .collect();
    order.reverse();
    order.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    order.into_iter().map(|(_, index)| Some(index)).collect()
}
