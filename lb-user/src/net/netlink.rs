//! Route netlink: interfaces, addresses, neighbours and routes, read, followed and changed.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;
use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::{
    asking::{self, Subscription, ask, list},
    interfaces::{NetEvent, Place},
    placing::{marked_route, marked_rule},
};
use crate::model::Prefix;

/// Why the kernel did not do what was asked.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A request failed.
    #[error("cannot {what}")]
    Request {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The answer was lost.
    #[error("cannot {what}: the kernel did not answer within {}", humantime::format_duration(*after))]
    NoAnswer {
        /// What was asked.
        what: String,
        /// How long the answer was waited for.
        after: Duration,
    },
}

impl NetlinkError {
    /// Whether the kernel kept the daemon waiting in vain. Whatever else is asked of it would do so too.
    pub fn is_no_answer(&self) -> bool {
        matches!(self, NetlinkError::NoAnswer { .. })
    }
}

/// Where the kernel would send a packet for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The address is this host's.
    Local,
    /// By an interface.
    Out(Exit),
    /// Nowhere.
    Nowhere,
}

/// How packets for an address leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Interface.
    pub ifindex: u32,
    /// The router, if there is one.
    pub gateway: Option<IpAddr>,
    /// The address they come from.
    pub source: Option<IpAddr>,
    /// A smaller size than the interface's that the route demands, in bytes.
    pub mtu: Option<u32>,
}

/// A connection to the kernel's route netlink, for requests only.
#[derive(Clone)]
pub struct Netlink {
    pub(super) handle: Handle,
}

/// Unsolicited messages, as they come.
pub struct Events {
    messages: Subscription,
}

impl Netlink {
    /// Connects and subscribes to links, addresses and neighbours.
    pub fn connect() -> Result<(Self, Events), NetlinkError> {
        let messages = Subscription::open(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Neigh,
        ])?;
        let handle = asking::connect()?;
        Ok((Self { handle }, Events { messages }))
    }

    /// Everything there is now, as the events that would have told of it.
    pub async fn dump(&self) -> Result<Vec<NetEvent>, NetlinkError> {
        let links = self.handle.link().get().execute();
        let mut events = list("list interfaces", links, link).await?;
        let addresses = self.handle.address().get().execute();
        events.extend(list("list addresses", addresses, |a| address(a, true)).await?);
        let neighbours = self.handle.neighbours().get().execute();
        events.extend(list("list neighbours", neighbours, |n| neighbour(n, true)).await?);
        Ok(events)
    }

    /// Waits until the kernel answers, however long that takes.
    pub async fn is_there(&self) {
        let rules = self.handle.rule().get(IpVersion::V4).execute();
        let _ = Box::pin(rules).try_next().await;
    }

    /// Makes the kernel resolve a neighbour, or verify an entry that has grown stale. Not for one that is fixed: from
    /// Linux 5.17 on it would be fixed no more, and its MAC address forgotten (`__neigh_update` with
    /// NEIGH_UPDATE_F_USE in net/core/neighbour.c).
    pub async fn use_neighbour(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let what = format!("resolve neighbour {address}");
        ask(&what, request.execute()).await
    }

    /// Where the kernel would send a packet for `address`. An error is that it did not say.
    pub async fn path_to(&self, address: IpAddr) -> Result<Path, NetlinkError> {
        let query = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        let mut answers = Box::pin(self.handle.route().get(query).execute());
        match ask("look up a route", answers.try_next()).await {
            Ok(Some(route)) => Ok(path(&route)),
            Err(error) if error.is_no_answer() => Err(error),
            // "Network is unreachable" is an error of the kernel's.
            Ok(None) | Err(_) => Ok(Path::Nowhere),
        }
    }
}

impl Events {
    /// The next event; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<NetEvent> {
        loop {
            let (message, _) = self.messages.next().await?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    if let Some(event) = event(&inner) {
                        return Some(event);
                    }
                }
                NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => {
                    return Some(NetEvent::Lost);
                }
                _ => {}
            }
        }
    }
}

/// Tells `removals` whenever a route or a rule of ours was removed, or may have been.
pub fn watch_removals(removals: Sender<()>) -> Result<(), NetlinkError> {
    let mut messages = Subscription::open(&[
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])?;
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let is_ours = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => {
                    marked_route(&route).is_some()
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule)) => {
                    marked_rule(&rule).is_some()
                }
                NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => true,
                _ => false,
            };
            // One that waits already says it all.
            if is_ours && matches!(removals.try_send(()), Err(TrySendError::Closed(()))) {
                return;
            }
        }
    });
    Ok(())
}

fn path(route: &RouteMessage) -> Path {
    match route.header.kind {
        RouteType::Local => return Path::Local,
        RouteType::Unicast => {}
        _ => return Path::Nowhere,
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let mut exit = Exit {
        ifindex: 0,
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => exit.gateway = ip(address),
            // A router of the other version of IP: its MAC address is not this address's.
            RouteAttribute::Via(_) => return Path::Nowhere,
            RouteAttribute::Oif(ifindex) => exit.ifindex = *ifindex,
            RouteAttribute::PrefSource(address) => exit.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        exit.mtu = Some(*mtu);
                    }
                }
            }
            _ => {}
        }
    }
    match exit.ifindex {
        0 => Path::Nowhere,
        _ => Path::Out(exit),
    }
}

/// What a message of the kernel tells, if it matters here.
pub fn event(message: &RouteNetlinkMessage) -> Option<NetEvent> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(message),
        RouteNetlinkMessage::DelLink(message) => {
            // A bridge port that leaves its bridge is also told of as a deleted link.
            (message.header.interface_family == AddressFamily::Unspec).then_some(
                NetEvent::LinkGone {
                    ifindex: message.header.index,
                },
            )
        }
        RouteNetlinkMessage::NewAddress(message) => address(message, true),
        RouteNetlinkMessage::DelAddress(message) => address(message, false),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, true),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(message, false),
        _ => None,
    }
}

fn link(message: &LinkMessage) -> Option<NetEvent> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut name = None;
    let mut mac = [0; 6];
    let mut place = Place::default();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).unwrap_or_default();
            }
            LinkAttribute::Link(below) => place.below = Some(*below),
            LinkAttribute::Controller(master) => place.master = Some(*master),
            LinkAttribute::Mtu(mtu) => place.mtu = *mtu,
            LinkAttribute::Group(group) => place.group = *group,
            LinkAttribute::LinkInfo(infos) => {
                place.vlan = infos.iter().find_map(vlan);
                let is = |kind| infos.contains(&LinkInfo::Kind(kind));
                place.is_bond = is(InfoKind::Bond) || is(InfoKind::Other("team".to_owned()));
                place.is_macvlan = infos.contains(&LinkInfo::Kind(InfoKind::MacVlan));
            }
            _ => {}
        }
    }
    let up = message
        .header
        .flags
        .contains(LinkFlags::Up | LinkFlags::Running);
    Some(NetEvent::Link {
        ifindex: message.header.index,
        name: name?,
        up,
        mac,
        place,
    })
}

fn vlan(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(data)) = info else {
        return None;
    };
    data.iter().find_map(|item| match item {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn address(message: &AddressMessage, present: bool) -> Option<NetEvent> {
    // On point-to-point links `Address` is the peer's; `Local` is ours wherever it is given.
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let local = of(|a| {
        if let AddressAttribute::Local(ip) = a {
            Some(*ip)
        } else {
            None
        }
    });
    let any = of(|a| {
        if let AddressAttribute::Address(ip) = a {
            Some(*ip)
        } else {
            None
        }
    });
    let address = local.or(any)?;
    // Not usable yet, or never: when its turn comes the kernel tells of it again.
    let flags = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if present && message.header.flags.intersects(flags) {
        return None;
    }
    let prefix = Prefix {
        address,
        length: message.header.prefix_len,
    };
    Some(NetEvent::Address {
        ifindex: message.header.index,
        prefix,
        present,
    })
}

fn neighbour(message: &NeighbourMessage, present: bool) -> Option<NetEvent> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    let valid = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => present,
        // Incomplete, failed, none, and whatever a later kernel adds.
        _ => false,
    };
    let fixed = matches!(
        message.header.state,
        NeighbourState::Permanent | NeighbourState::Noarp
    );
    let mac = mac.filter(|_| valid);
    Some(NetEvent::Neighbour {
        ifindex: message.header.ifindex,
        address: address?,
        mac,
        fixed: valid && fixed,
    })
}
