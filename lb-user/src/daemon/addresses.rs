//! Virtual addresses on interfaces and their announcement, and what else a master puts in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Instant,
};

use super::{
    placed::{Owner, Placed},
    succession::Succession,
    unsent::Unsent,
    virtual_macs::VirtualMacs,
};
use crate::{
    model::{
        Instance, Prefix,
        network::{AddressOptions, Item, PlacedAddress},
    },
    net::{
        announce::Announcer,
        announcing::{Announcing, Occasion},
        interfaces::Interfaces,
        netlink::Netlink,
    },
};

/// What a master announces.
#[derive(Clone, PartialEq, Eq)]
struct Held {
    /// Addresses with their interfaces.
    addresses: Vec<(String, IpAddr)>,
    /// The interface of its virtual MAC address.
    virtual_mac: Option<String>,
}

/// Virtual addresses that are on interfaces because of us, and what else a master puts in place.
pub struct Addresses {
    announcer: Announcer,
    announcing: Announcing,
    /// Announcements sent, by instance.
    sent: BTreeMap<String, u64>,
    unsent: Unsent,
    held: BTreeMap<String, Held>,
    /// Addresses, routes and rules.
    pub placed: Placed,
    /// Interfaces of virtual MAC addresses.
    pub virtual_macs: VirtualMacs,
}

impl Addresses {
    /// Needs CAP_NET_RAW.
    pub fn new(netlink: Netlink) -> io::Result<Self> {
        Ok(Self {
            announcer: Announcer::open()?,
            announcing: Announcing::default(),
            sent: BTreeMap::new(),
            unsent: Unsent::default(),
            held: BTreeMap::new(),
            placed: Placed::new(netlink.clone()),
            virtual_macs: VirtualMacs::new(netlink),
        })
    }

    /// Holds what an instance has in place as it is, announced by the daemon before this one.
    pub async fn resume(&mut self, instance: &Instance, interfaces: &Interfaces) {
        self.virtual_macs.raise(instance).await;
        self.placed.adopt(&owner(&instance.name), instance.items());
        self.watch(instance, interfaces);
    }

    /// Puts in place what a master has, and announces its addresses.
    pub async fn hold(&mut self, instance: &Instance, interfaces: &Interfaces) {
        if interfaces.by_name(&instance.interface).is_none() {
            return;
        }
        self.virtual_macs.raise(instance).await;
        let (owner, items) = (owner(&instance.name), instance.items());
        // Clients wait for the announcement, and not for routes.
        let comes_first =
            |item: &&Item| matches!(item, Item::Address(_)) || self.placed.has(&owner, item);
        let first = items.iter().filter(comes_first).cloned().collect();
        let first = vec![(owner.clone(), first)];
        self.placed.put(first, interfaces).await;
        self.watch(instance, interfaces);
        self.announce(&instance.name, Occasion::Promotion, interfaces);
        self.placed.put(vec![(owner, items)], interfaces).await;
    }

    /// Knows what there is to announce from now on.
    fn watch(&mut self, instance: &Instance, interfaces: &Interfaces) {
        let held = Held::of(instance);
        let device = interfaces.by_name(instance.device());
        let addresses = held.addresses.iter().map(|(_, address)| *address);
        self.announcing.hold(
            &instance.name,
            device.map_or(0, |device| device.ifindex),
            addresses.collect(),
            instance.announce,
            Instant::now(),
        );
        self.unsent.forget(&instance.name);
        self.held.insert(instance.name.clone(), held);
    }

    /// Takes away what an instance had in place, except what another holds by now.
    pub async fn release(&mut self, name: &str, interfaces: &Interfaces) {
        self.announcing.forget(name);
        self.unsent.forget(name);
        let held = self.held.remove(name);
        self.placed.take(&owner(name), interfaces).await;
        if let Some(device) = held.and_then(|held| held.virtual_mac) {
            self.virtual_macs.lower(&device).await;
        }
    }

    /// Follows instances that are called otherwise now.
    pub fn rename(&mut self, names: &Succession) {
        let held = std::mem::take(&mut self.held).into_iter();
        self.held = held
            .map(|(name, held)| (names.rename(name), held))
            .collect();
        let sent = std::mem::take(&mut self.sent).into_iter();
        self.sent = sent
            .map(|(name, count)| (names.rename(name), count))
            .collect();
        self.unsent.rename(names);
        self.announcing.rename(|name| names.name(name).into());
        self.placed.rename(names);
    }

    /// Follows a changed configuration of instances that go on. What one master gives to another stays in place.
    pub async fn update<'i>(
        &mut self,
        instances: impl Iterator<Item = &'i Instance>,
        interfaces: &Interfaces,
    ) {
        let (mut wanted, mut changed) = (Vec::new(), Vec::new());
        for instance in instances {
            let (name, timing) = (&instance.name, instance.announce);
            self.announcing.retime(name, timing, Instant::now());
            let Some(before) = self.held.get(name).cloned() else {
                continue;
            };
            if before != Held::of(instance) {
                if interfaces.by_name(&instance.interface).is_none() {
                    continue;
                }
                self.virtual_macs.raise(instance).await;
                changed.push((instance, before));
            }
            wanted.push((owner(name), instance.items()));
        }
        self.placed.put(wanted, interfaces).await;
        for (instance, before) in changed {
            self.watch(instance, interfaces);
            self.announce(&instance.name, Occasion::Promotion, interfaces);
            let is_other = |name: &String| instance.network.virtual_mac.as_ref() != Some(name);
            if let Some(device) = before.virtual_mac.filter(is_other) {
                self.virtual_macs.lower(&device).await;
            }
        }
    }

    /// Takes everything away that is in place.
    pub async fn remove_all(&mut self, interfaces: &Interfaces) {
        let names: Vec<String> = self.held.keys().cloned().collect();
        for name in names {
            self.release(&name, interfaces).await;
        }
        self.placed.take_everything(interfaces).await;
        self.virtual_macs.remove_all().await;
    }

    /// Announces an instance's addresses now, and again as configured. Says whether it holds any.
    pub fn announce(&mut self, name: &str, occasion: Occasion, interfaces: &Interfaces) -> bool {
        let holds = self.announcing.begin(name, occasion, Instant::now());
        self.announce_due(interfaces);
        holds
    }

    /// When announcements are due next.
    pub fn next_announcement(&self) -> Option<Instant> {
        self.announcing.next()
    }

    /// Sends the announcements that are due.
    pub fn announce_due(&mut self, interfaces: &Interfaces) {
        for due in self.announcing.due(Instant::now()) {
            self.send(&due.instance, due.address, interfaces);
        }
    }

    /// Sends one announcement of an address that an instance holds.
    fn send(&mut self, instance: &str, address: IpAddr, interfaces: &Interfaces) {
        let held = self.held.get(instance);
        let mut addresses = held.iter().flat_map(|held| &held.addresses);
        let place = addresses.find(|(_, held)| *held == address);
        let Some((device, _)) = place else {
            return;
        };
        let Some(interface) = interfaces.by_name(device) else {
            return;
        };
        let router = address.is_ipv6() && forwards_v6(device);
        let (ifindex, mac) = (interface.ifindex, interface.mac);
        match self.announcer.announce(ifindex, mac, address, router) {
            Ok(()) => {
                self.unsent.succeeded(instance, address);
                *self.sent.entry(instance.to_owned()).or_default() += 1;
            }
            Err(error) => {
                if self.unsent.failed(instance, address, &error.to_string()) {
                    tracing::warn!(%address, interface = device, %error, "cannot announce an address; trying again");
                }
            }
        }
    }

    /// Announcements sent for an instance since it is configured.
    pub fn announced(&self, name: &str) -> u64 {
        self.sent.get(name).copied().unwrap_or(0)
    }

    /// Forgets the counts of instances that are no more.
    pub fn count_only(&mut self, instances: &[Instance]) {
        self.sent
            .retain(|name, _| instances.iter().any(|instance| instance.name == *name));
    }

    /// Puts back an address that somebody else removed.
    pub async fn restore(&mut self, ifindex: u32, prefix: Prefix, interfaces: &Interfaces) {
        if let Some(interface) = interfaces.by_index(ifindex) {
            let removed = PlacedAddress {
                prefix,
                device: interface.name.clone(),
                options: AddressOptions::default(),
            };
            let again = self.placed.restore(Some(&removed), interfaces).await;
            self.announce_all(again, interfaces);
        }
    }

    /// Puts back everything that somebody else removed.
    pub async fn restore_all(&mut self, interfaces: &Interfaces) {
        let again = self.placed.restore(None, interfaces).await;
        self.announce_all(again, interfaces);
    }

    /// Tries again what has failed.
    pub async fn retry(&mut self, interfaces: &Interfaces) {
        self.virtual_macs.retry().await;
        let again = self.placed.retry(interfaces).await;
        for (instance, address) in self.unsent.all() {
            self.send(&instance, address, interfaces);
        }
        self.announce_all(again, interfaces);
    }

    /// The MAC address of an interface is another one now: clients have the old one for its addresses.
    pub fn announce_anew(&mut self, device: &str, interfaces: &Interfaces) {
        let is_there = |held: &Held| held.addresses.iter().any(|(at, _)| at == device);
        let held = self.held.iter().filter(|(_, held)| is_there(held));
        let names = held.map(|(name, _)| name.clone()).collect();
        self.announce_all(names, interfaces);
    }

    fn announce_all(&mut self, instances: BTreeSet<String>, interfaces: &Interfaces) {
        for name in instances {
            self.announce(&name, Occasion::Promotion, interfaces);
        }
    }
}

impl Held {
    /// What an instance announces from now on.
    fn of(instance: &Instance) -> Self {
        let placed = instance.held().map(|prefix| instance.placed(*prefix));
        Self {
            addresses: placed
                .map(|placed| (placed.device, placed.prefix.address))
                .collect(),
            virtual_mac: instance.network.virtual_mac.clone(),
        }
    }
}

fn owner(name: &str) -> Owner {
    Owner::Instance(name.to_owned())
}

/// Whether this host is an IPv6 router on an interface.
fn forwards_v6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}
