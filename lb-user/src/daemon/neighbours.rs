//! Where the real servers are: the path to each and its MAC address, kept fresh because the kernel
//! does not see the packets that would keep them so.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    dataplane::DataPlane,
    model::{Config, Forwarding, Hop, Neighbour, VirtualService},
    net::{
        interfaces::{Interfaces, NetEvent},
        netlink::{Exit, Netlink, NetlinkError, Path},
    },
};

/// A known neighbour is verified this often. The kernel asks only when its entry has gone stale.
const VERIFY: Duration = Duration::from_secs(10);

/// Paths and MAC addresses.
#[derive(Default)]
pub struct Neighbours {
    /// As many as the kernel's table has (gc_thresh3, 1,024 by default).
    macs: HashMap<(u32, IpAddr), [u8; 6]>,
    /// Those of them that an administrator has fixed: there is nothing to ask.
    fixed: HashSet<(u32, IpAddr)>,
    /// Where the kernel would send packets for each host.
    paths: HashMap<IpAddr, Path>,
    warned: HashSet<IpAddr>,
    verified: Option<Instant>,
}

/// Who knows where packets would be sent: the kernel, or what a test has instead.
pub trait Ways {
    /// Where a packet for an address would be sent. An error is that there was no answer.
    async fn path_to(&self, address: IpAddr) -> Result<Path, NetlinkError>;
}

impl Ways for Netlink {
    async fn path_to(&self, address: IpAddr) -> Result<Path, NetlinkError> {
        self.path_to(address).await
    }
}

impl Neighbours {
    /// Takes an event. Returns the hosts whose packets go by the neighbour that it tells of.
    pub fn learn(&mut self, event: &NetEvent) -> Vec<IpAddr> {
        let NetEvent::Neighbour {
            ifindex,
            address,
            mac,
            fixed,
        } = event
        else {
            return Vec::new();
        };
        match fixed {
            true => self.fixed.insert((*ifindex, *address)),
            false => self.fixed.remove(&(*ifindex, *address)),
        };
        let changed = match mac {
            Some(mac) => self.macs.insert((*ifindex, *address), *mac) != Some(*mac),
            None => self.macs.remove(&(*ifindex, *address)).is_some(),
        };
        if !changed {
            return Vec::new();
        }
        let next = (*ifindex, *address);
        let by =
            |(host, path): (&IpAddr, &Path)| (next_hop(*host, path) == Some(next)).then_some(*host);
        self.paths.iter().filter_map(by).collect()
    }

    /// Asks for the path to every host of the configuration. Without an answer those that were not
    /// asked for stay what they were, and it is time to look again.
    pub async fn find_paths(
        &mut self,
        config: &Config,
        kernel: &impl Ways,
    ) -> Result<(), NetlinkError> {
        let verified = self.verified.take();
        let hosts = hosts(config);
        self.paths.retain(|address, _| hosts.contains(address));
        self.warned.retain(|address| hosts.contains(address));
        for address in hosts {
            let path = kernel.path_to(address).await?;
            if !is_reachable(config, address, &path) {
                if self.warned.insert(address) {
                    tracing::warn!(%address, "no connected network leads to this host, so direct return cannot reach it; its packets pass to the kernel (forward = \"tunnel\" reaches hosts behind routers)");
                }
            } else {
                self.warned.remove(&address);
            }
            self.paths.insert(address, path);
        }
        self.verified = verified;
        Ok(())
    }

    /// Tells the data plane where every host is.
    pub fn publish(&self, interfaces: &Interfaces, data_plane: &mut dyn DataPlane) {
        for address in self.paths.keys() {
            data_plane.set_neighbour(*address, self.locate(*address, interfaces));
        }
    }

    /// Which interface carries frames to a host, below any VLAN interface: `Some(None)` where the host is
    /// this one, `None` where no way is known yet.
    pub fn carrier(&self, address: IpAddr, interfaces: &Interfaces) -> Option<Option<u32>> {
        match self.paths.get(&address)? {
            Path::Local => Some(None),
            Path::Nowhere => None,
            Path::Out(exit) => interfaces
                .carrier(exit.ifindex)
                .map(|(index, _)| Some(index)),
        }
    }

    /// Where a host is.
    pub fn locate(&self, address: IpAddr, interfaces: &Interfaces) -> Option<Neighbour> {
        let path = self.paths.get(&address)?;
        let exit = match path {
            Path::Local => return Some(Neighbour::ThisHost),
            Path::Nowhere => return None,
            Path::Out(exit) => exit,
        };
        let interface = interfaces.by_index(exit.ifindex)?;
        let (carrier, vlans) = interfaces.carrier(exit.ifindex)?;
        let mtu = exit.mtu.unwrap_or(interface.place.mtu);
        Some(Neighbour::Host(Hop {
            mac: *self.macs.get(&next_hop(address, path)?)?,
            ifindex: carrier,
            source_mac: interface.mac,
            vlans,
            on_link: exit.gateway.is_none(),
            source: exit.source,
            mtu: mtu.min(interface.place.mtu),
        }))
    }

    /// The MAC address of a host on a connected network.
    pub fn mac_of(&self, address: IpAddr) -> Option<[u8; 6]> {
        let mut macs = self.macs.iter();
        macs.find(|((_, known), _)| *known == address)
            .map(|(_, mac)| *mac)
    }

    /// Hosts whose MAC address is not known although they are on a connected network.
    pub fn unresolved(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        self.hops().filter(|hop| !self.macs.contains_key(hop))
    }

    /// Interface and address of every host or router that frames are sent to.
    fn hops(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        self.paths
            .iter()
            .filter_map(|(host, path)| next_hop(*host, path))
    }

    /// Whether it is time to look for paths again and to verify what is known.
    pub fn is_due(&self) -> bool {
        self.verified.is_none_or(|at| at.elapsed() >= VERIFY)
    }

    /// Forgets every MAC address.
    pub fn forget(&mut self) {
        self.macs.clear();
        self.fixed.clear();
    }

    /// Makes the kernel resolve what is unknown, and from time to time verify what is known.
    pub async fn refresh(&mut self, netlink: &Netlink) {
        let mut wanted: Vec<(u32, IpAddr)> = self.unresolved().collect();
        if self.is_due() {
            self.verified = Some(Instant::now());
            wanted = self
                .hops()
                .filter(|hop| !self.fixed.contains(hop))
                .collect();
        }
        for (ifindex, address) in wanted {
            if let Err(error) = netlink.use_neighbour(ifindex, address).await {
                tracing::debug!(error = super::with_sources(&error), "neighbour");
                if error.is_no_answer() {
                    break;
                }
            }
        }
    }
}

/// Interface and address of who gets the frames for a host.
fn next_hop(host: IpAddr, path: &Path) -> Option<(u32, IpAddr)> {
    match path {
        Path::Out(Exit {
            ifindex, gateway, ..
        }) => Some((*ifindex, gateway.unwrap_or(host))),
        Path::Local | Path::Nowhere => None,
    }
}

/// Whether every service that sends packets to a host can do so by its way of forwarding.
fn is_reachable(config: &Config, host: IpAddr, path: &Path) -> bool {
    let sends = |service: &&VirtualService| service.hosts().any(|other| other == host);
    let routed = config
        .services
        .iter()
        .filter(sends)
        .all(|service| service.forwarding != Forwarding::Dr);
    match path {
        Path::Local => true,
        Path::Nowhere => false,
        Path::Out(exit) => exit.gateway.is_none() || routed,
    }
}

fn hosts(config: &Config) -> BTreeSet<IpAddr> {
    let services = config.services.iter();
    services.flat_map(VirtualService::hosts).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::config;

    struct Fake {
        answer: Option<Path>,
        asked: Cell<u32>,
    }

    impl Ways for Fake {
        async fn path_to(&self, _: IpAddr) -> Result<Path, NetlinkError> {
            self.asked.set(self.asked.get() + 1);
            let (what, after) = ("look up a route".to_owned(), Duration::from_secs(2));
            self.answer.ok_or(NetlinkError::NoAnswer { what, after })
        }
    }

    /// A kernel that is kept waiting says nothing of any host, which is not that there is no way to it.
    #[tokio::test]
    async fn paths_stay_while_the_kernel_does_not_answer() {
        let text = "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\naddress = \"10.1.15.60:80\"\n\
                    [[service.backend]]\naddress = \"10.1.15.71\"\n[[service.backend]]\naddress = \"10.1.15.72\"\n";
        let config = config::parse("lbd.toml", text, "host").unwrap();
        let hosts = [71, 72].map(|last| IpAddr::from([10, 1, 15, last]));
        let exit = Exit {
            ifindex: 2,
            gateway: None,
            source: None,
            mtu: None,
        };
        let mut kernel = Fake {
            answer: Some(Path::Out(exit)),
            asked: Cell::new(0),
        };
        let mut neighbours = Neighbours::default();
        neighbours.find_paths(&config, &kernel).await.unwrap();
        assert_eq!(kernel.asked.take(), 2);
        neighbours.verified = Some(Instant::now());
        assert!(!neighbours.is_due());

        kernel.answer = None;
        assert!(neighbours.find_paths(&config, &kernel).await.is_err());
        assert_eq!(kernel.asked.get(), 1, "each keeps the daemon waiting");
        assert!(neighbours.is_due());
        for host in hosts {
            assert_eq!(neighbours.paths[&host], Path::Out(exit));
        }
    }
}
