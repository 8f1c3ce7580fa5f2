//! Virtual addresses whose packets this host does not take (RFC 9568's Accept_Mode, section 6.1).
//! What the XDP program forwards never comes so far, and services of this host's own stay open.

use std::net::IpAddr;

use super::Daemon;
use crate::{
    model::{Instance, Target, VirtualService},
    net::nft::Closed,
};

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
        match self.firewall.close(closed) {
            Ok(()) => self.not_closed = None,
            Err(error) => {
                let text = format!("`accept = false` is not in force: nf_tables: {error}");
                if self.not_closed.as_ref() != Some(&text) {
                    tracing::error!("{text}; trying again");
                }
                self.not_closed = Some(text);
            }
        }
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
