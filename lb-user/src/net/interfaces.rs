//! What is known of this host's interfaces. Pure: fed with netlink's events.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::model::Prefix;

/// A change that the kernel told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// An interface appeared or changed.
    Link {
        /// Interface index.
        ifindex: u32,
        /// Interface name.
        name: String,
        /// Administratively up, with carrier.
        up: bool,
        /// MAC address; zero where the interface has none.
        mac: [u8; 6],
    },
    /// An interface went away.
    LinkGone {
        /// Interface index.
        ifindex: u32,
    },
    /// An IPv4 address came or went.
    Address {
        /// Interface index.
        ifindex: u32,
        /// The address.
        prefix: Prefix,
        /// Whether it is there now.
        present: bool,
    },
    /// A neighbour's MAC address is known, or is not any more.
    Neighbour {
        /// Interface index.
        ifindex: u32,
        /// The neighbour.
        address: Ipv4Addr,
        /// Its MAC address.
        mac: Option<[u8; 6]>,
    },
    /// Events were lost: everything must be read again.
    Lost,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub name: String,
    /// Administratively up, with carrier.
    pub up: bool,
    /// MAC address.
    pub mac: [u8; 6],
    /// IPv4 addresses in the kernel's order: the primary one of each network before the others.
    pub addresses: Vec<Prefix>,
}

/// All interfaces.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    by_index: BTreeMap<u32, Interface>,
}

impl Interfaces {
    /// Takes an event. Says which interface it changed.
    pub fn apply(&mut self, event: &NetEvent) -> Option<String> {
        match event {
            NetEvent::Link {
                ifindex,
                name,
                up,
                mac,
            } => {
                let entry = self.by_index.entry(*ifindex).or_insert_with(|| Interface {
                    ifindex: *ifindex,
                    name: name.clone(),
                    up: !up,
                    mac: *mac,
                    addresses: Vec::new(),
                });
                let changed = entry.up != *up || entry.mac != *mac || entry.name != *name;
                entry.name.clone_from(name);
                entry.up = *up;
                entry.mac = *mac;
                changed.then(|| name.clone())
            }
            NetEvent::LinkGone { ifindex } => self.by_index.remove(ifindex).map(|i| i.name),
            NetEvent::Address {
                ifindex,
                prefix,
                present,
            } => {
                let interface = self.by_index.get_mut(ifindex)?;
                let known = interface.addresses.contains(prefix);
                if *present && !known {
                    interface.addresses.push(*prefix);
                } else if !*present {
                    interface.addresses.retain(|other| other != prefix);
                }
                let changed = *present != known;
                changed.then(|| interface.name.clone())
            }
            NetEvent::Neighbour { .. } | NetEvent::Lost => None,
        }
    }

    /// The interface of this name.
    pub fn by_name(&self, name: &str) -> Option<&Interface> {
        self.by_index
            .values()
            .find(|interface| interface.name == name)
    }

    /// The interface of this index.
    pub fn by_index(&self, ifindex: u32) -> Option<&Interface> {
        self.by_index.get(&ifindex)
    }
}

impl Interface {
    /// The address adverts come from: `wanted` if the interface has it, else the first that is not
    /// virtual.
    pub fn source(
        &self,
        wanted: Option<Ipv4Addr>,
        is_virtual: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let mut addresses = self.addresses.iter().map(|prefix| prefix.address);
        match wanted {
            Some(wanted) => addresses.find(|address| *address == wanted),
            None => addresses.find(|address| !is_virtual(*address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_events_and_names_what_changed() {
        let mut table = Interfaces::default();
        let link = |up| NetEvent::Link {
            ifindex: 7,
            name: "eth0".into(),
            up,
            mac: [1; 6],
        };
        let address = |last, present| NetEvent::Address {
            ifindex: 7,
            prefix: Prefix {
                address: Ipv4Addr::new(10, 1, 15, last),
                length: 16,
            },
            present,
        };
        assert_eq!(
            table.apply(&address(43, true)),
            None,
            "an unknown interface"
        );
        assert_eq!(table.apply(&link(true)), Some("eth0".into()));
        assert_eq!(table.apply(&link(true)), None);
        assert_eq!(table.apply(&address(50, true)), Some("eth0".into()));
        assert_eq!(table.apply(&address(43, true)), Some("eth0".into()));
        assert_eq!(table.apply(&address(43, true)), None);
        let vip = Ipv4Addr::new(10, 1, 15, 50);
        let eth0 = table.by_name("eth0").unwrap();
        assert_eq!(
            eth0.source(None, |a| a == vip),
            Some(Ipv4Addr::new(10, 1, 15, 43))
        );
        assert_eq!(eth0.source(Some(vip), |a| a == vip), Some(vip));
        assert_eq!(table.apply(&link(false)), Some("eth0".into()));
        assert_eq!(
            table.apply(&NetEvent::LinkGone { ifindex: 7 }),
            Some("eth0".into())
        );
        assert!(table.by_name("eth0").is_none());
    }
}
