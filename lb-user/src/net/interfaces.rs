//! What is known of this host's interfaces. Pure: fed with netlink's events.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::control::EVERY_VLAN;

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
        /// What it lies upon or belongs to.
        place: Place,
    },
    /// An interface went away.
    LinkGone {
        /// Interface index.
        ifindex: u32,
    },
    /// An address came or went.
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
        address: IpAddr,
        /// Its MAC address.
        mac: Option<[u8; 6]>,
        /// Somebody said so, and the kernel does not ask (NUD_PERMANENT, NUD_NOARP).
        fixed: bool,
    },
    /// Events were lost: everything must be read again.
    Lost,
}

/// What an interface lies upon or belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The interface below, of a VLAN or a macvlan.
    pub below: Option<u32>,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// It is a bond or a team: frames are its own as they come in at its ports. Bridges and switches have rules
    /// of their own.
    pub is_bond: bool,
    /// It has a MAC address of its own on the interface below.
    pub is_macvlan: bool,
    /// The group that somebody put it into.
    pub group: u32,
}

/// Tags on a frame at most: the program knows two.
const MAX_TAGS: usize = 2;

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
    /// What it lies upon or belongs to.
    pub place: Place,
    /// Addresses in the kernel's order: the primary IPv4 one of each network before the others.
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
                place,
            } => {
                let entry = self.by_index.entry(*ifindex).or_insert_with(|| Interface {
                    ifindex: *ifindex,
                    name: name.clone(),
                    up: !up,
                    mac: *mac,
                    place: *place,
                    addresses: Vec::new(),
                });
                let changed = entry.up != *up
                    || entry.mac != *mac
                    || entry.name != *name
                    || entry.place != *place;
                entry.name.clone_from(name);
                entry.up = *up;
                entry.mac = *mac;
                entry.place = *place;
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

    /// The names of the interfaces that have one of these addresses.
    pub fn having(&self, addresses: &BTreeSet<IpAddr>) -> Vec<String> {
        let has = |interface: &&Interface| {
            let mut own = interface.addresses.iter();
            own.any(|prefix| addresses.contains(&prefix.address))
        };
        let all = self.by_index.values().filter(has);
        all.map(|interface| interface.name.clone()).collect()
    }

    /// Whether any interface has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let mut all = self.by_index.values().flat_map(|i| &i.addresses);
        all.any(|prefix| prefix.address == address)
    }

    /// The interface that carries the frames of `ifindex`, and the VLAN ids that they have there,
    /// outer first. `None` for more tags than the program knows.
    pub fn carrier(&self, ifindex: u32) -> Option<(u32, [u16; MAX_TAGS])> {
        let mut at = ifindex;
        let mut inner_first = Vec::new();
        // Macvlans upon macvlans cannot be made, so this ends.
        while let Some(Place {
            below: Some(below),
            vlan,
            is_macvlan,
            ..
        }) = self.by_index(at).map(|interface| interface.place)
        {
            match vlan {
                Some(vlan) => inner_first.push(vlan),
                None if is_macvlan => {}
                None => break,
            }
            if inner_first.len() > MAX_TAGS {
                return None;
            }
            at = below;
        }
        let mut vlans = [0; MAX_TAGS];
        for (slot, vlan) in vlans.iter_mut().zip(inner_first.iter().rev()) {
            *slot = *vlan;
        }
        Some((at, vlans))
    }

    /// Names of interfaces whose MAC address is another one than before.
    pub fn changed_macs(&self, before: &Interfaces) -> Vec<String> {
        let is_other = |now: &&Interface| {
            let before = before.by_index(now.ifindex);
            before.is_some_and(|before| before.mac != now.mac)
        };
        let changed = self.by_index.values().filter(is_other);
        changed.map(|interface| interface.name.clone()).collect()
    }

    /// The MAC address of every interface.
    pub fn macs(&self) -> impl Iterator<Item = [u8; 6]> + '_ {
        self.by_index.values().map(|interface| interface.mac)
    }

    /// The MAC addresses to which frames for this host are sent on the named interfaces: their own,
    /// those of VLANs and macvlans upon them, and of the bridge or bond that they belong to.
    pub fn own_macs(&self, names: &[String]) -> Vec<(u32, [u8; 6])> {
        let mut macs = Vec::new();
        for carrier in self.by_index.values().filter(|i| names.contains(&i.name)) {
            let belongs = |other: &&Interface| {
                other.ifindex == carrier.ifindex
                    || carrier.place.master == Some(other.ifindex)
                    || self.lies_upon(other.ifindex, carrier)
            };
            for interface in self.by_index.values().filter(belongs) {
                let entry = (carrier.ifindex, interface.mac);
                if interface.mac == [0; 6] {
                    continue;
                }
                // The program of a bond runs on its ports, and frames come in there.
                let ports = self.by_index.values();
                let ports = ports.filter(|port| port.place.master == Some(carrier.ifindex));
                let at_ports = ports.map(|port| (port.ifindex, interface.mac));
                for entry in std::iter::once(entry).chain(at_ports) {
                    if !macs.contains(&entry) {
                        macs.push(entry);
                    }
                }
            }
        }
        macs
    }

    /// The VLANs that this host is in on the named interfaces, outer id first; [`EVERY_VLAN`] where a bridge above
    /// decides.
    pub fn own_vlans(&self, names: &[String]) -> Vec<(u32, [u16; MAX_TAGS])> {
        let mut vlans = Vec::new();
        for carrier in self.by_index.values().filter(|i| names.contains(&i.name)) {
            let master = carrier.place.master;
            let is_bridged = master
                .and_then(|index| self.by_index(index))
                .is_some_and(|master| !master.place.is_bond);
            if is_bridged {
                vlans.push((carrier.ifindex, [EVERY_VLAN, 0]));
                continue;
            }
            let ports = self.by_index.values();
            let ports = ports.filter(|port| port.place.master == Some(carrier.ifindex));
            let entries: Vec<u32> = std::iter::once(carrier.ifindex)
                .chain(ports.map(|port| port.ifindex))
                .collect();
            for index in self.by_index.keys() {
                let Some((at, ids)) = self.carrier(*index) else {
                    continue;
                };
                if ids == [0; MAX_TAGS] || at != carrier.ifindex && Some(at) != master {
                    continue;
                }
                vlans.extend(entries.iter().map(|entry| (*entry, ids)));
            }
        }
        vlans
    }

    /// An address of this host on a network that `host` is on, other than virtual ones.
    pub fn beside(&self, host: IpAddr, is_virtual: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let interfaces = self.by_index.values();
        let addresses = interfaces.flat_map(|interface| &interface.addresses);
        addresses
            .filter(|prefix| prefix.holds(host) && !is_virtual(prefix.address))
            .max_by_key(|prefix| prefix.length)
            .map(|prefix| prefix.address)
    }

    /// Whether an interface lies upon another, or upon its master, through whatever is between.
    fn lies_upon(&self, ifindex: u32, carrier: &Interface) -> bool {
        /// No real stack is deeper.
        const DEPTH: usize = 8;
        let below = |index: u32| self.by_index(index).and_then(|i| i.place.below);
        let mut at = Some(ifindex);
        for _ in 0..DEPTH {
            at = at.and_then(below);
            match at {
                None => return false,
                found if found == Some(carrier.ifindex) || found == carrier.place.master => {
                    return true;
                }
                Some(_) => {}
            }
        }
        false
    }
}

impl Interface {
    /// The address adverts come from: `wanted` if the interface has it, else the first of the family
    /// that is not virtual; for IPv6, the first link-local one (RFC 9568 section 5.1.1.2).
    pub fn source(
        &self,
        wanted: Option<IpAddr>,
        is_v6: bool,
        is_virtual: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().map(|prefix| prefix.address);
        let speaks = |address: &IpAddr| match address {
            IpAddr::V4(_) => !is_v6,
            IpAddr::V6(v6) => is_v6 && v6.is_unicast_link_local(),
        };
        match wanted {
            Some(wanted) => addresses.find(|address| *address == wanted),
            None => addresses.find(|address| speaks(address) && !is_virtual(*address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn follows_events_and_names_what_changed() {
        let mut table = Interfaces::default();
        let link = |up| NetEvent::Link {
            ifindex: 7,
            name: "eth0".into(),
            up,
            mac: [1; 6],
            place: Place::default(),
        };
        let address = |last, present| NetEvent::Address {
            ifindex: 7,
            prefix: Prefix {
                address: Ipv4Addr::new(10, 1, 15, last).into(),
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
        let link_local = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0x43]);
        for address in [
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x43]),
            link_local,
        ] {
            table.apply(&NetEvent::Address {
                ifindex: 7,
                prefix: Prefix {
                    address,
                    length: 64,
                },
                present: true,
            });
        }
        let vip = IpAddr::from([10, 1, 15, 50]);
        let eth0 = table.by_name("eth0").unwrap();
        assert_eq!(
            eth0.source(None, false, |a| a == vip),
            Some(IpAddr::from([10, 1, 15, 43]))
        );
        assert_eq!(eth0.source(Some(vip), false, |a| a == vip), Some(vip));
        assert_eq!(eth0.source(None, true, |_| false), Some(link_local));
        let beside = |last| table.beside([10, 1, 0, last].into(), |a| a == vip);
        assert_eq!(beside(45), Some(IpAddr::from([10, 1, 15, 43])));
        assert_eq!(table.beside([10, 2, 0, 1].into(), |_| false), None);
        assert_eq!(table.apply(&link(false)), Some("eth0".into()));
        assert_eq!(
            table.apply(&NetEvent::LinkGone { ifindex: 7 }),
            Some("eth0".into())
        );
        assert!(table.by_name("eth0").is_none());
    }

    #[test]
    fn frames_of_a_vlan_travel_on_the_interface_below() {
        let mut table = Interfaces::default();
        let mut add = |ifindex, name: &str, last, place| {
            table.apply(&NetEvent::Link {
                ifindex,
                name: name.into(),
                up: true,
                mac: [2, 0, 0, 0, 0, last],
                place,
            });
        };
        let upon = |below, vlan| Place {
            below: Some(below),
            vlan,
            ..Place::default()
        };
        let port = Place {
            master: Some(9),
            ..Place::default()
        };
        add(2, "eth0", 2, Place::default());
        add(3, "eth0.100", 2, upon(2, Some(100)));
        add(4, "eth0.100.7", 2, upon(3, Some(7)));
        let macvlan = Place {
            is_macvlan: true,
            ..upon(2, None)
        };
        add(5, "mac0", 5, macvlan);
        add(6, "three", 2, upon(4, Some(8)));
        add(8, "eth1", 8, port);
        let bond = Place {
            is_bond: true,
            ..Place::default()
        };
        add(9, "bond0", 9, bond);
        add(10, "bond0.5", 10, upon(9, Some(5)));
        let bridged = Place {
            master: Some(11),
            ..Place::default()
        };
        add(11, "br0", 11, Place::default());
        add(12, "eth2", 12, bridged);
        assert_eq!(table.carrier(2), Some((2, [0, 0])));
        assert_eq!(table.carrier(3), Some((2, [100, 0])));
        assert_eq!(table.carrier(4), Some((2, [100, 7])));
        assert_eq!(table.carrier(5), Some((2, [0, 0])));
        assert_eq!(table.carrier(6), None);
        let macs = |name: &str| {
            let all = table.own_macs(&[name.to_owned()]);
            all.iter()
                .map(|(index, mac)| (*index, mac[5]))
                .collect::<Vec<_>>()
        };
        assert_eq!(macs("eth0"), [(2, 2), (2, 5)]);
        assert_eq!(macs("eth1"), [(8, 8), (8, 9), (8, 10)]);
        assert_eq!(macs("bond0"), [(9, 9), (8, 9), (9, 10), (8, 10)]);
        let vlans = |name: &str| table.own_vlans(&[name.to_owned()]);
        assert_eq!(vlans("eth0"), [(2, [100, 0]), (2, [100, 7])]);
        assert_eq!(vlans("eth1"), [(8, [5, 0])]);
        assert_eq!(vlans("bond0"), [(9, [5, 0]), (8, [5, 0])]);
        let every = [(12, [EVERY_VLAN, 0])];
        assert_eq!(table.own_vlans(&["eth2".to_owned()]), every);
    }
}
