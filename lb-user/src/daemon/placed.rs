//! What lies in the host's network stack because of us, and for whom: addresses, routes and rules of
//! masters, and of the host. What was there before, even if it is the same, stays as it was.

use std::{collections::BTreeMap, net::IpAddr};

use super::succession::Succession;
use crate::{
    model::{
        Prefix,
        network::{Item, PlacedAddress},
    },
    net::{
        interfaces::Interfaces,
        netlink::{Netlink, NetlinkError},
        placing::{Leftovers, Placing},
    },
};

/// For whom something is in place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Whoever is master: `[[static_address]]` and the like.
    Host,
    /// An instance that is master.
    Instance(String),
    /// Nobody any more: what is about to be taken away.
    Former,
}

/// How something that an owner wants lies in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Because of us: it is taken away again.
    Ours,
    /// It was there already: it stays.
    Theirs,
    /// Not there: its interface is missing, or the kernel refused.
    Missing,
}

#[derive(Clone, Debug)]
struct Entry {
    item: Item,
    status: Status,
    /// The kernel refused it at the last attempt, which is told once.
    refused: bool,
}

/// Everything that is in place.
pub struct Placed {
    netlink: Netlink,
    owners: BTreeMap<Owner, Vec<Entry>>,
}

impl Placed {
    /// Nothing yet.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            owners: BTreeMap::new(),
        }
    }

    /// Follows instances that are called otherwise now.
    pub fn rename(&mut self, names: &Succession) {
        let before = std::mem::take(&mut self.owners).into_iter();
        let renamed = before.map(|(owner, entries)| match owner {
            Owner::Instance(name) => (Owner::Instance(names.rename(name)), entries),
            Owner::Host | Owner::Former => (owner, entries),
        });
        self.owners = renamed.collect();
    }

    /// Puts in place what owners want from now on, in this order, and then takes away what they do not
    /// want any more: what one gives to another is there all the time.
    pub async fn put(&mut self, wanted: Vec<(Owner, Vec<Item>)>, interfaces: &Interfaces) {
        let mut former = Vec::new();
        for (owner, items) in &wanted {
            let before = self.owners.remove(owner).unwrap_or_default();
            let (stay, go): (Vec<_>, Vec<_>) = before
                .into_iter()
                .partition(|entry| items.contains(&entry.item));
            self.owners.insert(owner.clone(), stay);
            former.extend(go);
        }
        // The kernel has one route of a key, and one IPv6 address of any length: the old one first.
        let new = wanted.iter().flat_map(|(_, items)| items);
        let (replaced, former): (Vec<_>, Vec<_>) = former
            .into_iter()
            .partition(|old| new.clone().any(|item| excludes(&old.item, item)));
        self.take_all_away(replaced, interfaces).await;
        self.owners.insert(Owner::Former, former);
        for (owner, items) in wanted {
            let mut before = self.owners.remove(&owner).unwrap_or_default();
            let mut entries = Vec::with_capacity(items.len());
            for item in items {
                let known = before.iter().position(|old| old.item == item);
                let mut entry = known.map_or_else(
                    || Entry {
                        item,
                        status: Status::Missing,
                        refused: false,
                    },
                    |at| before.remove(at),
                );
                if entry.status == Status::Missing {
                    self.place(&mut entry, interfaces).await;
                }
                entries.push(entry);
            }
            if !entries.is_empty() {
                self.owners.insert(owner, entries);
            }
        }
        self.take(&Owner::Former, interfaces).await;
    }

    /// Takes away what an owner had, in the reverse order, except what another has by now.
    pub async fn take(&mut self, owner: &Owner, interfaces: &Interfaces) {
        if let Some(entries) = self.owners.remove(owner) {
            self.take_all_away(entries, interfaces).await;
        }
    }

    /// Takes over what is in place already because of the daemon before this one.
    pub fn adopt(&mut self, owner: &Owner, items: Vec<Item>) {
        let entries = items.into_iter().map(|item| Entry {
            item,
            status: Status::Ours,
            refused: false,
        });
        self.owners.insert(owner.clone(), entries.collect());
    }

    /// Puts back what somebody else has removed, and what could not be put in place before. With
    /// `only`, looks at addresses of this kind and no others.
    pub async fn restore(&mut self, only: Option<&PlacedAddress>, interfaces: &Interfaces) {
        let mut owners = std::mem::take(&mut self.owners);
        for entry in owners.values_mut().flatten() {
            let concerns = |only: &PlacedAddress| match &entry.item {
                Item::Address(a) => (a.prefix, &a.device) == (only.prefix, &only.device),
                Item::Route(_) | Item::Rule(_) => false,
            };
            if !only.is_none_or(concerns) {
                continue;
            }
            match self.try_to_place(&entry.item, interfaces).await {
                Some(Ok(Placing::Done)) => {
                    if entry.status == Status::Ours {
                        let item = &entry.item;
                        tracing::warn!("{item} was removed by somebody else; it is put back");
                    }
                    entry.status = Status::Ours;
                    entry.refused = false;
                }
                Some(Ok(Placing::Present)) => entry.refused = false,
                Some(Err(error)) => {
                    if !entry.refused {
                        tell_refusal(&error);
                    }
                    entry.refused = true;
                }
                None => {}
            }
        }
        self.owners = owners;
    }

    /// What is wanted and not there, in words.
    pub fn missing(&self) -> Vec<String> {
        let entries = self.owners.values().flatten();
        entries
            .filter(|entry| entry.refused || entry.status == Status::Missing)
            .map(|entry| entry.item.to_string())
            .collect()
    }

    /// Removes what an earlier daemon left, unless somebody wants it. What is wanted is ours from
    /// now on.
    pub async fn clear(&mut self, left: Leftovers, wanted: &[Item], interfaces: &Interfaces) {
        for rule in left.rules {
            if !wanted.contains(&Item::Rule(rule.clone())) {
                tracing::warn!("removing rule {rule}, left from before");
                tell(self.netlink.delete_rule(&rule).await);
            }
        }
        for key in left.routes {
            let is_wanted = |item: &Item| matches!(item, Item::Route(route) if route.key() == key);
            if !wanted.iter().any(is_wanted) {
                tracing::warn!(to = %key.to, table = key.table, "removing a route left from before");
                tell(self.netlink.delete_route(&key).await);
            }
        }
        for (ifindex, prefix) in left.addresses {
            let Some(interface) = interfaces.by_index(ifindex) else {
                continue;
            };
            let is_wanted = |item: &Item| matches!(item, Item::Address(a) if a.prefix == prefix && a.device == interface.name);
            if !wanted.iter().any(is_wanted) {
                tracing::warn!(address = %prefix, interface = interface.name, "removing an address left from before");
                tell(self.netlink.delete_address(ifindex, prefix).await);
            }
        }
    }

    async fn take_all_away(&self, entries: Vec<Entry>, interfaces: &Interfaces) {
        for entry in entries.into_iter().rev() {
            if entry.status == Status::Ours {
                self.take_away(&entry.item, interfaces).await;
            }
        }
    }

    /// Removes something of ours that nobody has any more.
    async fn take_away(&self, item: &Item, interfaces: &Interfaces) {
        let mut others = self.owners.values().flatten();
        if !others.any(|other| is_same(&other.item, item)) {
            tell(self.remove(item, interfaces).await);
        }
    }

    async fn remove(&self, item: &Item, interfaces: &Interfaces) -> Result<(), NetlinkError> {
        match item {
            Item::Address(address) => match interfaces.by_name(&address.device) {
                Some(i) => self.netlink.delete_address(i.ifindex, address.prefix).await,
                // Gone with its interface.
                None => Ok(()),
            },
            Item::Route(route) => self.netlink.delete_route(&route.key()).await,
            Item::Rule(rule) => self.netlink.delete_rule(rule).await,
        }
    }

    async fn place(&self, entry: &mut Entry, interfaces: &Interfaces) {
        let item = &entry.item;
        let result = self.try_to_place(item, interfaces).await;
        entry.refused = matches!(result, Some(Err(_)));
        entry.status = match result {
            None => Status::Missing,
            Some(Err(error)) => {
                tell_refusal(&error);
                Status::Missing
            }
            Some(Ok(Placing::Done)) => Status::Ours,
            Some(Ok(Placing::Present)) if self.is_ours(item, interfaces).await => {
                self.renew(item, interfaces).await;
                Status::Ours
            }
            Some(Ok(Placing::Present)) => {
                tracing::warn!(
                    "{item} was there before, or something that excludes it; it stays as it is"
                );
                Status::Theirs
            }
        };
    }

    /// One of ours that a daemon before this one left may lead somewhere else.
    async fn renew(&self, item: &Item, interfaces: &Interfaces) {
        if let Item::Route(route) = item {
            let device = route
                .device
                .as_ref()
                .and_then(|name| interfaces.by_name(name));
            let ifindex = device.map(|device| device.ifindex);
            tell(
                self.netlink
                    .place_route(route, ifindex, true)
                    .await
                    .map(|_| ()),
            );
        }
    }

    /// `None` when its interface is missing.
    async fn try_to_place(
        &self,
        item: &Item,
        interfaces: &Interfaces,
    ) -> Option<Result<Placing, NetlinkError>> {
        let index = |name: &String| interfaces.by_name(name).map(|i| i.ifindex);
        Some(match item {
            Item::Address(address) => {
                let ifindex = index(&address.device)?;
                let mut options = address.options.clone();
                options.no_prefix_route |= has_its_network_below(address, interfaces);
                self.netlink
                    .place_address(ifindex, address.prefix, &options)
                    .await
            }
            Item::Route(route) => {
                let ifindex = match &route.device {
                    Some(name) => Some(index(name)?),
                    None => None,
                };
                self.netlink.place_route(route, ifindex, false).await
            }
            Item::Rule(rule) => self.netlink.place_rule(rule).await,
        })
    }

    /// Whether something that is in the kernel is there because of us: another owner has it, or it
    /// bears our mark.
    async fn is_ours(&self, item: &Item, interfaces: &Interfaces) -> bool {
        let same = |entry: &&Entry| is_same(&entry.item, item) && entry.status != Status::Missing;
        if let Some(other) = self.owners.values().flatten().find(same) {
            return other.status == Status::Ours;
        }
        match item {
            Item::Address(address) => match interfaces.by_name(&address.device) {
                Some(i) => self.netlink.is_our_address(i.ifindex, address.prefix).await,
                None => false,
            },
            Item::Route(_) | Item::Rule(_) => {
                let left = self.netlink.leftovers().await.unwrap_or_default();
                match item {
                    Item::Route(route) => left.routes.contains(&route.key()),
                    Item::Rule(rule) => left.rules.contains(rule),
                    Item::Address(_) => false,
                }
            }
        }
    }
}

/// Whether two are one and the same for the kernel.
fn is_same(a: &Item, b: &Item) -> bool {
    match (a, b) {
        (Item::Address(a), Item::Address(b)) => (a.prefix, &a.device) == (b.prefix, &b.device),
        (Item::Route(a), Item::Route(b)) => a.key() == b.key(),
        (Item::Rule(a), Item::Rule(b)) => a == b,
        _ => false,
    }
}

/// Whether the kernel can have only one of two that differ.
fn excludes(old: &Item, new: &Item) -> bool {
    if old == new {
        return false;
    }
    match (old, new) {
        (Item::Address(a), Item::Address(b)) if a.prefix.address.is_ipv6() => {
            (a.prefix.address, &a.device) == (b.prefix.address, &b.device)
        }
        _ => is_same(old, new),
    }
}

/// Whether an address on a macvlan is of a network that the interface below is on. Its own route to
/// that network would compete with the one of the interface below, and win after a link flap.
fn has_its_network_below(address: &PlacedAddress, interfaces: &Interfaces) -> bool {
    let place = interfaces.by_name(&address.device).map(|i| i.place);
    let below = place
        .filter(|place| place.is_macvlan)
        .and_then(|place| place.below);
    let below = below.and_then(|index| interfaces.by_index(index));
    let network = address.prefix.network();
    let is_network = |other: &Prefix| other.network() == network;
    // Answers to link-local hosts leave where the question came in, and need a route there.
    let is_link_local = match address.prefix.address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !is_link_local && below.is_some_and(|below| below.addresses.iter().any(is_network))
}

fn tell_refusal(error: &NetlinkError) {
    tracing::error!(
        error = super::with_sources(error),
        "cannot put something in place; trying again"
    );
}

fn tell(result: Result<(), NetlinkError>) {
    if let Err(error) = result {
        tracing::error!(
            error = super::with_sources(&error),
            "cannot take something away"
        );
    }
}
