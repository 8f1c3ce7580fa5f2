//! What is asked of the kernel to put things in place and to take them away.

use std::{fmt, net::IpAddr};

use tokio::task::JoinSet;

use crate::{
    model::{
        Prefix,
        network::{Item, PlacedAddress, RouteKey, Rule},
    },
    net::{
        interfaces::Interfaces,
        netlink::{Netlink, NetlinkError},
        placing::Placing,
    },
};

/// What the kernel tells things apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// An address, with its interface's name.
    Address(String, Prefix),
    /// A route.
    Route(RouteKey),
    /// A rule.
    Rule(Rule),
}

impl Key {
    /// That of an item.
    pub fn of(item: &Item) -> Self {
        match item {
            Item::Address(address) => Key::Address(address.device.clone(), address.prefix),
            Item::Route(route) => Key::Route(route.key()),
            Item::Rule(rule) => Key::Rule(rule.clone()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(device, prefix) => write!(f, "address {prefix} on {device}"),
            Key::Route(key) => write!(
                f,
                "route {} table {} metric {}",
                key.to, key.table, key.metric
            ),
            Key::Rule(rule) => write!(f, "rule {rule}"),
        }
    }
}

/// Says whether the kernel has answered since.
pub type Answered = Box<dyn FnMut() -> bool>;

/// The kernel, or what a test has instead.
pub trait Kernel {
    /// Waits for an answer, without keeping anybody waiting.
    fn listen(&self) -> Answered;

    /// Adds something unless it is there; `None` when its interface is missing.
    async fn add(
        &self,
        item: &Item,
        interfaces: &Interfaces,
    ) -> Option<Result<Placing, NetlinkError>>;

    /// Makes something of ours, which a daemon before this one left, be as wanted now: a route of the same key
    /// may lead somewhere else.
    async fn renew(&self, item: &Item, interfaces: &Interfaces) -> Result<(), NetlinkError>;

    /// Removes something of ours; that it is gone already is fine.
    async fn remove(&self, key: &Key, interfaces: &Interfaces) -> Result<(), NetlinkError>;

    /// Whether something that is there bears our mark.
    async fn is_marked(&self, key: &Key, interfaces: &Interfaces) -> Result<bool, NetlinkError>;
}

impl Kernel for Netlink {
    fn listen(&self) -> Answered {
        let netlink = self.clone();
        // Requests are carried out one after the other: when this one is answered, those before it are over.
        let mut answer = JoinSet::new();
        answer.spawn(async move { netlink.is_there().await });
        Box::new(move || answer.try_join_next().is_some())
    }

    async fn add(
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
                self.place_address(ifindex, address.prefix, &options).await
            }
            Item::Route(route) => {
                let ifindex = match &route.device {
                    Some(name) => Some(index(name)?),
                    None => None,
                };
                self.place_route(route, ifindex, false).await
            }
            Item::Rule(rule) => self.place_rule(rule).await,
        })
    }

    async fn renew(&self, item: &Item, interfaces: &Interfaces) -> Result<(), NetlinkError> {
        let Item::Route(route) = item else {
            return Ok(());
        };
        let device = route.device.as_ref();
        let device = device.and_then(|name| interfaces.by_name(name));
        let ifindex = device.map(|device| device.ifindex);
        self.place_route(route, ifindex, true).await.map(|_| ())
    }

    async fn remove(&self, key: &Key, interfaces: &Interfaces) -> Result<(), NetlinkError> {
        match key {
            Key::Address(device, prefix) => match interfaces.by_name(device) {
                Some(device) => self.delete_address(device.ifindex, *prefix).await,
                // Gone with its interface.
                None => Ok(()),
            },
            Key::Route(key) => self.delete_route(key).await,
            Key::Rule(rule) => self.delete_rule(rule).await,
        }
    }

    async fn is_marked(&self, key: &Key, interfaces: &Interfaces) -> Result<bool, NetlinkError> {
        let left = match key {
            Key::Address(device, prefix) => {
                let Some(device) = interfaces.by_name(device) else {
                    return Ok(false);
                };
                let marked = self.marked_addresses().await?;
                return Ok(marked.contains(&(device.ifindex, *prefix)));
            }
            Key::Route(_) | Key::Rule(_) => self.leftovers().await?,
        };
        Ok(match key {
            Key::Route(key) => left.routes.contains(key),
            Key::Rule(rule) => left.rules.contains(rule),
            Key::Address(..) => false,
        })
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
