//! Where the real servers are: the path to each and its MAC address, kept fresh because the kernel
//! does not see the packets that would keep them so.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::{
    dataplane::DataPlane,
    model::{Config, Neighbour, Target},
    net::{
        interfaces::{Interfaces, NetEvent},
        netlink::{Netlink, Path},
    },
};

/// A known neighbour is verified this often. The kernel asks only when its entry has gone stale.
const VERIFY: Duration = Duration::from_secs(10);

/// Paths and MAC addresses.
#[derive(Default)]
pub struct Neighbours {
    /// As many as the kernel's table has (gc_thresh3, 1,024 by default).
    macs: HashMap<(u32, Ipv4Addr), [u8; 6]>,
    paths: HashMap<Ipv4Addr, Path>,
    warned: HashSet<Ipv4Addr>,
    verified: Option<Instant>,
}

impl Neighbours {
    /// Takes an event. Says whether it is about a host that packets are sent to.
    pub fn learn(&mut self, event: &NetEvent) -> bool {
        let NetEvent::Neighbour {
            ifindex,
            address,
            mac,
        } = event
        else {
            return false;
        };
        match mac {
            Some(mac) => self.macs.insert((*ifindex, *address), *mac) != Some(*mac),
            None => self.macs.remove(&(*ifindex, *address)).is_some(),
        };
        self.paths.get(address) == Some(&Path::OnLink(*ifindex))
    }

    /// Asks the kernel for the path to every host of the configuration.
    pub async fn find_paths(&mut self, config: &Config, netlink: &Netlink) {
        let hosts = hosts(config);
        self.paths.retain(|address, _| hosts.contains(address));
        self.warned.retain(|address| hosts.contains(address));
        for address in hosts {
            let path = netlink.path_to(address).await;
            if path == Path::NotOnLink && self.warned.insert(address) {
                tracing::warn!(%address, "no connected network leads to this host, so direct return cannot reach it; its packets pass to the kernel");
            } else if path != Path::NotOnLink {
                self.warned.remove(&address);
            }
            self.paths.insert(address, path);
        }
    }

    /// Tells the data plane where every host is.
    pub fn publish(&self, interfaces: &Interfaces, data_plane: &mut dyn DataPlane) {
        for address in self.paths.keys() {
            data_plane.set_neighbour(*address, self.locate(*address, interfaces));
        }
    }

    /// Where a host is.
    pub fn locate(&self, address: Ipv4Addr, interfaces: &Interfaces) -> Option<Neighbour> {
        match self.paths.get(&address)? {
            Path::Local => Some(Neighbour::ThisHost),
            Path::NotOnLink => None,
            Path::OnLink(ifindex) => Some(Neighbour::Host {
                mac: *self.macs.get(&(*ifindex, address))?,
                ifindex: *ifindex,
                source_mac: interfaces.by_index(*ifindex)?.mac,
            }),
        }
    }

    /// Hosts whose MAC address is not known although they are on a connected network.
    pub fn unresolved(&self) -> impl Iterator<Item = (Ipv4Addr, u32)> + '_ {
        self.paths.iter().filter_map(|(address, path)| match path {
            Path::OnLink(ifindex) if !self.macs.contains_key(&(*ifindex, *address)) => {
                Some((*address, *ifindex))
            }
            _ => None,
        })
    }

    /// Whether it is time to look for paths again and to verify what is known.
    pub fn is_due(&self) -> bool {
        self.verified.is_none_or(|at| at.elapsed() >= VERIFY)
    }

    /// Forgets every MAC address.
    pub fn forget(&mut self) {
        self.macs.clear();
    }

    /// Makes the kernel resolve what is unknown, and from time to time verify what is known.
    pub async fn refresh(&mut self, netlink: &Netlink) {
        let mut wanted: Vec<(Ipv4Addr, u32)> = self.unresolved().collect();
        if self.is_due() {
            self.verified = Some(Instant::now());
            wanted = self
                .paths
                .iter()
                .filter_map(|(address, path)| match path {
                    Path::OnLink(ifindex) => Some((*address, *ifindex)),
                    Path::Local | Path::NotOnLink => None,
                })
                .collect();
        }
        for (address, ifindex) in wanted {
            if let Err(error) = netlink.use_neighbour(ifindex, address).await {
                tracing::debug!(error = super::with_sources(&error), "neighbour");
            }
        }
    }
}

fn hosts(config: &Config) -> BTreeSet<Ipv4Addr> {
    let of = |service: &crate::model::VirtualService| {
        let sorry = match service.sorry {
            Some(Target::Host(address)) => Some(address),
            Some(Target::Local) | None => None,
        };
        service
            .backends
            .iter()
            .map(|b| b.address)
            .chain(sorry)
            .collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of).collect()
}
