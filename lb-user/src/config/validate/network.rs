//! Addresses, routes and rules, of instances and of the host; interfaces of virtual MAC addresses.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use super::Validator;
use crate::{
    config::{
        raw::{Raw, RawAddress, RawInstance, RawRoute, RawRule},
        reader::At,
        sources,
    },
    model::{
        IpPrefix, Prefix,
        network::{
            Action, AddressOptions, Item, MAIN_TABLE, Network, PlacedAddress, Route, RouteKey,
            Rule, Scope,
        },
    },
};

/// Routes and rules of one instance, or of the host. Each is a request to the kernel at every
/// failover.
const MAX_ENTRIES: usize = 256;
/// The kernel's metric of IPv6 routes that give none (IP6_RT_PRIO_USER).
const DEFAULT_METRIC_V6: u32 = 1024;
const SCOPES: [(&str, Scope); 3] = [
    ("global", Scope::Global),
    ("link", Scope::Link),
    ("host", Scope::Host),
];
const ROUTE_TYPES: [(&str, Action); 4] = [
    ("unicast", Action::Forward),
    ("blackhole", Action::Blackhole),
    ("unreachable", Action::Unreachable),
    ("prohibit", Action::Prohibit),
];
const RULE_TYPES: [(&str, Action); 4] = [
    ("lookup", Action::Forward),
    ("blackhole", Action::Blackhole),
    ("unreachable", Action::Unreachable),
    ("prohibit", Action::Prohibit),
];

/// What may be there only once, over all parts of the file.
#[derive(Default)]
pub(super) struct Claims {
    routes: HashMap<RouteKey, Route>,
    virtual_macs: HashMap<String, String>,
}

impl Validator<'_> {
    /// Addresses, routes and rules of the host.
    pub(super) fn statics(&mut self, raw: &mut Raw) -> Vec<Item> {
        let mut items = Vec::new();
        for at in std::mem::take(&mut raw.static_addresses) {
            let Some(text) = &at.value.address else {
                continue;
            };
            let prefix = self.prefix(text);
            if at.value.dev.is_none() {
                self.error(
                    &at.span,
                    "a static address needs `dev`",
                    "the interface that gets it",
                );
            }
            let mut options = self.address_options(&at.value, prefix);
            options.look_for_duplicates = at.value.dad.as_ref().is_none_or(|at| at.value);
            options.preferred = at.value.preferred.as_ref().is_none_or(|at| at.value);
            items.push(Item::Address(PlacedAddress {
                prefix,
                device: options.device.clone().unwrap_or_default(),
                options,
            }));
        }
        let routes = std::mem::take(&mut raw.static_routes);
        items.extend(self.routes(routes).into_iter().map(Item::Route));
        let rules = std::mem::take(&mut raw.static_rules);
        items.extend(self.rules(rules).into_iter().map(Item::Rule));
        items
    }

    /// What an instance does to the host's network besides holding its addresses.
    pub(super) fn network(&mut self, raw: &mut RawInstance, is_v6: bool) -> Network {
        let mut options = Vec::new();
        let lists = [raw.addresses.as_ref(), raw.excluded_addresses.as_ref()];
        for at in lists.into_iter().flatten().flat_map(|list| &list.value) {
            // Errors of the address itself have been named.
            let address = at.value.address.as_ref().map(|at| at.value.as_str());
            let Some(prefix) = address.and_then(parse_prefix) else {
                continue;
            };
            let option = self.address_options(&at.value, prefix);
            if option != AddressOptions::default() {
                options.push((prefix.address, option));
            }
        }
        Network {
            virtual_mac: self.virtual_mac(raw, is_v6),
            accept: raw.accept.as_ref().is_none_or(|at| at.value),
            options,
            routes: self.routes(std::mem::take(&mut raw.routes)),
            rules: self.rules(std::mem::take(&mut raw.rules)),
        }
    }

    /// The interface's name, by keepalived's rule unless given.
    fn virtual_mac(&mut self, raw: &RawInstance, is_v6: bool) -> Option<String> {
        if !raw.use_virtual_mac.as_ref().is_some_and(|at| at.value) {
            if let Some(at) = &raw.vmac_interface {
                self.error(
                    &at.span,
                    "`vmac_interface` without `use_virtual_mac = true`",
                    "",
                );
            }
            return None;
        }
        let vrid = raw.virtual_router_id.as_ref().map_or(0, |at| at.value);
        let name = match &raw.vmac_interface {
            Some(at) => {
                self.interface_name(at);
                at.value.clone()
            }
            None if is_v6 => format!("vrrp6.{vrid}"),
            None => format!("vrrp.{vrid}"),
        };
        let instance = raw.name.as_ref().map_or("", |at| &at.value).to_owned();
        let places = [&raw.vmac_interface, &raw.name].into_iter().flatten();
        let span = places.map(|at| at.span.clone()).next().unwrap_or_default();
        if let Some(first) = self.claims.virtual_macs.insert(name.clone(), instance) {
            self.error(
                &span,
                format!("the interface {name} is that of {first}'s virtual MAC address already"),
                "name another with `vmac_interface`",
            );
        }
        if raw.interface.as_ref().is_some_and(|at| at.value == name) {
            self.error(&span, "`vmac_interface` is the instance's `interface`", "");
        }
        Some(name)
    }

    fn address_options(&mut self, raw: &RawAddress, prefix: Prefix) -> AddressOptions {
        if let Some(dev) = &raw.dev {
            self.interface_name(dev);
        }
        let is_v6 = prefix.address.is_ipv6();
        for (key, at) in [("label", &raw.label), ("broadcast", &raw.broadcast)] {
            if let (true, Some(at)) = (is_v6, at) {
                self.error(&at.span, format!("IPv6 addresses have no `{key}`"), "");
            }
        }
        for (key, at) in [("dad", &raw.dad), ("preferred", &raw.preferred)] {
            if let (false, Some(at)) = (is_v6, at) {
                self.error(&at.span, format!("`{key}` is for IPv6 addresses"), "");
            }
        }
        if let Some(label) = &raw.label
            && !(1..=15).contains(&label.value.len())
        {
            self.error(
                &label.span,
                "a label has 1 to 15 bytes",
                "such as \"eth0:vip\"",
            );
        }
        let broadcast = raw.broadcast.as_ref().and_then(|at| {
            let address = at.value.parse::<Ipv4Addr>();
            if address.is_err() {
                self.error(
                    &at.span,
                    format!("`{}` is not an IPv4 address", at.value),
                    "",
                );
            }
            address.ok()
        });
        AddressOptions {
            device: raw.dev.as_ref().map(|at| at.value.clone()),
            label: raw.label.as_ref().map(|at| at.value.clone()),
            broadcast,
            scope: self.scope(raw.scope.clone()),
            no_prefix_route: raw.prefix_route.as_ref().is_some_and(|at| !at.value),
            look_for_duplicates: raw.dad.as_ref().is_some_and(|at| at.value),
            preferred: raw.preferred.as_ref().is_some_and(|at| at.value),
        }
    }

    fn scope(&mut self, raw: Option<At<String>>) -> Option<Scope> {
        raw.map(|at| self.choice(Some(at), "scope", Scope::Global, &SCOPES))
    }

    fn routes(&mut self, raw: Vec<At<RawRoute>>) -> Vec<Route> {
        self.not_too_many(&raw, "routes");
        raw.into_iter().filter_map(|at| self.route(at)).collect()
    }

    fn route(&mut self, At { value: raw, span }: At<RawRoute>) -> Option<Route> {
        let via = raw.via.as_ref().map(|at| self.ip(at, "via"));
        let source = raw.source.as_ref().map(|at| self.ip(at, "source"));
        let to = self.route_destination(&raw.to?, via.or(source))?;
        let is_v6 = to.address.is_ipv6();
        for (at, address) in [(&raw.via, via), (&raw.source, source)] {
            if let (Some(at), Some(address)) = (at, address)
                && address.is_ipv6() != is_v6
            {
                self.error(&at.span, "another version of IP than that of `to`", "");
            }
        }
        if let Some(dev) = &raw.dev {
            self.interface_name(dev);
        }
        let action = self.choice(raw.kind, "type", Action::Forward, &ROUTE_TYPES);
        match (action, via.is_some() || raw.dev.is_some()) {
            (Action::Forward, false) => {
                self.error(&span, "a route needs `via` or `dev`", "or another `type`");
            }
            (Action::Blackhole | Action::Unreachable | Action::Prohibit, true) => {
                let message = format!("a route of type \"{action}\" leads nowhere");
                self.error(&span, message, "leave `via` and `dev` out");
            }
            _ => {}
        }
        if let (true, Some(at)) = (raw.dev.is_none() || via.is_none(), &raw.onlink) {
            self.error(&at.span, "`onlink` needs `via` and `dev`", "");
        }
        if let (true, Some(at)) = (is_v6, &raw.scope) {
            self.error(&at.span, "IPv6 routes have no `scope`", "");
        }
        let default_metric = if is_v6 { DEFAULT_METRIC_V6 } else { 0 };
        let least_metric = i64::from(is_v6);
        let route = Route {
            to,
            action,
            via,
            device: raw.dev.map(|at| at.value),
            source,
            metric: self.word(raw.metric, "metric", least_metric, default_metric),
            table: self.word(raw.table, "table", 1, MAIN_TABLE),
            scope: self.scope(raw.scope),
            onlink: raw.onlink.is_some_and(|at| at.value),
            mtu: raw
                .mtu
                .map(|at| self.number(Some(at), "mtu", 68..=65_535, 1_500, |_, _| {}))
                .and_then(|mtu| u32::try_from(mtu).ok()),
        };
        let first = self
            .claims
            .routes
            .entry(route.key())
            .or_insert_with(|| route.clone());
        if *first != route {
            let message = format!("this route and `{first}` exclude each other");
            let help = "the kernel has one route of each destination, metric and table: give one another `metric`";
            self.error(&span, message, help);
        }
        Some(route)
    }

    /// A network, or `default` of the version of IP that `near` has.
    fn route_destination(&mut self, at: &At<String>, near: Option<IpAddr>) -> Option<IpPrefix> {
        let everything = |address: IpAddr| IpPrefix { address, length: 0 };
        if at.value == "default" {
            return match near {
                Some(IpAddr::V4(_)) => Some(everything(Ipv4Addr::UNSPECIFIED.into())),
                Some(IpAddr::V6(_)) => Some(everything(Ipv6Addr::UNSPECIFIED.into())),
                None => {
                    let help = "write \"0.0.0.0/0\" or \"::/0\"";
                    self.error(&at.span, "\"default\" of which version of IP?", help);
                    None
                }
            };
        }
        self.network_of(at)
    }

    fn network_of(&mut self, at: &At<String>) -> Option<IpPrefix> {
        let prefix = sources::prefix(&at.value);
        if prefix.is_none() {
            self.error(
                &at.span,
                format!("`{}` is not a network", at.value),
                "an address, or a network without host bits, such as \"192.0.2.0/24\"",
            );
        }
        prefix
    }

    fn rules(&mut self, raw: Vec<At<RawRule>>) -> Vec<Rule> {
        self.not_too_many(&raw, "rules");
        raw.into_iter().filter_map(|at| self.rule(at)).collect()
    }

    fn rule(&mut self, At { value: raw, span }: At<RawRule>) -> Option<Rule> {
        let from = raw.from.as_ref().map(|at| self.network_of(at));
        let to = raw.to.as_ref().map(|at| self.network_of(at));
        let is_v6 = |prefix: &Option<Option<IpPrefix>>| {
            prefix.map(|prefix| prefix.is_some_and(|prefix| prefix.address.is_ipv6()))
        };
        let choices = [("ipv4", Some(false)), ("ipv6", Some(true))];
        let family = self.choice(raw.family, "family", None, &choices);
        let known: Vec<bool> = [is_v6(&from), is_v6(&to), family]
            .into_iter()
            .flatten()
            .collect();
        let Some(is_v6) = known.first().copied() else {
            let help = "write `family = \"ipv4\"` or \"ipv6\"; two rules are needed for both";
            self.error(&span, "a rule of which version of IP?", help);
            return None;
        };
        if known.iter().any(|other| *other != is_v6) {
            self.error(&span, "IPv4 and IPv6 in one rule", "make two of it");
        }
        for at in [&raw.iif, &raw.oif].into_iter().flatten() {
            self.interface_name(at);
        }
        if let (None, Some(at)) = (&raw.fwmark, &raw.fwmask) {
            self.error(&at.span, "`fwmask` without `fwmark`", "");
        }
        let action = self.choice(raw.kind, "type", Action::Forward, &RULE_TYPES);
        let table = match (action, &raw.table) {
            (Action::Forward, None) => {
                self.error(&span, "a rule needs `table`", "or another `type`");
                MAIN_TABLE
            }
            (Action::Forward, Some(_)) => self.word(raw.table, "table", 1, MAIN_TABLE),
            (_, Some(at)) => {
                let message = format!("a rule of type \"{action}\" looks into no table");
                self.error(&at.span, message, "leave `table` out");
                0
            }
            (_, None) => 0,
        };
        let mark = raw
            .fwmark
            .map(|at| self.word(Some(at), "fwmark", 0, 0))
            .map(|mark| (mark, self.word(raw.fwmask, "fwmask", 1, u32::MAX)));
        Some(Rule {
            is_v6,
            priority: self.word(raw.priority, "priority", 1, 0),
            from: from.flatten(),
            to: to.flatten(),
            input: raw.iif.map(|at| at.value),
            output: raw.oif.map(|at| at.value),
            mark,
            invert: raw.invert.is_some_and(|at| at.value),
            action,
            table,
        })
    }

    fn not_too_many<T>(&mut self, list: &[At<T>], what: &str) {
        if let Some(surplus) = list.get(MAX_ENTRIES) {
            let span: Range<usize> = surplus.span.clone();
            self.error(
                &span,
                format!("more than {MAX_ENTRIES} {what} in one place"),
                "",
            );
        }
    }

    /// A number of 32 bits.
    fn word(&mut self, raw: Option<At<i64>>, key: &str, least: i64, default: u32) -> u32 {
        let range = least..=i64::from(u32::MAX);
        let number = self.number(raw, key, range, i64::from(default), |_, _| {});
        u32::try_from(number).unwrap_or(default)
    }
}

/// An address with a prefix length, if it is one.
fn parse_prefix(text: &str) -> Option<Prefix> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse().ok()?, Some(length.parse().ok()?)),
        None => (text.parse().ok()?, None),
    };
    let most = if matches!(address, IpAddr::V4(_)) {
        32
    } else {
        128
    };
    let length = length.unwrap_or(most);
    (length <= most).then_some(Prefix { address, length })
}
