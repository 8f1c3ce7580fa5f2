//! The interfaces of virtual MAC addresses: made when they are needed, up while their instance is
//! master, removed with it. The settings that their neighbour below needs for that are put back too.
//!
//! A router that is not master must not take frames to the virtual MAC address (RFC 9568 section
//! 6.4.2), so its interface is down then; adverts need none.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::Instance,
    net::{
        interfaces::Interfaces,
        macvlan::{GROUP, Macvlan},
        netlink::{Netlink, NetlinkError},
        sysctl::{self, Family},
    },
};

/// Of the interface below: it must not answer for addresses that lie on the macvlan, nor name them
/// in its own questions; others would learn its MAC address for them. With the least value that does
/// it (ip-sysctl: `arp_ignore`, `arp_announce`).
const BELOW: [(&str, i32); 2] = [("arp_ignore", 1), ("arp_announce", 2)];
/// Of the macvlan: it answers for its own addresses only. Packets come in there whose answers leave
/// by the interface below, which strict reverse path filtering (1) would drop; the larger number of
/// "all" and the interface counts. An address that goes takes no others with it.
const ABOVE_V4: [(&str, i32); 4] = [
    ("arp_ignore", 1),
    ("arp_announce", 2),
    ("rp_filter", 2),
    ("promote_secondaries", 1),
];
/// Of the macvlan: no address but those that are given to it (mode 1 is "none").
const ABOVE_V6: [(&str, i32); 3] = [("addr_gen_mode", 1), ("accept_ra", 0), ("autoconf", 0)];

/// How the alias of an interface begins that has all that belongs to it.
const DONE: &str = "lbd";

/// The interfaces that are there.
pub struct VirtualMacs {
    netlink: Netlink,
    /// Whether what an earlier daemon left has been looked for.
    looked: bool,
    /// By name.
    devices: BTreeMap<String, Macvlan>,
    /// Those whose instance is master.
    raised: BTreeSet<String>,
    /// What could not be done, by interface; "" is finding them, and removing those that nobody needs.
    failed: BTreeMap<String, String>,
    /// Whether the kernel left a request unanswered since [`VirtualMacs::retry`] began last. Interfaces are not
    /// made or switched until then: each would keep the daemon waiting as long.
    is_silent: bool,
    /// What the settings of interfaces below were before.
    settings: BTreeMap<String, Vec<(&'static str, i32)>>,
}

impl VirtualMacs {
    /// None yet.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            looked: false,
            devices: BTreeMap::new(),
            raised: BTreeSet::new(),
            failed: BTreeMap::new(),
            is_silent: false,
            settings: BTreeMap::new(),
        }
    }

    /// Whether every interface is there that can be, with all that belongs to it.
    pub fn are_complete(&self, instances: &[Instance], interfaces: &Interfaces) -> bool {
        wanted(instances, interfaces).into_iter().all(|want| {
            let found = interfaces.by_name(want.name);
            let known = self.devices.get(want.name);
            known.is_some_and(is_furnished)
                && found.is_some_and(|i| i.mac == want.mac && i.place.below == Some(want.below))
        })
    }

    /// Whether there may be interfaces that nobody needs: some are known, or nobody has looked yet.
    pub fn has_others(&self, instances: &[Instance]) -> bool {
        let is_needed = |name: &String| {
            let mut names = instances.iter().map(|i| i.network.virtual_mac.as_ref());
            names.any(|other| other == Some(name))
        };
        !self.looked || !self.devices.keys().all(is_needed)
    }

    /// Makes the interfaces that are missing, takes over those that an earlier daemon made, and
    /// removes those that nobody needs, unless `keep`. Interfaces below that are absent are no error.
    /// Says whether anything was made or removed. One that cannot be made does not keep the others from being made; one that
    /// cannot be removed does, because it may have the name or the MAC address of one of them.
    pub async fn follow(
        &mut self,
        instances: &[Instance],
        interfaces: &Interfaces,
        keep: bool,
    ) -> Result<bool, NetlinkError> {
        let wanted = wanted(instances, interfaces);
        self.failed
            .retain(|name, _| name.is_empty() || wanted.iter().any(|w| w.name == name));
        let sorted = self.sort_out(&wanted, interfaces, keep).await;
        self.note("", sorted.as_ref().err());
        let mut changed = sorted?;
        let mut result = Ok(());
        for want in &wanted {
            let known = self.devices.get(want.name);
            if !self.is_silent && !known.is_some_and(is_furnished) {
                let made = self.make(want).await;
                self.note(want.name, made.as_ref().err());
                if made.is_ok() && self.raised.contains(want.name) {
                    self.switch(want.name, true).await;
                }
                changed |= made.is_ok();
                result = result.and(made);
            }
        }
        self.put_settings_back(&wanted, keep);
        result.map(|()| changed)
    }

    /// Finds out what is there, and removes what nobody needs. Says whether there was any.
    async fn sort_out(
        &mut self,
        wanted: &[Wanted<'_>],
        interfaces: &Interfaces,
        keep: bool,
    ) -> Result<bool, NetlinkError> {
        let present = self.netlink.macvlans().await?;
        self.is_silent = false;
        self.looked = true;
        self.devices.clear();
        let mut others = Vec::new();
        for device in present {
            let is_wanted = |w: &Wanted<'_>| {
                w.name == device.name && w.mac == device.mac && Some(w.below) == device.below
            };
            self.remember_settings(&device, interfaces);
            if !keep && !wanted.iter().any(is_wanted) {
                others.push((device.name.clone(), device.ifindex));
            }
            self.devices.insert(device.name.clone(), device);
        }
        let changed = !others.is_empty();
        for (name, ifindex) in others {
            self.netlink.delete_link(ifindex).await?;
            self.devices.remove(&name);
        }
        Ok(changed)
    }

    /// Tries again to turn interfaces on or off.
    pub async fn retry(&mut self) {
        self.is_silent = false;
        let names: Vec<String> = self.failed.keys().cloned().collect();
        for name in names {
            let up = self.raised.contains(&name);
            self.switch(&name, up).await;
        }
    }

    /// All are there: what was in the way is over.
    pub fn nothing_is_missing(&mut self) {
        self.failed.remove("");
    }

    /// What could not be done.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.failed.values().cloned()
    }

    /// Remembers what could not be done, and tells of it once.
    fn note(&mut self, name: &str, error: Option<&NetlinkError>) {
        let Some(error) = error else {
            self.failed.remove(name);
            return;
        };
        self.is_silent |= error.is_no_answer();
        let error = match name {
            "" => super::with_sources(error),
            name => format!("interface {name}: {}", super::with_sources(error)),
        };
        if self.failed.get(name) != Some(&error) {
            tracing::error!("{error}; trying again");
            self.failed.insert(name.to_owned(), error);
        }
    }

    /// Turns an instance's interface on, before addresses are put there.
    pub async fn raise(&mut self, instance: &Instance) {
        if let Some(name) = &instance.network.virtual_mac {
            self.raised.insert(name.clone());
            self.switch(name, true).await;
        }
    }

    /// Turns it off.
    pub async fn lower(&mut self, name: &str) {
        self.raised.remove(name);
        self.switch(name, false).await;
    }

    /// Removes all of them.
    pub async fn remove_all(&mut self) {
        for device in std::mem::take(&mut self.devices).into_values() {
            tell(self.netlink.delete_link(device.ifindex).await);
        }
        self.put_settings_back(&[], false);
    }

    async fn switch(&mut self, name: &str, up: bool) {
        let Some(device) = self.devices.get(name) else {
            return;
        };
        if self.is_silent {
            let words = || format!("interface {name}: the kernel does not answer");
            self.failed.entry(name.to_owned()).or_insert_with(words);
            return;
        }
        let result = self.netlink.set_link_up(device.ifindex, up).await;
        self.note(name, result.as_ref().err());
    }

    /// Makes an interface, unless it is there, and gives it what belongs to it. One that is there without was made
    /// by a request whose answer was lost, or by a daemon that died at that.
    async fn make(&mut self, want: &Wanted<'_>) -> Result<(), NetlinkError> {
        if !self.devices.contains_key(want.name) {
            self.netlink
                .add_macvlan(want.name, want.below, want.mac)
                .await?;
            let present = self.netlink.macvlans().await?;
            let Some(device) = present.into_iter().find(|d| d.name == want.name) else {
                return Ok(());
            };
            self.devices.insert(device.name.clone(), device);
        }
        for (family, settings) in [(Family::V4, &ABOVE_V4[..]), (Family::V6, &ABOVE_V6[..])] {
            for (key, value) in settings {
                set(family, want.name, key, *value);
            }
        }
        let alias = match want.needs_settings {
            true => self.change_settings(want.interface),
            false => DONE.to_owned(),
        };
        if let Some(device) = self.devices.get_mut(want.name) {
            // A daemon that comes after one that died learns from it what to put back.
            self.netlink.set_alias(device.ifindex, &alias).await?;
            device.alias = alias;
        }
        Ok(())
    }

    /// Changes what the interface below must not do. Returns what was before, as an alias.
    fn change_settings(&mut self, interface: &str) -> String {
        let before = self.settings.entry(interface.to_owned()).or_default();
        for (key, least) in BELOW {
            let now = sysctl::read(Family::V4, interface, key).unwrap_or(least);
            if now < least {
                before.retain(|(other, _)| *other != key);
                before.push((key, now));
                set(Family::V4, interface, key, least);
            }
        }
        let list: Vec<String> = before
            .iter()
            .map(|(key, value)| format!(" {key}={value}"))
            .collect();
        format!("{DONE}{}", list.concat())
    }

    /// Learns from an interface's alias what settings were before.
    fn remember_settings(&mut self, device: &Macvlan, interfaces: &Interfaces) {
        let below = device.below.and_then(|index| interfaces.by_index(index));
        let (Some(below), Some(list)) = (below, device.alias.strip_prefix(DONE)) else {
            return;
        };
        let before = self.settings.entry(below.name.clone()).or_default();
        for (key, value) in list
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            let known = BELOW.iter().find(|(known, _)| *known == key);
            if let (Some((key, _)), Ok(value)) = (known, value.parse())
                && !before.iter().any(|(other, _)| other == key)
            {
                before.push((key, value));
            }
        }
    }

    /// Undoes the settings of interfaces below that have no macvlan any more.
    fn put_settings_back(&mut self, wanted: &[Wanted<'_>], keep: bool) {
        self.settings.retain(|interface, before| {
            if keep
                || wanted
                    .iter()
                    .any(|w| w.interface == interface && w.needs_settings)
            {
                return true;
            }
            for (key, value) in before {
                let ours = BELOW
                    .iter()
                    .find(|(known, _)| known == key)
                    .map(|(_, ours)| *ours);
                // What somebody has changed since is theirs.
                if sysctl::read(Family::V4, interface, key) == ours {
                    set(Family::V4, interface, key, *value);
                }
            }
            false
        });
    }
}

/// An interface that must be there.
struct Wanted<'i> {
    name: &'i str,
    /// The interface below, and its index.
    interface: &'i str,
    below: u32,
    mac: [u8; 6],
    /// ARP is IPv4's only.
    needs_settings: bool,
}

/// Those whose interface below is there.
fn wanted<'i>(instances: &'i [Instance], interfaces: &Interfaces) -> Vec<Wanted<'i>> {
    let of = |instance: &'i Instance| {
        Some(Wanted {
            name: instance.network.virtual_mac.as_deref()?,
            interface: &instance.interface,
            below: interfaces.by_name(&instance.interface)?.ifindex,
            mac: instance.virtual_mac_address(),
            needs_settings: instance.held().any(|prefix| prefix.address.is_ipv4()),
        })
    };
    instances.iter().filter_map(of).collect()
}

/// The first interface that an instance wants for its virtual MAC address and that is somebody
/// else's.
pub fn taken<'i>(instances: &'i [Instance], interfaces: &Interfaces) -> Option<&'i str> {
    let names = instances
        .iter()
        .filter_map(|i| i.network.virtual_mac.as_deref());
    names.into_iter().find(|name| {
        let found = interfaces.by_name(name).map(|interface| interface.place);
        found.is_some_and(|place| !place.is_macvlan || place.group != GROUP)
    })
}

fn is_furnished(device: &Macvlan) -> bool {
    device.alias.starts_with(DONE)
}

fn set(family: Family, interface: &str, key: &str, value: i32) {
    if let Err(error) = sysctl::write(family, interface, key, value) {
        tracing::error!(interface, key, value, %error, "cannot change a setting of an interface");
    }
}

fn tell(result: Result<(), NetlinkError>) {
    if let Err(error) = result {
        tracing::error!(
            error = super::with_sources(&error),
            "interface of a virtual MAC address"
        );
    }
}
