//! Virtual addresses on interfaces and their announcement.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use crate::{
    model::{Instance, Prefix},
    net::{
        announce::Announcer,
        interfaces::{Interface, Interfaces},
        netlink::Netlink,
    },
};

/// After becoming master, addresses are announced at once and again after these times: an
/// announcement can be lost, and switches may still be learning.
const REPEATS: [Duration; 4] = [
    Duration::from_millis(0),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// A master announces its addresses this often: whoever missed the others learns it from this.
const REFRESH: Duration = Duration::from_secs(60);

/// What a master holds.
#[derive(Clone)]
struct Held {
    interface: String,
    ifindex: u32,
    prefixes: Vec<Prefix>,
    /// Those that an owner (priority 255) had on its interface already: its real addresses, which
    /// are announced but never taken away.
    own: Vec<Prefix>,
    /// When to announce next, and how many of the repeats are done.
    next: Instant,
    repeats: usize,
}

/// Virtual addresses that are on interfaces because of us.
pub struct Addresses {
    netlink: Netlink,
    announcer: Announcer,
    held: BTreeMap<String, Held>,
}

impl Addresses {
    /// Needs CAP_NET_RAW.
    pub fn new(netlink: Netlink) -> io::Result<Self> {
        Ok(Self {
            netlink,
            announcer: Announcer::open()?,
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
            next: Instant::now() + REFRESH,
            repeats: REPEATS.len(),
        };
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
            next: Instant::now() + REPEATS[1],
            repeats: 1,
        };
        self.send(&held, interface);
        self.held.insert(instance.name.clone(), held);
    }

    /// Takes addresses away that an instance held, except those that another holds by now.
    pub async fn release(&mut self, name: &str) {
        if let Some(held) = self.held.remove(name) {
            self.delete_unless_held(&held).await;
        }
    }

    /// Follows a changed address list of an instance that stays master.
    pub async fn update(&mut self, instance: &Instance, interfaces: &Interfaces) {
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

    /// Announces an instance's addresses now. Says whether it holds any.
    pub fn announce(&mut self, name: &str, interfaces: &Interfaces) -> bool {
        if let Some(held) = self.held.get_mut(name) {
            held.repeats = 1;
            held.next = Instant::now() + REPEATS[1];
        }
        let Some(held) = self.held.get(name) else {
            return false;
        };
        if let Some(interface) = interfaces.by_name(&held.interface) {
            self.send(held, interface);
        }
        true
    }

    /// Sends the announcements that are due.
    pub fn tick(&mut self, interfaces: &Interfaces) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (name, held) in &mut self.held {
            if held.next > now {
                continue;
            }
            held.repeats += 1;
            let wait = match REPEATS.get(held.repeats) {
                Some(next) => *next - REPEATS[held.repeats - 1],
                None => REFRESH,
            };
            held.next = now + wait;
            due.push(name.clone());
        }
        for held in due.iter().filter_map(|name| self.held.get(name)) {
            if let Some(interface) = interfaces.by_name(&held.interface) {
                self.send(held, interface);
            }
        }
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

    fn send(&self, held: &Held, interface: &Interface) {
        let router = forwards_v6(&held.interface);
        for prefix in &held.prefixes {
            let (ifindex, mac) = (held.ifindex, interface.mac);
            if let Err(error) = self
                .announcer
                .announce(ifindex, mac, prefix.address, router)
            {
                tracing::warn!(address = %prefix.address, interface = held.interface, %error, "cannot announce an address");
            }
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
