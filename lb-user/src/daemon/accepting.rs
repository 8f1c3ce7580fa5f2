//! Virtual addresses whose packets this host does not take (RFC 9568's Accept_Mode, section 6.1), and
//! services whose packets its own stack must not answer. What a data plane forwards never comes so far, and
//! services of this host's own stay open.

use std::{collections::HashSet, net::IpAddr};

use lb_common::slow;

use super::Daemon;
use crate::{
    dataplane::{plan::PlannedService, switching::Kind},
    model::{Instance, ServiceId, Target, VirtualService},
    net::nft::{Closed, ForIpvs, Guarded},
};

/// Every packet for this host that no data plane takes is compared with every guarded service: with more
/// services than this there is no guard.
const MAX_GUARDED: usize = 256;

impl Daemon {
    /// Follows the configuration, whoever is master: packets to an address that is not here do not
    /// come so far.
    pub(super) fn follow_accept_mode(&mut self) {
        let instances = self.config.instances.iter();
        let closed: Vec<Closed> = instances
            .filter(|instance| !instance.network.accept && instance.priority != 255)
            .flat_map(Instance::held)
            .map(|prefix| Closed {
                address: prefix.address,
                open: self.open_ports(prefix.address),
            })
            .collect();
        let (guarded, is_all) = self.guarded();
        let closes = !closed.is_empty();
        self.leads_to_ipvs = self.data_plane.has_slow_path();
        let for_ipvs = self.leads_to_ipvs.then_some(ForIpvs {
            mark: slow::MARK,
            mask: slow::MARK_MASK,
        });
        let held = self.firewall.hold(closed, guarded, for_ipvs);
        self.data_plane.set_guarded(is_all && held.is_ok());
        match held {
            Ok(()) => {
                self.not_closed = None;
                self.unguarded = None;
            }
            Err(error) if !closes => {
                // Without it connections may break where XDP is lost, and not before.
                let text = format!("nf_tables: {error}");
                if self.unguarded.as_ref() != Some(&text) {
                    tracing::warn!(
                        %error,
                        "nf_tables cannot keep packets of services from this host's own stack: should XDP be \
                         lost, it resets connections until IPVS knows them"
                    );
                }
                self.unguarded = Some(text);
            }
            Err(error) => {
                let text = format!("`accept = false` is not in force: nf_tables: {error}");
                if self.not_closed.as_ref() != Some(&text) {
                    tracing::error!("{text}; trying again");
                }
                self.not_closed = Some(text);
            }
        }
    }

    /// Services whose packets neither this host's own stack nor IPVS may see while XDP forwards: the moment XDP
    /// is lost the one would answer them with resets, and the other refuse connections of a service that has no
    /// real servers yet. Not while connections come back from IPVS, which forwards them meanwhile. Says too whether
    /// these are all of those that have real servers.
    fn guarded(&self) -> (Vec<Guarded>, bool) {
        let stands_ready = self.data_plane.has_fallback()
            && !self.data_plane.is_settling()
            && self.data_plane.forwarding() == Kind::Xdp
            && self.config.services.len() <= MAX_GUARDED;
        if !stands_ready {
            return (Vec::new(), false);
        }
        // Where nobody could answer, clients are to know at once.
        let has_server = |service: &&PlannedService| {
            let mut backends = service.backends.iter();
            backends.any(|backend| !backend.state.is_out())
        };
        let served: HashSet<ServiceId> = self
            .planned
            .services
            .iter()
            .filter(has_server)
            .map(|service| service.id)
            .collect();
        let services = self.config.services.iter();
        let guarded: Vec<Guarded> = services
            .filter(|service| served.contains(&service.id) && !self.may_be_ours(service))
            .map(|service| Guarded {
                address: service.id.address,
                protocol: service.id.protocol.number(),
                ports: service.id.ports.first..=service.id.ports.last,
            })
            .collect();
        let is_all = guarded.len() == served.len();
        (guarded, is_all)
    }

    /// Protocols and ports of an address whose services this host may have to answer itself.
    fn open_ports(&self, address: IpAddr) -> Vec<(u8, std::ops::RangeInclusive<u16>)> {
        let services = self.config.services.iter();
        services
            .filter(|service| service.id.address == address && self.may_be_ours(service))
            .map(|service| {
                let ports = service.id.ports;
                (service.id.protocol.number(), ports.first..=ports.last)
            })
            .collect()
    }

    fn may_be_ours(&self, service: &VirtualService) -> bool {
        let backends = service.backends.iter().map(|b| Target::Host(b.address));
        backends
            .chain(service.sorry.iter().copied())
            .any(|target| match target {
                Target::Local => true,
                Target::Host(address) => self.interfaces.has_address(address),
            })
    }
}
