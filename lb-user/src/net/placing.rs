//! Puts addresses, routes and rules into the kernel, marked as ours, and finds those that an earlier
//! daemon left. Nothing without the mark is ever changed or removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope, CacheInfo,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use rtnetlink::IpVersion;

use super::{
    asking::{answer, gone, list, refused},
    netlink::{Netlink, NetlinkError},
};
use crate::model::{
    IpPrefix, Prefix,
    network::{Action, AddressOptions, Route, RouteKey, Rule, Scope},
};

/// The origin ("proto") of everything that lbd puts in place: VRRP's protocol number, which no other
/// routing daemon has in rtnetlink(7). Addresses have an origin since Linux 5.18.
pub const MARK: u8 = 112;

/// What became of something that was to be put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// It is there now and was not before.
    Done,
    /// It, or something that excludes it, was there already.
    Present,
}

/// What an earlier daemon left behind.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Addresses with the index of their interface.
    pub addresses: Vec<(u32, Prefix)>,
    /// Routes.
    pub routes: Vec<RouteKey>,
    /// Rules; those that lbd cannot have made are left out.
    pub rules: Vec<Rule>,
}

impl Netlink {
    /// Adds an address, unless it is there already.
    pub async fn place_address(
        &self,
        ifindex: u32,
        prefix: Prefix,
        options: &AddressOptions,
    ) -> Result<Placing, NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(ifindex, prefix.address, prefix.length);
        dress(request.message_mut(), prefix, options);
        placed(request.execute(), &format!("add address {prefix}")).await
    }

    /// Removes an address; that it is not there, or its interface is gone, is fine.
    pub async fn delete_address(&self, ifindex: u32, prefix: Prefix) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(ifindex, prefix.address, prefix.length);
        let message = request.message_mut().clone();
        let request = self.handle.address().del(message).execute();
        gone(&format!("remove address {prefix}"), request).await
    }

    /// Addresses that are there because of us, with the index of their interface.
    pub async fn marked_addresses(&self) -> Result<Vec<(u32, Prefix)>, NetlinkError> {
        let all = self.handle.address().get().execute();
        list("list addresses", all, marked_address).await
    }

    /// Adds a route, unless one of its key is there already. `replace` takes the place of one of
    /// ours.
    pub async fn place_route(
        &self,
        route: &Route,
        ifindex: Option<u32>,
        replace: bool,
    ) -> Result<Placing, NetlinkError> {
        let request = self.handle.route().add(route_message(route, ifindex));
        let request = if replace { request.replace() } else { request };
        placed(request.execute(), &format!("add route {route}")).await
    }

    /// Removes a route of ours.
    pub async fn delete_route(&self, key: &RouteKey) -> Result<(), NetlinkError> {
        let message = key_message(key);
        let request = self.handle.route().del(message).execute();
        gone(&format!("remove route {}", key.to), request).await
    }

    /// Adds a rule, unless it is there already.
    pub async fn place_rule(&self, rule: &Rule) -> Result<Placing, NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        placed(request.execute(), &format!("add rule {rule}")).await
    }

    /// Removes a rule of ours.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule_message(rule)).execute();
        gone(&format!("remove rule {rule}"), request).await
    }

    /// Everything with our mark.
    pub async fn leftovers(&self) -> Result<Leftovers, NetlinkError> {
        let mut left = Leftovers {
            addresses: self.marked_addresses().await?,
            ..Leftovers::default()
        };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let all = self.handle.route().get(query).execute();
            let ours = list("list routes", all, marked_route).await?;
            left.routes.extend(ours);
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let all = self.handle.rule().get(version).execute();
            left.rules
                .extend(list("list rules", all, marked_rule).await?);
        }
        Ok(left)
    }
}

/// Whether the kernel remembers who put an address in place.
pub fn marks_addresses() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    (number(), number()) >= (Some(5), Some(18))
}

/// What a request to add led to.
async fn placed(
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
    what: &str,
) -> Result<Placing, NetlinkError> {
    match answer(what, request).await? {
        Ok(()) => Ok(Placing::Done),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().abs() == libc::EEXIST => {
            Ok(Placing::Present)
        }
        Err(source) => Err(refused(what, source)),
    }
}

/// Adds to an address message what the kernel shall know besides the address.
fn dress(message: &mut AddressMessage, prefix: Prefix, options: &AddressOptions) {
    let mut flags = AddressFlags::empty();
    let attributes = &mut message.attributes;
    match prefix.address {
        IpAddr::V6(_) => {
            if !options.look_for_duplicates {
                flags |= AddressFlags::Nodad;
            }
            if !options.preferred {
                // "Deprecated": the host's own connections do not come from it.
                let mut lifetimes = CacheInfo::default();
                lifetimes.ifa_preferred = 0;
                lifetimes.ifa_valid = u32::MAX;
                attributes.push(AddressAttribute::CacheInfo(lifetimes));
            }
        }
        IpAddr::V4(_) => {
            if let Some(label) = &options.label {
                attributes.push(AddressAttribute::Label(label.clone()));
            }
            if let Some(broadcast) = options.broadcast {
                attributes.retain(|a| !matches!(a, AddressAttribute::Broadcast(_)));
                attributes.push(AddressAttribute::Broadcast(broadcast));
            }
        }
    }
    if options.no_prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    message.header.flags |= AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
    if !flags.is_empty() {
        attributes.push(AddressAttribute::Flags(flags));
    }
    attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(MARK)));
    message.header.scope = match options.scope {
        None | Some(Scope::Global) => AddressScope::Universe,
        Some(Scope::Link) => AddressScope::Link,
        Some(Scope::Host) => AddressScope::Host,
    };
}

fn marked_address(message: &AddressMessage) -> Option<(u32, Prefix)> {
    let mark = AddressAttribute::Protocol(AddressProtocol::Other(MARK));
    if !message.attributes.contains(&mark) {
        return None;
    }
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let prefix = Prefix {
        address: local.or(any)?,
        length: message.header.prefix_len,
    };
    Some((message.header.index, prefix))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// What names a route of ours.
fn key_message(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(key.to.address);
    header.destination_prefix_length = key.to.length;
    header.protocol = RouteProtocol::Other(MARK);
    // "Any", of a request to remove.
    header.scope = RouteScope::NoWhere;
    header.table = u8::try_from(key.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    if key.to.length > 0 {
        attributes.push(RouteAttribute::Destination(key.to.address.into()));
    }
    attributes.push(RouteAttribute::Table(key.table));
    attributes.push(RouteAttribute::Priority(key.metric));
    message
}

fn route_message(route: &Route, ifindex: Option<u32>) -> RouteMessage {
    let mut message = key_message(&route.key());
    let header = &mut message.header;
    header.kind = match route.action {
        Action::Forward => RouteType::Unicast,
        Action::Blackhole => RouteType::BlackHole,
        Action::Unreachable => RouteType::Unreachable,
        Action::Prohibit => RouteType::Prohibit,
    };
    // As `ip route add` chooses it.
    let leads_to_the_link = route.action == Action::Forward && route.via.is_none();
    header.scope = match route.scope {
        Some(Scope::Global) => RouteScope::Universe,
        Some(Scope::Link) => RouteScope::Link,
        Some(Scope::Host) => RouteScope::Host,
        None if leads_to_the_link && route.to.address.is_ipv4() => RouteScope::Link,
        None => RouteScope::Universe,
    };
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if let Some(via) = route.via {
        attributes.push(RouteAttribute::Gateway(via.into()));
    }
    if let Some(ifindex) = ifindex {
        attributes.push(RouteAttribute::Oif(ifindex));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

pub(super) fn marked_route(message: &RouteMessage) -> Option<RouteKey> {
    let header = &message.header;
    if header.protocol != RouteProtocol::Other(MARK) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let everything: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut key = RouteKey {
        to: IpPrefix {
            address: everything,
            length: header.destination_prefix_length,
        },
        metric: 0,
        table: u32::from(header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => key.to.address = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => key.to.address = (*v6).into(),
            RouteAttribute::Priority(metric) => key.metric = *metric,
            RouteAttribute::Table(table) => key.table = *table,
            _ => {}
        }
    }
    Some(key)
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = match rule.is_v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    };
    header.action = match rule.action {
        Action::Forward => RuleAction::ToTable,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Prohibit => RuleAction::Prohibit,
    };
    header.table = u8::try_from(rule.table).unwrap_or(0);
    if rule.invert {
        header.flags |= RuleFlags::Invert;
    }
    let attributes = &mut message.attributes;
    if let Some(from) = rule.from {
        header.src_len = from.length;
        attributes.push(RuleAttribute::Source(from.address));
    }
    if let Some(to) = rule.to {
        header.dst_len = to.length;
        attributes.push(RuleAttribute::Destination(to.address));
    }
    if let Some(input) = &rule.input {
        attributes.push(RuleAttribute::Iifname(input.clone()));
    }
    if let Some(output) = &rule.output {
        attributes.push(RuleAttribute::Oifname(output.clone()));
    }
    if let Some((mark, mask)) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    if rule.table > 0 {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(MARK)));
    message
}

pub(super) fn marked_rule(message: &RuleMessage) -> Option<Rule> {
    let mark = RuleAttribute::Protocol(RouteProtocol::Other(MARK));
    if !message.attributes.contains(&mark) {
        return None;
    }
    let header = &message.header;
    let mut rule = Rule {
        is_v6: header.family == AddressFamily::Inet6,
        priority: 0,
        from: None,
        to: None,
        input: None,
        output: None,
        mark: None,
        invert: header.flags.contains(RuleFlags::Invert),
        action: match header.action {
            RuleAction::ToTable => Action::Forward,
            RuleAction::Blackhole => Action::Blackhole,
            RuleAction::Unreachable => Action::Unreachable,
            RuleAction::Prohibit => Action::Prohibit,
            _ => return None,
        },
        table: u32::from(header.table),
    };
    let (mut value, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => {
                let (address, length) = (*address, header.src_len);
                rule.from = Some(IpPrefix { address, length });
            }
            RuleAttribute::Destination(address) => {
                let (address, length) = (*address, header.dst_len);
                rule.to = Some(IpPrefix { address, length });
            }
            RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.output = Some(name.clone()),
            RuleAttribute::FwMark(mark) => value = Some(*mark),
            RuleAttribute::FwMask(given) => mask = *given,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            _ => {}
        }
    }
    rule.mark = value.map(|mark| (mark, mask));
    if rule.action != Action::Forward {
        rule.table = 0;
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::MAIN_TABLE;

    fn network(address: &str, length: u8) -> IpPrefix {
        let address = address.parse().unwrap();
        IpPrefix { address, length }
    }

    #[test]
    fn a_rule_is_known_again() {
        let plain = Rule {
            is_v6: false,
            priority: 1000,
            from: Some(network("10.1.15.50", 32)),
            to: None,
            input: None,
            output: None,
            mark: None,
            invert: false,
            action: Action::Forward,
            table: 100,
        };
        let rows = [
            plain.clone(),
            Rule {
                is_v6: true,
                from: None,
                to: Some(network("2001:db8::", 32)),
                input: Some("eth0".into()),
                output: Some("eth1".into()),
                mark: Some((5, 0xff)),
                invert: true,
                table: 70_000,
                ..plain.clone()
            },
            Rule {
                action: Action::Prohibit,
                table: 0,
                ..plain
            },
        ];
        for rule in rows {
            assert_eq!(marked_rule(&rule_message(&rule)), Some(rule));
        }
    }

    #[test]
    fn a_route_is_known_again() {
        for (to, table, metric) in [
            (network("0.0.0.0", 0), MAIN_TABLE, 0),
            (network("192.0.2.0", 24), 70_000, 5),
            (network("2001:db8::", 32), 100, 1024),
        ] {
            let key = RouteKey { to, metric, table };
            assert_eq!(marked_route(&key_message(&key)), Some(key));
            let mut others = key_message(&key);
            others.header.protocol = RouteProtocol::Static;
            assert_eq!(marked_route(&others), None);
        }
    }
}
