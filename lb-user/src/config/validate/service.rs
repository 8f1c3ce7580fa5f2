//! Virtual services, their real servers and checks.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    time::Duration,
};

use lb_common::limits;

use super::Validator;
use crate::{
    config::{
        raw::{RawBackend, RawCheck, RawService},
        reader::At,
    },
    model::{
        Check, CheckKind, Instance, Protocol, RealServer, Scheduler, ServiceId, Target,
        VirtualService,
    },
    schedule::ring,
};

/// As in IPVS, whose weights keepalived limits to 16 bits.
const MAX_WEIGHT: i64 = 65_535;

impl Validator<'_> {
    pub(super) fn services(
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
