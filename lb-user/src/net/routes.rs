//! Tells which of some wanted routes the kernel has. A task with connections of its own: on routers
//! the kernel tells of many routes, and nobody else shall wait for them.
//!
//! Nothing is kept of the table. Whenever the kernel tells of a change that may matter it is read
//! again: when an interface goes down its IPv4 routes vanish without a word.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType},
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    asking::{self, Subscription, ask},
    netlink::NetlinkError,
};
use crate::model::{IpPrefix, TrackRoute};

/// Changes that come together are one.
const PAUSE: Duration = Duration::from_millis(10);
/// The table is read this often in any case ...
const POLL: Duration = Duration::from_secs(5);
/// ... unless reading it takes long: then at most this part of the time is spent with it.
const REST: u32 = 20;
/// How long the first reading is waited for.
const FIRST_READING: Duration = Duration::from_secs(2);

/// Each wanted route, and where it leads if it is there.
pub type Found = BTreeMap<TrackRoute, Option<String>>;

/// Follows wanted routes.
pub struct Routes {
    orders: mpsc::Sender<Order>,
}

struct Order {
    wanted: Vec<TrackRoute>,
    done: oneshot::Sender<()>,
}

impl Routes {
    /// Nothing is wanted yet.
    pub fn new() -> (Self, watch::Receiver<Found>) {
        let (orders, inbox) = mpsc::channel(1);
        let (found, receiver) = watch::channel(Found::new());
        tokio::spawn(run(inbox, found));
        (Self { orders }, receiver)
    }

    /// Makes these the wanted ones. When it returns, the receiver knows of all of them, unless the
    /// kernel is slow.
    pub async fn configure(&self, wanted: Vec<TrackRoute>) {
        let (done, finished) = oneshot::channel();
        if self.orders.send(Order { wanted, done }).await.is_ok() {
            let _ = timeout(FIRST_READING, finished).await;
        }
    }
}

async fn run(mut orders: mpsc::Receiver<Order>, found: watch::Sender<Found>) {
    let mut wanted: Vec<TrackRoute> = Vec::new();
    let mut connection: Option<(Handle, Subscription)> = None;
    let mut next = Instant::now();
    loop {
        let mut done = None;
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => {
                    wanted = order.wanted;
                    done = Some(order.done);
                }
                None => return,
            },
            () = change(&mut connection, &wanted) => sleep(PAUSE).await,
            () = sleep_until(next.into()), if !wanted.is_empty() => {}
        }
        if wanted.is_empty() {
            connection = None;
            found.send_replace(Found::new());
        } else {
            let began = Instant::now();
            match read(&mut connection, &wanted).await {
                Ok(now) => {
                    found.send_if_modified(|known| {
                        let changed = *known != now;
                        *known = now;
                        changed
                    });
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "cannot read the routes; those known stay");
                    connection = None;
                }
            }
            next = Instant::now() + POLL.max(began.elapsed() * REST);
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

/// Waits until the kernel tells of something that may matter.
async fn change(connection: &mut Option<(Handle, Subscription)>, wanted: &[TrackRoute]) {
    let Some((_, messages)) = connection else {
        return std::future::pending().await;
    };
    while let Some((message, _)) = messages.next().await {
        let matters = match message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => destination(&route).is_some_and(|(prefix, table)| {
                wanted
                    .iter()
                    .any(|w| (w.prefix, w.table) == (prefix, table))
            }),
            // Links, next hops, lost messages.
            _ => true,
        };
        if matters {
            return;
        }
    }
    // The connection has ended; the next reading makes a new one.
    *connection = None;
}

async fn read(
    connection: &mut Option<(Handle, Subscription)>,
    wanted: &[TrackRoute],
) -> Result<Found, NetlinkError> {
    let handle = match connection {
        Some((handle, _)) => handle.clone(),
        None => {
            let messages = Subscription::open(&[
                MulticastGroup::Link,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
                MulticastGroup::Nexthop,
            ])?;
            connection.insert((asking::connect()?, messages)).0.clone()
        }
    };
    let mut found: Found = wanted.iter().map(|route| (route.clone(), None)).collect();
    for is_v6 in [false, true] {
        if !wanted
            .iter()
            .any(|route| route.prefix.address.is_ipv6() == is_v6)
        {
            continue;
        }
        let query = if is_v6 {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        };
        let mut routes = Box::pin(handle.route().get(query).execute());
        while let Some(route) = ask("list routes", routes.try_next()).await? {
            for (wanted, place) in &mut found {
                if place.is_none() {
                    *place = leads_to(&route, wanted, index_of);
                }
            }
        }
    }
    Ok(found)
}

fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Destination and table.
fn destination(route: &RouteMessage) -> Option<(IpPrefix, u32)> {
    let mut address = None;
    let mut table = u32::from(route.header.table);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => address = Some(ip(destination)?),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let any = match route.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let prefix = IpPrefix {
        address: address.unwrap_or(any),
        length: route.header.destination_prefix_length,
    };
    Some((prefix, table))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// One way of a route: router, interface, whether it can be used.
struct Way {
    via: Option<IpAddr>,
    ifindex: u32,
    is_alive: bool,
}

fn ways(route: &RouteMessage) -> Vec<Way> {
    let mut ways = Vec::new();
    let dead = RouteFlags::Dead | RouteFlags::Linkdown;
    let mut single = Way {
        via: None,
        ifindex: 0,
        is_alive: !route.header.flags.intersects(dead),
    };
    let router = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => single.ifindex = *ifindex,
            RouteAttribute::MultiPath(hops) => {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                ways.extend(hops.iter().map(|hop| Way {
                    via: hop.attributes.iter().find_map(router),
                    ifindex: hop.interface_index,
                    is_alive: !hop.flags.intersects(dead),
                }));
            }
            other => single.via = router(other).or(single.via),
        }
    }
    if single.ifindex != 0 {
        ways.push(single);
    }
    ways
}

/// Where a route leads, if it is the wanted one and can be used.
fn leads_to(
    route: &RouteMessage,
    wanted: &TrackRoute,
    index_of: impl Fn(&str) -> Option<u32>,
) -> Option<String> {
    if route.header.kind != RouteType::Unicast
        || destination(route)? != (wanted.prefix, wanted.table)
    {
        return None;
    }
    let device = match &wanted.dev {
        Some(name) => Some(index_of(name)?),
        None => None,
    };
    let way = ways(route).into_iter().find(|way| {
        way.is_alive
            && (wanted.via.is_none() || way.via == wanted.via)
            && device.is_none_or(|device| way.ifindex == device)
    })?;
    Some(match way.via {
        Some(router) => format!("via {router}"),
        None => "connected".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{AddressFamily, route::RouteNextHop};

    use super::*;

    fn default_route(via: [u8; 4], ifindex: u32) -> RouteMessage {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(via.into())
            .output_interface(ifindex)
            .build();
        route.header.table = 254;
        route
    }

    fn wanted(prefix: &str, rest: &str) -> TrackRoute {
        let (address, length) = prefix.split_once('/').unwrap();
        let mut route = TrackRoute {
            prefix: IpPrefix {
                address: address.parse().unwrap(),
                length: length.parse().unwrap(),
            },
            via: None,
            dev: None,
            table: TrackRoute::MAIN,
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.chunks(2) {
            match pair[0] {
                "via" => route.via = Some(pair[1].parse().unwrap()),
                "dev" => route.dev = Some(pair[1].to_owned()),
                _ => route.table = pair[1].parse().unwrap(),
            }
        }
        route
    }

    fn is_there(route: &RouteMessage, wanted: &TrackRoute) -> bool {
        let index = |name: &str| name.strip_prefix("eth").and_then(|n| n.parse().ok());
        leads_to(route, wanted, index).is_some()
    }

    #[test]
    fn a_route_is_the_wanted_one() {
        let route = default_route([10, 1, 15, 1], 7);
        let rows = [
            ("0.0.0.0/0", "", true),
            ("0.0.0.0/0", "via 10.1.15.1", true),
            ("0.0.0.0/0", "via 10.1.15.2", false),
            ("0.0.0.0/0", "dev eth7", true),
            ("0.0.0.0/0", "via 10.1.15.1 dev eth7", true),
            ("0.0.0.0/0", "via 10.1.15.1 dev eth8", false),
            ("0.0.0.0/0", "dev gone", false),
            ("0.0.0.0/0", "table 100", false),
            ("0.0.0.0/1", "", false),
            ("::/0", "", false),
            ("10.0.0.0/8", "", false),
        ];
        for (prefix, rest, expected) in rows {
            assert_eq!(
                is_there(&route, &wanted(prefix, rest)),
                expected,
                "{prefix} {rest}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_not_there() {
        let any = wanted("0.0.0.0/0", "");
        for flag in [RouteFlags::Dead, RouteFlags::Linkdown] {
            let mut route = default_route([10, 1, 15, 1], 7);
            route.header.flags = flag;
            assert!(!is_there(&route, &any), "{flag:?}");
        }
        let mut route = default_route([10, 1, 15, 1], 7);
        route.header.kind = RouteType::BlackHole;
        assert!(!is_there(&route, &any));
    }

    #[test]
    fn tables_beyond_255_stand_in_an_attribute() {
        let mut route = default_route([10, 1, 15, 1], 7);
        route.header.table = 252;
        route.attributes.push(RouteAttribute::Table(1000));
        assert!(is_there(&route, &wanted("0.0.0.0/0", "table 1000")));
        assert!(!is_there(&route, &wanted("0.0.0.0/0", "table 252")));
    }

    #[test]
    fn one_way_of_several_is_enough() {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.kind = RouteType::Unicast;
        route.header.table = 254;
        let hop = |last, ifindex, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = ifindex;
            hop.flags = flags;
            let router = RouteAddress::Inet(Ipv4Addr::new(10, 1, 15, last));
            hop.attributes.push(RouteAttribute::Gateway(router));
            hop
        };
        let hops = vec![
            hop(1, 7, RouteNextHopFlags::Linkdown),
            hop(2, 8, RouteNextHopFlags::empty()),
        ];
        route.attributes.push(RouteAttribute::MultiPath(hops));
        assert!(is_there(&route, &wanted("0.0.0.0/0", "")));
        assert!(is_there(&route, &wanted("0.0.0.0/0", "via 10.1.15.2")));
        assert!(!is_there(&route, &wanted("0.0.0.0/0", "via 10.1.15.1")));
        assert!(!is_there(
            &route,
            &wanted("0.0.0.0/0", "via 10.1.15.2 dev eth7")
        ));
    }
}
