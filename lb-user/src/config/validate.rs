//! From the file as written to a configuration that is always valid. Goes on after an error, so
//! that one run names them all; what a faulty part yields is never used, because any diagnostic
//! discards the result.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use lb_common::limits;

use super::{
    diagnostic::Diagnostic,
    raw::{Raw, RawBackend, RawCheck, RawDataplane, RawInstance, RawRuntime, RawService},
    reader::At,
};
use crate::{
    model::{
        Check, CheckKind, Config, DataplaneConfig, FlowTimeouts, Instance, NotifyScripts, Prefix,
        Protocol, RealServer, Runtime, Scheduler, ServiceId, Target, VirtualService,
    },
    schedule::ring,
};

/// VRRP's own group (RFC 3768 section 5.2.2).
const VRRP_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// An advert's address count is one byte.
const MAX_ADDRESSES: usize = 255;
/// As in IPVS, whose weights keepalived limits to 16 bits.
const MAX_WEIGHT: i64 = 65_535;
const DAY: Duration = Duration::from_secs(86_400);

/// Adds to `errors` whatever is wrong.
pub fn validate(raw: Raw, host_name: &str, errors: &mut Vec<Diagnostic>) -> Config {
    let mut check = Validator { errors };
    let instances = check.instances(raw.instances);
    let services = check.services(raw.services, &instances);
    Config {
        router_id: raw
            .router_id
            .map_or_else(|| host_name.to_owned(), |at| at.value),
        runtime: check.runtime(raw.runtime.map(|at| at.value).unwrap_or_default()),
        dataplane: check.dataplane(
            raw.dataplane.map(|at| at.value).unwrap_or_default(),
            &instances,
        ),
        instances,
        services,
    }
}

struct Validator<'e> {
    errors: &'e mut Vec<Diagnostic>,
}

impl Validator<'_> {
    fn error(&mut self, span: &Range<usize>, message: impl Into<String>, help: &str) {
        self.errors.push(Diagnostic {
            span: span.clone(),
            message: message.into(),
            help: (!help.is_empty()).then(|| help.to_owned()),
        });
    }

    fn runtime(&mut self, raw: RawRuntime) -> Runtime {
        Runtime {
            socket: self.path(raw.socket, "socket", "/run/lbd/lbd.sock"),
            pin_path: self.path(raw.pin_path, "pin_path", "/sys/fs/bpf/lbd"),
            script_user: raw
                .script_user
                .map_or_else(|| "nobody".to_owned(), |at| at.value),
        }
    }

    fn path(&mut self, raw: Option<At<String>>, key: &str, default: &str) -> PathBuf {
        let Some(at) = raw else {
            return PathBuf::from(default);
        };
        if !at.value.starts_with('/') {
            self.error(&at.span, format!("`{key}` must be an absolute path"), "");
        }
        PathBuf::from(at.value)
    }

    fn dataplane(&mut self, raw: RawDataplane, instances: &[Instance]) -> DataplaneConfig {
        let interfaces = match raw.interfaces {
            Some(list) => {
                if list.value.is_empty() {
                    self.error(
                        &list.span,
                        "`interfaces` is empty",
                        "leave it out to use those of the VRRP instances",
                    );
                }
                let mut seen = HashSet::new();
                for name in &list.value {
                    self.interface_name(name);
                    if !seen.insert(name.value.clone()) {
                        self.error(
                            &name.span,
                            format!("interface {} is listed twice", name.value),
                            "",
                        );
                    }
                }
                list.value.into_iter().map(|name| name.value).collect()
            }
            None => {
                let mut names: Vec<String> =
                    instances.iter().map(|i| i.interface.clone()).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        let slots = self.number(
            raw.flow_slots,
            "flow_slots",
            1_024..=16_777_216,
            i64::from(limits::DEFAULT_FLOW_SLOTS),
            |v, n| {
                if n.count_ones() != 1 {
                    v.error_here(
                        "flow_slots must be a power of two",
                        "such as 262144; half of it is the number of flows it serves well",
                    );
                }
            },
        );
        let mut timeout = |raw, key, seconds| {
            self.duration(
                raw,
                key,
                Duration::from_secs(1)..=DAY,
                Duration::from_secs(seconds),
            )
        };
        DataplaneConfig {
            timeouts: FlowTimeouts {
                tcp: timeout(raw.tcp_timeout, "tcp_timeout", 900),
                tcp_closing: timeout(raw.tcp_closing_timeout, "tcp_closing_timeout", 120),
                tcp_half_open: timeout(raw.tcp_half_open_timeout, "tcp_half_open_timeout", 60),
                udp: timeout(raw.udp_timeout, "udp_timeout", 300),
            },
            interfaces,
            allow_generic: raw.allow_generic.is_some_and(|at| at.value),
            flow_slots: u32::try_from(slots).unwrap_or(limits::DEFAULT_FLOW_SLOTS),
        }
    }

    fn instances(&mut self, raw: Vec<At<RawInstance>>) -> Vec<Instance> {
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

    fn services(
        &mut self,
        raw: Vec<At<RawService>>,
        instances: &[Instance],
    ) -> Vec<VirtualService> {
        let mut seen = HashSet::new();
        let (mut backends, mut chunks) = (0, 0);
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let place = raw
                .address
                .as_ref()
                .map_or(span.clone(), |at| at.span.clone());
            let service = self.service(raw, &span, instances);
            if !seen.insert(service.id) {
                self.error(&place, format!("duplicate service {}", service.id), "");
            }
            backends += service.backends.len() + 1;
            let weights: Vec<u32> = service.backends.iter().map(|b| b.weight).collect();
            chunks += ring::length(&weights).div_ceil(limits::RING_CHUNK_SLOTS as usize);
            all.push(service);
            for (used, limit, what) in [
                (all.len(), limits::MAX_SERVICES as usize - 1, "services"),
                (
                    backends,
                    limits::MAX_BACKENDS as usize / 2,
                    "real servers over all services",
                ),
                (
                    chunks,
                    limits::RING_CHUNKS_PER_GENERATION as usize,
                    "chunks of 32 scheduling slots (the sum of the weights over their common divisor)",
                ),
            ] {
                if used == limit + 1 {
                    self.error(&place, format!("more than {limit} {what}"), "");
                }
            }
        }
        all
    }

    fn service(
        &mut self,
        raw: RawService,
        span: &Range<usize>,
        instances: &[Instance],
    ) -> VirtualService {
        let unspecified = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let address = raw.address.as_ref().map_or(unspecified, |at| {
            at.value.parse().unwrap_or_else(|_| {
                self.error(
                    &at.span,
                    format!("`{}` is not an IPv4 address with a port", at.value),
                    "such as \"10.1.15.50:80\"",
                );
                unspecified
            })
        });
        if let Some(at) = &raw.address
            && address != unspecified
        {
            self.unicast(*address.ip(), &at.span);
            if address.port() == 0 {
                self.error(&at.span, "port 0 is not a port", "1 to 65535");
            }
        }
        let protocol = self.choice(
            raw.protocol,
            "protocol",
            Protocol::Tcp,
            &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)],
        );
        self.choice(raw.forward, "forward", (), &[("dr", ())]);
        let scheduler = self.choice(
            raw.scheduler,
            "scheduler",
            Scheduler::Wrr,
            &[("rr", Scheduler::Rr), ("wrr", Scheduler::Wrr)],
        );
        if raw.backends.is_empty() {
            self.error(
                span,
                format!("service {address} has no real server"),
                "add at least one [[service.backend]]",
            );
        }
        VirtualService {
            instance: self.instance_of(raw.vrrp, *address.ip(), instances),
            sorry: raw.sorry_server.and_then(|at| self.sorry(&at, address)),
            check: raw.check.map(|at| self.health_check(at.value)),
            backends: self.backends(raw.backends, address),
            id: ServiceId { protocol, address },
            scheduler,
        }
    }

    fn instance_of(
        &mut self,
        raw: Option<At<String>>,
        vip: Ipv4Addr,
        instances: &[Instance],
    ) -> Option<String> {
        let holds = |instance: &&Instance| instance.addresses.iter().any(|p| p.address == vip);
        let Some(at) = raw else {
            return instances.iter().find(holds).map(|i| i.name.clone());
        };
        match instances.iter().find(|instance| instance.name == at.value) {
            None => {
                let names: Vec<&str> = instances.iter().map(|i| i.name.as_str()).collect();
                self.error(
                    &at.span,
                    format!("there is no VRRP instance `{}`", at.value),
                    &format!("there are: {}", names.join(", ")),
                );
            }
            Some(instance) if !holds(&instance) => {
                self.error(
                    &at.span,
                    format!("{vip} is not an address of {}", at.value),
                    "add it to the instance's `addresses`, or leave `vrrp` out",
                );
            }
            Some(_) => {}
        }
        Some(at.value)
    }

    fn backends(&mut self, raw: Vec<At<RawBackend>>, service: SocketAddrV4) -> Vec<RealServer> {
        let mut seen = HashSet::new();
        raw.into_iter()
            .map(|At { value: raw, span }| {
                let place = raw.address.as_ref().map_or(span, |at| at.span.clone());
                let address = raw
                    .address
                    .map_or(Ipv4Addr::UNSPECIFIED, |at| self.host(&at, service));
                if address == *service.ip() && address != Ipv4Addr::UNSPECIFIED {
                    self.error(
                        &place,
                        format!("{address} is the VIP itself"),
                        "give the real server's own address",
                    );
                } else if !seen.insert(address) {
                    self.error(
                        &place,
                        format!("duplicate real server {address}"),
                        "raise its weight instead",
                    );
                }
                let weight = self.number(raw.weight, "weight", 0..=MAX_WEIGHT, 1, |_, _| {});
                RealServer {
                    address,
                    weight: u32::try_from(weight).unwrap_or(1),
                }
            })
            .collect()
    }

    /// An address whose port, if it has one, is the service's: direct return changes no port.
    fn host(&mut self, at: &At<String>, service: SocketAddrV4) -> Ipv4Addr {
        let (address, port) = match at.value.parse::<SocketAddrV4>() {
            Ok(address) => (*address.ip(), address.port()),
            Err(_) => (self.ipv4(at, "address"), service.port()),
        };
        if port != service.port() {
            let message = format!(
                "port {port} differs from the service's port {}",
                service.port()
            );
            self.error(&at.span, message, "direct return leaves ports as they are; let the server listen on the service's port");
        }
        if !address.is_unspecified() {
            self.unicast(address, &at.span);
        }
        address
    }

    fn sorry(&mut self, at: &At<String>, service: SocketAddrV4) -> Option<Target> {
        let is_local = |address: &Ipv4Addr| address.is_loopback();
        match at.value.as_str() {
            "local" => return Some(Target::Local),
            text => {
                if let Ok(address) = text.parse::<Ipv4Addr>()
                    && is_local(&address)
                {
                    return Some(Target::Local);
                }
                if let Ok(address) = text.parse::<SocketAddrV4>()
                    && is_local(address.ip())
                {
                    if address.port() != service.port() {
                        let message = format!(
                            "port {} differs from the service's port {}",
                            address.port(),
                            service.port()
                        );
                        self.error(&at.span, message, "packets reach the director's own stack unchanged; let the sorry server listen on the service's port");
                    }
                    return Some(Target::Local);
                }
            }
        }
        Some(Target::Host(self.host(at, service)))
    }

    fn health_check(&mut self, raw: RawCheck) -> Check {
        let kinds = &[("http", true), ("tcp", false)];
        let http = self.choice(raw.kind, "type", false, kinds);
        if !http {
            let keys = [
                ("path", raw.path.as_ref().map(|a| &a.span)),
                ("host", raw.host.as_ref().map(|a| &a.span)),
                ("status", raw.status.as_ref().map(|a| &a.span)),
            ];
            for (key, span) in keys {
                if let Some(span) = span {
                    self.error(
                        span,
                        format!("`{key}` belongs to checks of type \"http\""),
                        "",
                    );
                }
            }
        }
        let path = raw.path.map_or_else(
            || "/".to_owned(),
            |at| {
                if !at.value.starts_with('/')
                    || at
                        .value
                        .chars()
                        .any(|c| c.is_whitespace() || c.is_control())
                {
                    self.error(&at.span, "`path` must begin with / and have no blanks", "");
                }
                at.value
            },
        );
        let status = self.number(raw.status, "status", 100..=599, 200, |_, _| {});
        let port = raw
            .port
            .map(|at| self.number(Some(at), "port", 1..=65_535, 1, |_, _| {}));
        let retries = self.number(raw.retries, "retries", 0..=100, 1, |_, _| {});
        let hour = Duration::from_secs(3_600);
        Check {
            kind: if http {
                CheckKind::Http {
                    path,
                    host: raw.host.map(|at| at.value),
                    status: u16::try_from(status).unwrap_or(200),
                }
            } else {
                CheckKind::Tcp
            },
            port: port.and_then(|port| u16::try_from(port).ok()),
            interval: self.duration(
                raw.interval,
                "interval",
                Duration::from_millis(100)..=hour,
                Duration::from_secs(5),
            ),
            connect_timeout: self.duration(
                raw.connect_timeout,
                "connect_timeout",
                Duration::from_millis(10)..=hour,
                Duration::from_secs(5),
            ),
            retries: u32::try_from(retries).unwrap_or(1),
            delay_before_retry: self.duration(
                raw.delay_before_retry,
                "delay_before_retry",
                Duration::ZERO..=hour,
                Duration::from_secs(1),
            ),
        }
    }
}

/// Single values.
impl Validator<'_> {
    fn choice<T: Copy>(
        &mut self,
        raw: Option<At<String>>,
        key: &str,
        default: T,
        known: &[(&str, T)],
    ) -> T {
        let Some(at) = raw else { return default };
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == at.value) {
            return *value;
        }
        let names: Vec<String> = known
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        self.error(
            &at.span,
            format!("`{key}` cannot be \"{}\"", at.value),
            &format!("this version has: {}", names.join(", ")),
        );
        default
    }

    fn number(
        &mut self,
        raw: Option<At<i64>>,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        default: i64,
        also: impl FnOnce(&mut Here<'_, '_>, i64),
    ) -> i64 {
        let Some(at) = raw else { return default };
        if !range.contains(&at.value) {
            let message = format!("`{key}` is {}, which is out of range", at.value);
            self.error(
                &at.span,
                message,
                &format!("{} to {}", range.start(), range.end()),
            );
            return default;
        }
        also(
            &mut Here {
                errors: self.errors,
                span: &at.span,
            },
            at.value,
        );
        at.value
    }

    fn small(
        &mut self,
        raw: Option<At<i64>>,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        default: u8,
    ) -> u8 {
        let number = self.number(raw, key, range, i64::from(default), |_, _| {});
        u8::try_from(number).unwrap_or(default)
    }

    fn duration(
        &mut self,
        raw: Option<At<Duration>>,
        key: &str,
        range: std::ops::RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(at) = raw else { return default };
        if !range.contains(&at.value) {
            let help = format!(
                "{} to {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end())
            );
            self.error(&at.span, format!("`{key}` is out of range"), &help);
        }
        at.value
    }

    fn interface_name(&mut self, at: &At<String>) {
        // IFNAMSIZ is 16 with the final NUL; the kernel's dev_valid_name forbids the rest.
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if at.value.is_empty() || at.value.len() > 15 || at.value.contains(odd) {
            self.error(
                &at.span,
                format!("`{}` cannot be an interface name", at.value),
                "1 to 15 bytes without blank, / and :",
            );
        }
    }

    fn ipv4(&mut self, at: &At<String>, key: &str) -> Ipv4Addr {
        at.value.parse().unwrap_or_else(|_| {
            self.error(
                &at.span,
                format!("`{}` is not an IPv4 address", at.value),
                &format!("`{key}` is written like \"10.1.15.45\""),
            );
            Ipv4Addr::UNSPECIFIED
        })
    }

    fn prefix(&mut self, at: &At<String>) -> Prefix {
        let (address, length) = at.value.split_once('/').unwrap_or((&at.value, "32"));
        match (address.parse::<Ipv4Addr>(), length.parse::<u8>()) {
            (Ok(address), Ok(length)) if length <= 32 => {
                self.unicast(address, &at.span);
                Prefix { address, length }
            }
            _ => {
                self.error(
                    &at.span,
                    format!("`{}` is not an IPv4 address with a prefix length", at.value),
                    "such as \"10.1.15.50/16\"",
                );
                Prefix {
                    address: Ipv4Addr::UNSPECIFIED,
                    length: 32,
                }
            }
        }
    }

    fn unicast(&mut self, address: Ipv4Addr, span: &Range<usize>) {
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || address.is_loopback()
        {
            self.error(
                span,
                format!("{address} is not a unicast address of a network"),
                "",
            );
        }
    }
}

/// Where a number stood, for checks beyond its range.
struct Here<'e, 's> {
    errors: &'e mut Vec<Diagnostic>,
    span: &'s Range<usize>,
}

impl Here<'_, '_> {
    fn error_here(&mut self, message: &str, help: &str) {
        self.errors.push(Diagnostic {
            span: self.span.clone(),
            message: message.to_owned(),
            help: Some(help.to_owned()),
        });
    }
}
