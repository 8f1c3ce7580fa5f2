//! Virtual addresses on interfaces and their announcement.

use std::{collections::BTreeMap, io, time::Instant};

use crate::{
    model::{Instance, Prefix},
    net::{
        announce::Announcer,
        announcing::{Announcing, Occasion},
        interfaces::Interfaces,
        netlink::Netlink,
    },
};

/// What a master holds.
#[derive(Clone)]
struct Held {
    interface: String,
    ifindex: u32,
    prefixes: Vec<Prefix>,
    /// Those that an owner (priority 255) had on its interface already: its real addresses, which
    /// are announced but never taken away.
    own: Vec<Prefix>,
}

/// Virtual addresses that are on interfaces because of us.
pub struct Addresses {
    netlink: Netlink,
    announcer: Announcer,
    announcing: Announcing,
    /// Announcements sent, by instance.
    sent: BTreeMap<String, u64>,
    held: BTreeMap<String, Held>,
}

impl Addresses {
    /// Needs CAP_NET_RAW.
    pub fn new(netlink: Netlink) -> io::Result<Self> {
        Ok(Self {
            netlink,
            announcer: Announcer::open()?,
            announcing: Announcing::default(),
            sent: BTreeMap::new(),
            held: BTreeMap::new(),
        })
    }

    /// Virtual addresses of an instance that a daemon that died left behind. The owner of an address
    /// (priority 255) keeps it: it is the interface's real one.
    pub fn left_from_before(&self, instance: &Instance, interfaces: &Interfaces) -> Vec<Prefix> {
        let present = |prefix: &&Prefix| {
            let interface = interfaces.by_name(&instance.interface);
            interface.is_some_and(|interface| interface.addresses.contains(prefix))
        };
        if instance.priority == 255 {
            return Vec::new();
        }
        instance.held().filter(present).copied().collect()
    }

    /// Removes addresses that were left behind.
    pub async fn remove(&self, instance: &Instance, left: &[Prefix], interfaces: &Interfaces) {
        let Some(interface) = interfaces.by_name(&instance.interface) else {
            return;
        };
        for prefix in left {
            tracing::warn!(address = %prefix, interface = interface.name, "removing a virtual address left from before");
            self.delete(interface.ifindex, *prefix).await;
        }
    }

    /// Holds an instance's addresses as they are, announced by the daemon before this one.
    pub fn resume(&mut self, instance: &Instance, interfaces: &Interfaces) {
        let Some(interface) = interfaces.by_name(&instance.interface) else {
            return;
        };
        let held = Held {
            interface: interface.name.clone(),
            ifindex: interface.ifindex,
            prefixes: instance.held().copied().collect(),
            own: Vec::new(),
        };
        self.watch(instance, &held);
        self.held.insert(instance.name.clone(), held);
    }

    /// Puts a master's addresses in place and announces them.
    pub async fn hold(&mut self, instance: &Instance, interfaces: &Interfaces) {
        let Some(interface) = interfaces.by_name(&instance.interface) else {
            return;
        };
        let prefixes: Vec<Prefix> = instance.held().copied().collect();
        let before = self.held.remove(&instance.name);
        let (mut own, ours) =
            before.map_or_else(Default::default, |held| (held.own, held.prefixes));
        for prefix in &prefixes {
            let present = interface
                .addresses
                .iter()
                .any(|p| p.address == prefix.address);
            let is_new = !ours.contains(prefix) && !self.holds(interface.ifindex, prefix);
            if instance.priority == 255 && present && is_new {
                own.push(*prefix);
            } else if !own.contains(prefix) {
                self.add(interface.ifindex, *prefix).await;
            }
        }
        let held = Held {
            interface: interface.name.clone(),
            ifindex: interface.ifindex,
            prefixes,
            own,
        };
        self.watch(instance, &held);
        self.held.insert(instance.name.clone(), held);
        self.announce(&instance.name, Occasion::Promotion, interfaces);
    }

    fn watch(&mut self, instance: &Instance, held: &Held) {
        let addresses = held.prefixes.iter().map(|prefix| prefix.address).collect();
        self.announcing.hold(
            &instance.name,
            held.ifindex,
            addresses,
            instance.announce,
            Instant::now(),
        );
    }

    /// Takes addresses away that an instance held, except those that another holds by now.
    pub async fn release(&mut self, name: &str) {
        self.announcing.forget(name);
        if let Some(held) = self.held.remove(name) {
            self.delete_unless_held(&held).await;
        }
    }

    /// Follows a changed address list, or other timing, of an instance that stays master.
    pub async fn update(&mut self, instance: &Instance, interfaces: &Interfaces) {
        self.announcing
            .retime(&instance.name, instance.announce, Instant::now());
        let Some(held) = self.held.get(&instance.name) else {
            return;
        };
        if held.prefixes.iter().eq(instance.held()) {
            return;
        }
        let before = held.clone();
        // The kernel knows IPv6 addresses without their length: the old one must go first.
        for prefix in before.prefixes.iter().filter(|p| p.address.is_ipv6()) {
            let other_length = |new: &Prefix| new.address == prefix.address && new != prefix;
            if instance.held().any(other_length) {
                self.delete(before.ifindex, *prefix).await;
            }
        }
        self.hold(instance, interfaces).await;
        self.delete_unless_held(&before).await;
    }

    async fn delete_unless_held(&self, before: &Held) {
        for prefix in before
            .prefixes
            .iter()
            .filter(|prefix| !before.own.contains(prefix))
        {
            if !self.holds(before.ifindex, prefix) {
                self.delete(before.ifindex, *prefix).await;
            }
        }
    }

    fn holds(&self, ifindex: u32, prefix: &Prefix) -> bool {
        self.held
            .values()
            .any(|held| held.ifindex == ifindex && held.prefixes.contains(prefix))
    }

    /// Takes every held address away.
    pub async fn remove_all(&mut self) {
        let names: Vec<String> = self.held.keys().cloned().collect();
        for name in names {
            self.release(&name).await;
        }
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
            let Some(held) = self.held.get(&*due.instance) else {
                continue;
            };
            let Some(interface) = interfaces.by_name(&held.interface) else {
                continue;
            };
            let router = due.address.is_ipv6() && forwards_v6(&held.interface);
            let (ifindex, mac) = (held.ifindex, interface.mac);
            match self.announcer.announce(ifindex, mac, due.address, router) {
                Ok(()) => *self.sent.entry(due.instance.to_string()).or_default() += 1,
                Err(error) => {
                    tracing::warn!(address = %due.address, interface = held.interface, %error, "cannot announce an address");
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

    /// Puts back every held address that is not there.
    pub async fn restore_missing(&self, interfaces: &Interfaces) {
        for held in self.held.values() {
            let Some(interface) = interfaces.by_index(held.ifindex) else {
                continue;
            };
            for prefix in held
                .prefixes
                .iter()
                .filter(|p| !interface.addresses.contains(p))
            {
                self.restore(held.ifindex, *prefix).await;
            }
        }
    }

    /// Puts back a held address that somebody else removed.
    pub async fn restore(&self, ifindex: u32, prefix: Prefix) {
        if self.holds(ifindex, &prefix) {
            tracing::warn!(address = %prefix, "a virtual address was removed by somebody else; putting it back");
            self.add(ifindex, prefix).await;
        }
    }

    async fn add(&self, ifindex: u32, prefix: Prefix) {
        if let Err(error) = self.netlink.add_address(ifindex, prefix).await {
            tracing::error!(
                error = super::with_sources(&error),
                "cannot put a virtual address in place"
            );
        }
    }

    async fn delete(&self, ifindex: u32, prefix: Prefix) {
        if let Err(error) = self.netlink.delete_address(ifindex, prefix).await {
            tracing::error!(
                error = super::with_sources(&error),
                "cannot take a virtual address away"
            );
        }
    }
}

/// Whether this host is an IPv6 router on an interface.
fn forwards_v6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}
