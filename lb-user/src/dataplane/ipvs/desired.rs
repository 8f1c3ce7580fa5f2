//! What IPVS should hold for a plan. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::codec::{Destination, Forward, Key, Service, Wrapping, flags, whole};
use crate::{
    dataplane::plan::{BackendState, PlannedBackend, PlannedService},
    model::{Forwarding, GueChecksum, Persistence, Scheduler, Target, Tunnel},
};

/// A service with its real servers as IPVS should hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Settings.
    pub service: Service,
    /// Real servers in the order of the file.
    pub servers: Vec<Destination>,
    /// For each of those, the latest weight above 0 that the kernel should remember of it, or 0.
    pub last_weights: Vec<u32>,
    /// Those of weight 0 that stay only while they have connections: a sorry server that is not needed
    /// any more.
    pub lingering: Vec<Destination>,
    /// Whether the scheduler's choice depends on the order of the real servers.
    pub ordered: bool,
}

/// What identifies a service in the kernel.
pub fn key(planned: &PlannedService) -> Key {
    let id = &planned.id;
    match planned.fwmark {
        Some(mark) => Key::Mark {
            mark,
            v6: id.address.is_ipv6(),
        },
        None => Key::Address(id.protocol.number(), id.address, port(planned)),
    }
}

/// The kernel's port of a service and of its real servers. 0: the one that the client asks for, where
/// that may be several.
fn port(planned: &PlannedService) -> u16 {
    match planned.fwmark {
        Some(_) => 0,
        None => planned.id.ports.single().unwrap_or(0),
    }
}

/// A planned service in the kernel's terms.
pub fn wanted(planned: &PlannedService) -> Wanted {
    let ordered = matches!(
        planned.scheduler,
        Scheduler::Sh | Scheduler::Mh | Scheduler::Dh | Scheduler::Fo
    );
    // These give places to real servers of weight 0, whose clients are refused.
    let hashes = matches!(
        planned.scheduler,
        Scheduler::Sh | Scheduler::Mh | Scheduler::Dh
    );
    // While a sorry server answers it must answer everybody.
    let alone = hashes && !planned.hashing.fallback && planned.is_sorry();
    let mut wanted = Wanted {
        service: service(planned),
        servers: Vec::new(),
        last_weights: Vec::new(),
        lingering: Vec::new(),
        ordered,
    };
    for backend in &planned.backends {
        let held = match (backend.state, backend.sorry) {
            (BackendState::Up, _) => true,
            (
                BackendState::Draining | BackendState::Unresolved | BackendState::Inhibited,
                false,
            ) => !alone,
            (BackendState::Standby, _) => !hashes,
            (BackendState::Draining | BackendState::Unresolved, true) => {
                if !hashes {
                    wanted.lingering.push(server(planned, backend));
                }
                false
            }
            // Its connections go with it (expire_nodest_conn).
            (BackendState::Inhibited, true) | (BackendState::Resetting | BackendState::Down, _) => {
                false
            }
        };
        if held {
            wanted.servers.push(server(planned, backend));
            wanted.last_weights.push(backend.last_share);
        }
    }
    wanted
}

fn service(planned: &PlannedService) -> Service {
    let v6 = planned.id.address.is_ipv6();
    let options = [
        (planned.hashing.port, flags::PORT),
        (planned.hashing.fallback, flags::FALLBACK),
        (planned.persistence.is_some(), flags::PERSISTENT),
        (planned.one_packet, flags::ONE_PACKET),
    ];
    let (timeout_s, netmask) = match planned.persistence {
        Some(persistence) => (
            u32::try_from(persistence.timeout.as_secs()).unwrap_or(u32::MAX),
            netmask(persistence, v6),
        ),
        None => (0, whole(v6)),
    };
    Service {
        key: key(planned),
        scheduler: planned.scheduler.to_string(),
        flags: options.iter().map(|(on, flag)| u32::from(*on) * flag).sum(),
        timeout_s,
        netmask,
        engine: planned
            .persistence
            .and_then(|persistence| persistence.engine)
            .map(|engine| engine.name().to_owned()),
    }
}

fn netmask(persistence: Persistence, v6: bool) -> u32 {
    match (v6, persistence.prefix) {
        (true, prefix) => u32::from(prefix),
        (false, 0) => 0,
        (false, prefix) => u32::MAX << (32 - u32::from(prefix.min(32))),
    }
}

/// A real server, whether or not the kernel should hold it now.
pub fn server(planned: &PlannedService, backend: &PlannedBackend) -> Destination {
    let (address, forward) = match (backend.target, planned.forwarding) {
        // The director's own stack has the VIP: nothing needs to be changed.
        (Target::Local, _) => (loopback(planned.id.address), Forward::Route),
        (Target::Host(address), Forwarding::Dr) => (address, Forward::Route),
        (Target::Host(address), Forwarding::Tunnel(_)) => (address, Forward::Tunnel),
        (Target::Host(address), Forwarding::Nat) => (address, Forward::Masquerade),
    };
    Destination {
        address,
        port: match planned.forwarding {
            Forwarding::Nat => backend.port.unwrap_or(port(planned)),
            Forwarding::Dr | Forwarding::Tunnel(_) => port(planned),
        },
        forward,
        wrapping: match planned.forwarding {
            Forwarding::Tunnel(tunnel) if forward == Forward::Tunnel => wrapping(tunnel),
            Forwarding::Tunnel(_) | Forwarding::Dr | Forwarding::Nat => Wrapping::default(),
        },
        weight: backend.given(),
        upper: backend.upper,
        lower: backend.lower,
    }
}

/// The kernel's words for a tunnel.
pub const fn wrapping(tunnel: Tunnel) -> Wrapping {
    let (kind, port, flags) = match tunnel {
        Tunnel::Ipip => (0, 0, 0),
        Tunnel::Gue { port, checksum } => {
            let flags = match checksum {
                GueChecksum::None => 0,
                GueChecksum::Full => 1,
                GueChecksum::Remote => 2,
            };
            (1, port, flags)
        }
        Tunnel::Gre { checksum } => (2, 0, checksum as u16),
    };
    Wrapping { kind, port, flags }
}

const fn loopback(vip: IpAddr) -> IpAddr {
    match vip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::plan::BackendState,
        model::{Protocol, ServiceId},
    };

    /// A service of a mark has all ports that the firewall marks, and so have its real servers; only
    /// translation gives them one.
    #[test]
    fn marked_services() {
        let id = ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap());
        let server = PlannedBackend {
            port: Some(8080),
            ..PlannedBackend::new(Target::Host([10, 1, 15, 45].into()), 5, BackendState::Up)
        };
        let mut planned = PlannedService::new(id, 0, Scheduler::Wrr, vec![server]);
        planned.fwmark = Some(7);
        let marked = wanted(&planned);
        assert_eq!(marked.service.key, Key::Mark { mark: 7, v6: false });
        assert_eq!(marked.servers[0].port, 0);
        planned.forwarding = Forwarding::Nat;
        assert_eq!(wanted(&planned).servers[0].port, 8080);
    }

    /// include/uapi/linux/ip_vs.h: IP_VS_CONN_F_TUNNEL_TYPE_* and IP_VS_TUNNEL_ENCAP_FLAG_*.
    #[test]
    fn tunnels_have_the_kernels_numbers() {
        let gue = |checksum| Tunnel::Gue {
            port: 6080,
            checksum,
        };
        for (tunnel, expected) in [
            (Tunnel::Ipip, (0, 0, 0)),
            (gue(GueChecksum::None), (1, 6080, 0)),
            (gue(GueChecksum::Full), (1, 6080, 1)),
            (gue(GueChecksum::Remote), (1, 6080, 2)),
            (Tunnel::Gre { checksum: false }, (2, 0, 0)),
            (Tunnel::Gre { checksum: true }, (2, 0, 1)),
        ] {
            let Wrapping { kind, port, flags } = wrapping(tunnel);
            assert_eq!((kind, port, flags), expected, "{tunnel:?}");
        }
    }

    /// A state, and the weight that the kernel holds with wrr and with sh, if it holds the server.
    #[test]
    fn states_are_weights() {
        let rows = [
            (BackendState::Up, Some(7), Some(7)),
            (BackendState::Draining, Some(0), Some(0)),
            (BackendState::Unresolved, Some(0), Some(0)),
            // keepalived's inhibit_on_failure.
            (BackendState::Inhibited, Some(0), Some(0)),
            // sh would refuse the clients of its places while the sorry server answers all others.
            (BackendState::Standby, Some(0), None),
            // The program sends the resets; the kernel lets connections go.
            (BackendState::Resetting, None, None),
            (BackendState::Down, None, None),
        ];
        for (state, wrr, sh) in rows {
            for (scheduler, expected) in [(Scheduler::Wrr, wrr), (Scheduler::Sh, sh)] {
                let id = ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap());
                let target = Target::Host([10, 1, 15, 45].into());
                let mut server = PlannedBackend::new(target, 5, state);
                server.share = 7;
                let planned = PlannedService::new(id, 0, scheduler, vec![server]);
                let held: Vec<u32> = wanted(&planned).servers.iter().map(|s| s.weight).collect();
                assert_eq!(held, Vec::from_iter(expected), "{state:?} {scheduler}");
            }
        }
    }

    /// While a sorry server answers, nobody is refused for the place that a server of weight 0 has.
    #[test]
    fn a_sorry_server_answers_everybody() {
        for (scheduler, fallback, held) in [
            (Scheduler::Wrr, false, 2),
            (Scheduler::Sh, false, 1),
            (Scheduler::Mh, false, 1),
            (Scheduler::Mh, true, 2),
        ] {
            let id = ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap());
            let target = Target::Host([10, 1, 15, 45].into());
            let mut sorry = PlannedBackend::new(Target::Local, 1, BackendState::Up);
            sorry.sorry = true;
            let inhibited = PlannedBackend::new(target, 5, BackendState::Inhibited);
            let mut planned = PlannedService::new(id, 0, scheduler, vec![inhibited, sorry]);
            planned.hashing.fallback = fallback;
            assert_eq!(
                wanted(&planned).servers.len(),
                held,
                "{scheduler} {fallback}"
            );
        }
    }
}
