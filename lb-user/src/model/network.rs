//! What lbd puts in place in the host's network stack: addresses, routes, rules and the interface
//! of a virtual MAC address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use super::{Instance, IpPrefix, Prefix};

/// What an instance does to the host's network besides holding its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Interface of the virtual MAC address (RFC 9568 section 7.3), where the addresses lie then.
    pub virtual_mac: Option<String>,
    /// Whether the host's own stack takes packets to the addresses (RFC 9568's Accept_Mode). The
    /// owner's always does.
    pub accept: bool,
    /// Addresses that are more than an address on the instance's interface.
    pub options: Vec<(IpAddr, AddressOptions)>,
    /// Routes of a master, in file order.
    pub routes: Vec<Route>,
    /// Rules of a master, in file order.
    pub rules: Vec<Rule>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            virtual_mac: None,
            accept: true,
            options: Vec::new(),
            routes: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// What may be said of an address besides the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// Interface; that of the instance when absent.
    pub device: Option<String>,
    /// Label, IPv4 only; up to 15 bytes.
    pub label: Option<String>,
    /// Broadcast address, IPv4 only.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid; everywhere when absent.
    pub scope: Option<Scope>,
    /// Without the route to its network that the kernel adds by itself.
    pub no_prefix_route: bool,
    /// Whether duplicates are looked for before an IPv6 address is used (RFC 4862 section 5.4).
    /// A virtual address must work at once, and its duplicate is a router that has just left.
    pub look_for_duplicates: bool,
    /// Whether the host's own connections may come from an IPv6 address.
    pub preferred: bool,
}

/// How far an address or a route is valid (rtnetlink(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On its link.
    Link,
    /// On this host.
    Host,
}

/// Something that is put in place and taken away as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An address on an interface.
    Address(PlacedAddress),
    /// A route.
    Route(Route),
    /// A rule of policy routing.
    Rule(Rule),
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedAddress {
    /// The address.
    pub prefix: Prefix,
    /// The interface.
    pub device: String,
    /// The rest.
    pub options: AddressOptions,
}

/// What becomes of packets that match a route or a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A route sends them on; a rule looks into its table.
    Forward,
    /// Dropped in silence.
    Blackhole,
    /// Refused as unreachable.
    Unreachable,
    /// Refused as forbidden.
    Prohibit,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpPrefix,
    /// What becomes of the packets.
    pub action: Action,
    /// The router.
    pub via: Option<IpAddr>,
    /// The interface.
    pub device: Option<String>,
    /// Source address of the host's own packets.
    pub source: Option<IpAddr>,
    /// Lower is preferred. IPv6 has no metric 0: the kernel makes 1024 of it.
    pub metric: u32,
    /// Table; 254 is the main one.
    pub table: u32,
    /// Scope, IPv4 only; as `ip route` chooses it when absent.
    pub scope: Option<Scope>,
    /// The router is taken to be on the link whatever the addresses say.
    pub onlink: bool,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
}

impl Route {
    /// What the kernel tells routes apart by: only one route of each key can be there.
    pub fn key(&self) -> RouteKey {
        RouteKey {
            to: self.to,
            metric: self.metric,
            table: self.table,
        }
    }
}

/// What the kernel tells routes apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// Where to.
    pub to: IpPrefix,
    /// Metric.
    pub metric: u32,
    /// Table.
    pub table: u32,
}

/// A rule of policy routing (`ip rule`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is for IPv6.
    pub is_v6: bool,
    /// Rules of lower numbers are asked first; 1 to 4,294,967,295.
    pub priority: u32,
    /// Only packets from there.
    pub from: Option<IpPrefix>,
    /// Only packets to there.
    pub to: Option<IpPrefix>,
    /// Only packets that come in by this interface.
    pub input: Option<String>,
    /// Only packets of sockets bound to this interface.
    pub output: Option<String>,
    /// Only packets with this mark, under this mask.
    pub mark: Option<(u32, u32)>,
    /// Turns the conditions around.
    pub invert: bool,
    /// What becomes of the packets.
    pub action: Action,
    /// Table that is looked into; 0 with an action other than [`Action::Forward`].
    pub table: u32,
}

impl Instance {
    /// The interface that holds its addresses unless they name another.
    pub fn device(&self) -> &str {
        self.network
            .virtual_mac
            .as_deref()
            .unwrap_or(&self.interface)
    }

    /// The virtual MAC address (RFC 9568 section 7.3), used or not.
    pub fn virtual_mac_address(&self) -> [u8; 6] {
        let family = if self.is_v6() { 2 } else { 1 };
        [0, 0, 0x5e, 0, family, self.vrid]
    }

    /// One of its addresses with the interface that it lies on.
    pub fn placed(&self, prefix: Prefix) -> PlacedAddress {
        let of = |(address, _): &&(IpAddr, AddressOptions)| *address == prefix.address;
        let options = self.network.options.iter().find(of);
        let options = options.map_or_else(AddressOptions::default, |(_, options)| options.clone());
        let device = options.device.as_deref().unwrap_or(self.device());
        PlacedAddress {
            prefix,
            device: device.to_owned(),
            options,
        }
    }

    /// Everything that a master puts in place, in that order.
    pub fn items(&self) -> Vec<Item> {
        let addresses = self
            .held()
            .map(|prefix| Item::Address(self.placed(*prefix)));
        let routes = self.network.routes.iter().cloned().map(Item::Route);
        let rules = self.network.rules.iter().cloned().map(Item::Rule);
        addresses.chain(routes).chain(rules).collect()
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Address(address) => {
                write!(f, "address {} on {}", address.prefix, address.device)
            }
            Item::Route(route) => write!(f, "route {route}"),
            Item::Rule(rule) => write!(f, "rule {rule}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Forward => "forward",
            Action::Blackhole => "blackhole",
            Action::Unreachable => "unreachable",
            Action::Prohibit => "prohibit",
        })
    }
}

/// As `ip route` shows it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.action != Action::Forward {
            write!(f, "{} ", self.action)?;
        }
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(device) = &self.device {
            write!(f, " dev {device}")?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        write!(f, " metric {}", self.metric)
    }
}

/// As `ip rule` shows it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.invert {
            f.write_str(" not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        for (word, name) in [("iif", &self.input), ("oif", &self.output)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        match self.action {
            Action::Forward => write!(f, " lookup {}", self.table),
            other => write!(f, " {other}"),
        }
    }
}

/// The table that is asked without rules (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;
