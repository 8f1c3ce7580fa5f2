//! VRRP instances.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    time::Duration,
};

use lb_common::limits;

use super::{Validator, values::DAY};
use crate::{
    config::{raw::RawInstance, reader::At},
    model::{Instance, NotifyScripts},
};

/// VRRP's own group (RFC 3768 section 5.2.2).
const VRRP_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// An advert's address count is one byte.
const MAX_ADDRESSES: usize = 255;

impl Validator<'_> {
    pub(super) fn instances(&mut self, raw: Vec<At<RawInstance>>) -> Vec<Instance> {
        let mut names: HashSet<String> = HashSet::new();
        let mut routers: HashMap<(String, u8), String> = HashMap::new();
        let mut vips: HashMap<Ipv4Addr, String> = HashMap::new();
        if let Some(surplus) = raw.get(limits::MAX_ROLES - 1) {
            self.error(
                &surplus.span,
                format!("more than {} VRRP instances", limits::MAX_ROLES - 1),
                "",
            );
        }
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let name_span = raw.name.as_ref().map_or(span.clone(), |at| at.span.clone());
            let vrid_span = raw
                .virtual_router_id
                .as_ref()
                .map_or(span.clone(), |at| at.span.clone());
            let address_spans: Vec<_> = raw
                .addresses
                .iter()
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
            let router = (instance.interface.clone(), instance.vrid);
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
            for (prefix, span) in instance.addresses.iter().zip(address_spans) {
                if let Some(first) = vips.insert(prefix.address, instance.name.clone()) {
                    let message = format!(
                        "duplicate virtual address {}: {first} has it already",
                        prefix.address
                    );
                    self.error(&span, message, "");
                }
            }
            all.push(instance);
        }
        all
    }

    fn instance(&mut self, raw: RawInstance) -> Instance {
        if let Some(name) = &raw.name
            && (name.value.is_empty() || name.value.contains(char::is_whitespace))
        {
            self.error(&name.span, "an instance name is one word", "");
        }
        if let Some(interface) = &raw.interface {
            self.interface_name(interface);
        }
        let addresses = match raw.addresses {
            Some(list) => {
                if list.value.is_empty() || list.value.len() > MAX_ADDRESSES {
                    self.error(
                        &list.span,
                        format!("`addresses` must have 1 to {MAX_ADDRESSES} entries"),
                        "",
                    );
                }
                list.value.iter().map(|at| self.prefix(at)).collect()
            }
            None => Vec::new(),
        };
        let group = raw.multicast_group.map_or(VRRP_GROUP, |at| {
            let group = self.ipv4(&at, "multicast_group");
            if !group.is_multicast() {
                self.error(
                    &at.span,
                    format!("{group} is not a multicast address"),
                    "224.0.0.0 to 239.255.255.255; VRRP's own is 224.0.0.18",
                );
            }
            group
        });
        Instance {
            name: raw.name.map(|at| at.value).unwrap_or_default(),
            interface: raw.interface.map(|at| at.value).unwrap_or_default(),
            vrid: self.small(raw.virtual_router_id, "virtual_router_id", 1..=255, 0),
            priority: self.small(raw.priority, "priority", 1..=255, 100),
            advert_interval: self.advert_interval(raw.advert_interval),
            preempt: raw.preempt.is_none_or(|at| at.value),
            source: raw
                .source_address
                .map(|at| self.ipv4(&at, "source_address")),
            group,
            password: raw.password.and_then(|at| self.password(&at)),
            addresses,
            notify: NotifyScripts {
                master: raw.notify_master.map(|at| at.value),
                backup: raw.notify_backup.map(|at| at.value),
                fault: raw.notify_fault.map(|at| at.value),
                stop: raw.notify_stop.map(|at| at.value),
                any: raw.notify.map(|at| at.value),
                timeout: self.duration(
                    raw.notify_timeout,
                    "notify_timeout",
                    Duration::from_millis(100)..=DAY,
                    Duration::from_secs(30),
                ),
            },
        }
    }

    fn advert_interval(&mut self, raw: Option<At<Duration>>) -> Duration {
        let Some(at) = raw else {
            return Duration::from_secs(1);
        };
        if at.value.subsec_nanos() != 0 || !(1..=255).contains(&at.value.as_secs()) {
            self.error(
                &at.span,
                "`advert_interval` of VRRP version 2 is 1 to 255 whole seconds",
                "the packet carries it as one byte",
            );
        }
        at.value
    }

    fn password(&mut self, at: &At<String>) -> Option<[u8; 8]> {
        let bytes = at.value.as_bytes();
        if bytes.is_empty() || bytes.len() > 8 {
            self.error(
                &at.span,
                "`password` must have 1 to 8 bytes",
                "VRRP carries eight bytes; keepalived uses the first eight of a longer one",
            );
            return None;
        }
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        Some(padded)
    }
}
