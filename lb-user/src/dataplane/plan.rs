//! From configuration and health to what the data plane should hold. Pure.

use std::collections::HashMap;

use crate::model::{Config, Scheduler, ServiceId, Target, VirtualService};

/// What the data plane should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Services in file order.
    pub services: Vec<PlannedService>,
}

/// A service of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedService {
    /// Protocol, VIP and port.
    pub id: ServiceId,
    /// Mastership flag that it depends on; 0 is always set.
    pub role: u16,
    /// Shown, not used: the weights below already say everything.
    pub scheduler: Scheduler,
    /// Backends in file order, the sorry server last.
    pub backends: Vec<PlannedBackend>,
}

/// A backend of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBackend {
    /// Where its packets go.
    pub target: Target,
    /// Whether it is the service's sorry server.
    pub sorry: bool,
    /// As configured.
    pub weight: u32,
    /// What it may be given.
    pub state: BackendState,
}

/// What a backend may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// New connections by its weight.
    Up,
    /// Its flows, but no new ones.
    Draining,
    /// The same, because its MAC address is not known: what it was sent would reach the director's
    /// own stack.
    Unresolved,
    /// Nothing: its flows move at their next packet.
    Down,
}

impl BackendState {
    /// The word in `lbctl`.
    pub const fn label(self) -> &'static str {
        match self {
            BackendState::Up => "up",
            BackendState::Draining => "draining",
            BackendState::Unresolved => "unresolved",
            BackendState::Down => "down",
        }
    }
}

impl PlannedService {
    /// Turns of each backend in the ring.
    pub fn ring_weights(&self) -> Vec<u32> {
        self.backends
            .iter()
            .map(
                |backend| match (backend.state, self.scheduler, backend.sorry) {
                    (
                        BackendState::Draining | BackendState::Unresolved | BackendState::Down,
                        _,
                        _,
                    ) => 0,
                    (BackendState::Up, _, true) | (BackendState::Up, Scheduler::Rr, false) => 1,
                    (BackendState::Up, Scheduler::Wrr, false) => backend.weight,
                },
            )
            .collect()
    }
}

/// What is known of a backend besides its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its health check says so, or it has none.
    pub up: bool,
    /// Its MAC address is known, or it is this host.
    pub resolved: bool,
}

/// Builds the plan. `roles` has the mastership flag of each instance; `condition` answers for a
/// backend of a service.
pub fn build(
    config: &Config,
    roles: &HashMap<String, u16>,
    condition: impl Fn(&VirtualService, Target) -> Condition,
) -> Plan {
    let services = config
        .services
        .iter()
        .map(|service| {
            let condition = |target| condition(service, target);
            PlannedService {
                id: service.id,
                role: service
                    .instance
                    .as_ref()
                    .and_then(|name| roles.get(name))
                    .copied()
                    .unwrap_or(0),
                scheduler: service.scheduler,
                backends: backends(service, &condition),
            }
        })
        .collect();
    Plan { services }
}

fn backends(
    service: &VirtualService,
    condition: &dyn Fn(Target) -> Condition,
) -> Vec<PlannedBackend> {
    let mut backends: Vec<PlannedBackend> = service
        .backends
        .iter()
        .map(|server| {
            let target = Target::Host(server.address);
            let state = match (condition(target), server.weight) {
                (Condition { up: false, .. }, _) => BackendState::Down,
                (Condition { up: true, .. }, 0) => BackendState::Draining,
                (
                    Condition {
                        up: true,
                        resolved: false,
                    },
                    _,
                ) => BackendState::Unresolved,
                (
                    Condition {
                        up: true,
                        resolved: true,
                    },
                    _,
                ) => BackendState::Up,
            };
            PlannedBackend {
                target,
                sorry: false,
                weight: server.weight,
                state,
            }
        })
        .collect();
    if let Some(target) = service.sorry {
        let needed = !backends
            .iter()
            .any(|backend| backend.state == BackendState::Up);
        let state = match (needed, condition(target).resolved) {
            (true, true) => BackendState::Up,
            (true, false) => BackendState::Unresolved,
            // Who was served the sorry page may finish reading it when the real servers are back.
            (false, _) => BackendState::Draining,
        };
        backends.push(PlannedBackend {
            target,
            sorry: true,
            weight: 1,
            state,
        });
    }
    backends
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::model::{Protocol, RealServer};

    fn host(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 15, last)
    }

    fn service(weights: &[u32], sorry: Option<Target>, scheduler: Scheduler) -> VirtualService {
        VirtualService {
            id: ServiceId {
                protocol: Protocol::Tcp,
                address: SocketAddrV4::new(host(50), 80),
            },
            scheduler,
            instance: Some("VI_1".into()),
            sorry,
            check: None,
            backends: (45..)
                .zip(weights)
                .map(|(last, weight)| RealServer {
                    address: host(last),
                    weight: *weight,
                })
                .collect(),
        }
    }

    /// Weights, which servers are down, and the turns of each backend, the sorry server last.
    #[test]
    fn who_gets_new_connections() {
        type Row<'a> = (&'a str, Scheduler, &'a [u32], &'a [u8], &'a [u32]);
        let rows: &[Row<'_>] = &[
            ("all up", Scheduler::Wrr, &[1, 3], &[], &[1, 3, 0]),
            (
                "rr ignores weights",
                Scheduler::Rr,
                &[1, 3],
                &[],
                &[1, 1, 0],
            ),
            ("one down", Scheduler::Wrr, &[1, 3], &[46], &[1, 0, 0]),
            (
                "all down: sorry",
                Scheduler::Wrr,
                &[1, 3],
                &[45, 46],
                &[0, 0, 1],
            ),
            (
                "all down: sorry, rr",
                Scheduler::Rr,
                &[1, 3],
                &[45, 46],
                &[0, 0, 1],
            ),
            (
                "weight 0 is drained in rr too",
                Scheduler::Rr,
                &[0, 2],
                &[],
                &[0, 1, 0],
            ),
            (
                "only weight 0 left: sorry, as weight 0 is no quorum",
                Scheduler::Wrr,
                &[0, 2],
                &[46],
                &[0, 0, 1],
            ),
        ];
        for (what, scheduler, weights, down, expected) in rows {
            let service = service(weights, Some(Target::Local), *scheduler);
            let up = |target| !matches!(target, Target::Host(a) if down.contains(&a.octets()[3]));
            let condition = |target| Condition {
                up: up(target),
                resolved: true,
            };
            let planned = PlannedService {
                id: service.id,
                role: 1,
                scheduler: *scheduler,
                backends: backends(&service, &condition),
            };
            assert_eq!(planned.ring_weights(), *expected, "{what}");
        }
    }

    #[test]
    fn the_sorry_server_keeps_its_readers_when_servers_return() {
        let service = service(&[1], Some(Target::Local), Scheduler::Wrr);
        let planned = backends(&service, &|_| Condition {
            up: true,
            resolved: true,
        });
        assert_eq!(planned[1].state, BackendState::Draining);
    }

    #[test]
    fn nobody_is_sent_to_a_host_that_cannot_be_found() {
        let service = service(&[1, 1], Some(Target::Local), Scheduler::Wrr);
        let lost = |lost: u8| {
            move |target| Condition {
                up: true,
                resolved: !matches!(target, Target::Host(a) if a.octets()[3] >= lost),
            }
        };
        let states =
            |planned: Vec<PlannedBackend>| planned.iter().map(|b| b.state).collect::<Vec<_>>();
        use BackendState::{Draining, Unresolved, Up};
        assert_eq!(
            states(backends(&service, &lost(46))),
            [Up, Unresolved, Draining]
        );
        assert_eq!(
            states(backends(&service, &lost(45))),
            [Unresolved, Unresolved, Up]
        );
    }
}
