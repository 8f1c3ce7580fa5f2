//! VRRP instances.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::limits;

use super::{Validator, auth::RawAuth, values::DAY};
use crate::{
    config::{
        raw::{RawAddress, RawInstance, RawTrack},
        reader::At,
    },
    model::{ChecksumForm, Instance, Prefix, UnicastTtl, VrrpVersion},
};

/// VRRP's own group (RFC 3768 section 5.2.2).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// The same for IPv6 (RFC 9568 section 5.1.2.2).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
const CHECKSUMS: [(&str, ChecksumForm); 3] = [
    ("auto", ChecksumForm::Auto),
    ("rfc9568", ChecksumForm::Message),
    ("pseudo-header", ChecksumForm::PseudoHeader),
];
/// Each gets every advert by itself.
const MAX_PEERS: usize = 64;
/// An advert's address count is one byte.
const MAX_ADDRESSES: usize = 255;

impl Validator<'_> {
    /// Every instance, and what it watches: that may be a service, and services are looked at later.
    pub(super) fn instances(
        &mut self,
        raw: Vec<At<RawInstance>>,
    ) -> (Vec<Instance>, Vec<Vec<At<RawTrack>>>) {
        let mut names: HashSet<String> = HashSet::new();
        let mut routers: HashMap<(String, bool, u8), String> = HashMap::new();
        let mut vips: HashMap<IpAddr, String> = HashMap::new();
        if let Some(surplus) = raw.get(limits::MAX_ROLES - 1) {
            self.error(
                &surplus.span,
                format!("more than {} VRRP instances", limits::MAX_ROLES - 1),
                "",
            );
        }
        let mut all: Vec<Instance> = Vec::with_capacity(raw.len());
        let mut groups = Vec::with_capacity(raw.len());
        let mut tracks = Vec::with_capacity(raw.len());
        for At {
            value: mut raw,
            span,
        } in raw
        {
            tracks.push(std::mem::take(&mut raw.tracks));
            let name_span = raw.name.as_ref().map_or(span.clone(), |at| at.span.clone());
            let vrid_span = raw
                .virtual_router_id
                .as_ref()
                .map_or(span.clone(), |at| at.span.clone());
            let group_span = raw.sync_group.as_ref().map(|at| at.span.clone());
            let address_spans: Vec<_> = raw
                .addresses
                .iter()
                .chain(&raw.excluded_addresses)
                .flat_map(|l| l.value.iter().map(|a| a.span.clone()))
                .collect();
            let instance = self.instance(raw);
            if !instance.name.is_empty() && !names.insert(instance.name.clone()) {
                self.error(
                    &name_span,
                    format!("duplicate VRRP instance name `{}`", instance.name),
                    "",
                );
            }
            let router = (instance.interface.clone(), instance.is_v6(), instance.vrid);
            if instance.vrid != 0
                && let Some(first) = routers.insert(router, instance.name.clone())
            {
                let message = format!(
                    "duplicate virtual_router_id {} on {}: {first} has it already",
                    instance.vrid, instance.interface
                );
                self.error(
                    &vrid_span,
                    message,
                    "every virtual router of an interface needs an id of its own",
                );
            }
            for (prefix, span) in instance.held().zip(address_spans) {
                if let Some(first) = vips.insert(prefix.address, instance.name.clone()) {
                    let message = format!(
                        "duplicate virtual address {}: {first} has it already",
                        prefix.address
                    );
                    self.error(&span, message, "");
                }
            }
            all.push(instance);
            groups.push(group_span);
        }
        for (instance, span) in all.iter().zip(groups) {
            let alone = |group: &String| {
                all.iter()
                    .filter(|i| i.sync_group.as_ref() == Some(group))
                    .count()
                    == 1
            };
            if let (Some(group), Some(span)) = (instance.sync_group.as_ref(), span)
                && alone(group)
            {
                let message = format!("{} is alone in the sync group `{group}`", instance.name);
                self.error(&span, message, "name the group in another instance too");
            }
        }
        (all, tracks)
    }

    fn instance(&mut self, mut raw: RawInstance) -> Instance {
        if let Some(name) = &raw.name
            && (name.value.is_empty() || name.value.contains(char::is_whitespace))
        {
            self.error(&name.span, "an instance name is one word", "");
        }
        if let Some(interface) = &raw.interface {
            self.interface_name(interface);
        }
        if let Some(list) = &raw.addresses
            && !(1..=MAX_ADDRESSES).contains(&list.value.len())
        {
            let message = format!("`addresses` must have 1 to {MAX_ADDRESSES} entries");
            self.error(&list.span, message, "");
        }
        let addresses = self.prefixes(raw.addresses.as_ref());
        let excluded = self.prefixes(raw.excluded_addresses.as_ref());
        let is_v6 = addresses.first().is_some_and(|p| p.address.is_ipv6());
        for (at, prefix) in raw.addresses.iter().flat_map(|l| &l.value).zip(&addresses) {
            if prefix.address.is_ipv6() != is_v6 {
                self.error(
                    &at.span,
                    "IPv4 and IPv6 addresses in one instance",
                    "an advert carries addresses of one family; make a second instance, or name them in `excluded_addresses`",
                );
            }
        }
        let network = self.network(&mut raw, is_v6);
        let version = self.version(raw.version, is_v6);
        if let Some(at) = &raw.checksum
            && (version == VrrpVersion::V2 || is_v6)
        {
            self.error(
                &at.span,
                "`checksum` is for version 3 over IPv4; elsewhere there is only one form",
                "",
            );
        }
        let unicast_ttl = UnicastTtl {
            sent: self.small(raw.unicast_ttl, "unicast_ttl", 1..=255, 255),
            accepted: self.small(raw.unicast_min_ttl.clone(), "unicast_min_ttl", 0..=255, 0)
                ..=self.small(raw.unicast_max_ttl, "unicast_max_ttl", 0..=255, 255),
        };
        if let (Some(at), true) = (raw.unicast_min_ttl, unicast_ttl.accepted.is_empty()) {
            self.error(
                &at.span,
                "`unicast_min_ttl` is above `unicast_max_ttl`",
                "no advert would be believed",
            );
        }
        let advert_interval = self.advert_interval(raw.advert_interval, version);
        let auth = RawAuth {
            kind: raw.authentication,
            password: raw.password,
            hmac: raw.auth_hmac,
        };
        Instance {
            name: raw.name.map(|at| at.value).unwrap_or_default(),
            interface: raw.interface.map(|at| at.value).unwrap_or_default(),
            version,
            vrid: self.small(raw.virtual_router_id, "virtual_router_id", 1..=255, 0),
            priority: self.small(raw.priority, "priority", 1..=255, 100),
            advert_interval,
            preempt: raw.preempt.is_none_or(|at| at.value),
            preempt_delay: self.duration(
                raw.preempt_delay,
                "preempt_delay",
                Duration::ZERO..=DAY,
                Duration::ZERO,
            ),
            source: raw
                .source_address
                .map(|at| self.of_family(&at, "source_address", is_v6)),
            group: self.group(raw.multicast_group, is_v6),
            peers: self.peers(raw.unicast_peers, is_v6),
            unicast_ttl,
            checksum: self.choice(raw.checksum, "checksum", ChecksumForm::Auto, &CHECKSUMS),
            auth: self.auth(auth, version, advert_interval),
            announce: self.announce(raw.announce),
            addresses,
            excluded,
            network,
            sync_group: raw.sync_group.map(|at| at.value),
            watches: Vec::new(),
            damping: self.link_damping(raw.damping),
            notify: self.scripts(raw.scripts),
        }
    }

    fn prefixes(&mut self, list: Option<&At<Vec<At<RawAddress>>>>) -> Vec<Prefix> {
        let entries = list.map_or(&[][..], |list| &list.value);
        entries
            .iter()
            .filter_map(|at| at.value.address.as_ref())
            .map(|at| self.prefix(at))
            .collect()
    }

    /// Version 2 unless the addresses need version 3.
    fn version(&mut self, raw: Option<At<i64>>, is_v6: bool) -> VrrpVersion {
        match raw {
            None if is_v6 => VrrpVersion::V3,
            None => VrrpVersion::V2,
            Some(At { value: 2, span }) if is_v6 => {
                self.error(&span, "VRRP version 2 knows no IPv6", "use `version = 3`");
                VrrpVersion::V3
            }
            Some(At { value: 2, .. }) => VrrpVersion::V2,
            Some(At { value: 3, .. }) => VrrpVersion::V3,
            Some(at) => {
                self.error(&at.span, "`version` is 2 or 3", "");
                VrrpVersion::V3
            }
        }
    }

    fn of_family(&mut self, at: &At<String>, key: &str, is_v6: bool) -> IpAddr {
        let address = self.ip(at, key);
        if address.is_ipv6() != is_v6 && !address.is_unspecified() {
            let family = if is_v6 { "IPv6" } else { "IPv4" };
            let message = format!("`{key}` must be an {family} address, as the virtual ones are");
            self.error(&at.span, message, "");
        }
        address
    }

    fn group(&mut self, raw: Option<At<String>>, is_v6: bool) -> IpAddr {
        let standard = if is_v6 {
            IpAddr::V6(GROUP_V6)
        } else {
            IpAddr::V4(GROUP_V4)
        };
        raw.map_or(standard, |at| {
            let group = self.of_family(&at, "multicast_group", is_v6);
            if !group.is_multicast() && !group.is_unspecified() {
                self.error(
                    &at.span,
                    format!("{group} is not a multicast address"),
                    &format!("224.0.0.0 to 239.255.255.255, or ff00::/8; VRRP's own is {standard}"),
                );
            }
            group
        })
    }

    fn peers(&mut self, raw: Option<At<Vec<At<String>>>>, is_v6: bool) -> Vec<IpAddr> {
        let Some(list) = raw else { return Vec::new() };
        if !(1..=MAX_PEERS).contains(&list.value.len()) {
            let message = format!("`unicast_peers` must have 1 to {MAX_PEERS} entries");
            self.error(&list.span, message, "leave it out to speak to a group");
        }
        let mut peers = Vec::with_capacity(list.value.len());
        for at in &list.value {
            let peer = self.of_family(at, "unicast_peers", is_v6);
            if peer.is_multicast() || peers.contains(&peer) {
                let message = format!("{peer} is a group, or named twice");
                self.error(
                    &at.span,
                    message,
                    "the own address of each other director, once",
                );
            }
            peers.push(peer);
        }
        peers
    }

    fn advert_interval(&mut self, raw: Option<At<Duration>>, version: VrrpVersion) -> Duration {
        let Some(at) = raw else {
            return Duration::from_secs(1);
        };
        let (nanoseconds, step) = (at.value.as_nanos(), Duration::from_millis(10).as_nanos());
        let fits = match version {
            VrrpVersion::V2 => {
                at.value.subsec_nanos() == 0 && (1..=255).contains(&at.value.as_secs())
            }
            VrrpVersion::V3 => {
                nanoseconds.is_multiple_of(step) && (1..=0x0fff).contains(&(nanoseconds / step))
            }
        };
        if !fits {
            let (message, help) = match version {
                VrrpVersion::V2 => (
                    "`advert_interval` of VRRP version 2 is 1 to 255 whole seconds",
                    "the packet carries it as one byte; `version = 3` knows shorter ones",
                ),
                VrrpVersion::V3 => (
                    "`advert_interval` of VRRP version 3 is 10ms to 40s 950ms in steps of 10ms",
                    "the packet carries hundredths of a second in twelve bits",
                ),
            };
            self.error(&at.span, message, help);
        }
        at.value
    }
}
