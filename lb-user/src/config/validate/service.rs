//! Virtual services, their real servers and checks.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    time::Duration,
};

use lb_common::{
    hashing::{MAGLEV_PLACES, SOURCE_BUCKETS},
    limits, probe, slow,
};

use super::{Validator, pool};
use crate::{
    config::{
        raw::{RawBackend, RawCheck, RawService},
        reader::At,
    },
    model::{
        Check, Forwarding, Instance, MemberRules, Ports, Protocol, RealServer, Scheduler,
        ServiceId, VirtualService,
    },
    schedule::ring,
};

/// As in IPVS, whose weights keepalived limits to 16 bits.
const MAX_WEIGHT: i64 = 65_535;
/// Each is a task; nobody needs so many.
const MAX_CHECKS: usize = 16;

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
            self.overlap(&service, &all, &place);
            self.shared_mark(&service, &all, &place);
            self.possible(&service, &place);
            backends += service.backends.len() + service.sorry.len().max(1);
            let weights: Vec<u32> = service.backends.iter().map(|b| b.weight).collect();
            let slots = match service.scheduler {
                Scheduler::Mh => MAGLEV_PLACES as usize,
                Scheduler::Sh => SOURCE_BUCKETS as usize,
                Scheduler::Wrr if service.pool.slow_start > Duration::ZERO => {
                    pool::growing_slots(&service.backends)
                }
                Scheduler::Wrr => ring::length(&weights),
                _ => weights.len(),
            };
            // The list of its real servers may lie beside the ring.
            chunks += slots.div_ceil(limits::RING_CHUNK_SLOTS as usize)
                + weights.len().div_ceil(limits::RING_CHUNK_SLOTS as usize);
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

    /// Ranges of ports of one address and protocol must not overlap, and there may be only so many: a
    /// service of one port goes before them, and one of all ports behind them.
    fn overlap(
        &mut self,
        service: &VirtualService,
        others: &[VirtualService],
        place: &Range<usize>,
    ) {
        let ranges = |other: &&VirtualService| {
            other.id.protocol == service.id.protocol
                && other.id.address == service.id.address
                && other.id.ports.single().is_none()
        };
        if service.id.ports.single().is_some() {
            return;
        }
        let same: Vec<&VirtualService> = others.iter().filter(ranges).collect();
        if same.len() == limits::RANGES_PER_VIP as usize {
            let most = limits::RANGES_PER_VIP;
            let message = format!("more than {most} ranges of ports of {}", service.id.address);
            self.error(place, message, "join neighbouring ones, or use all ports");
        }
        let (own, all) = (service.id.ports, Ports::ALL);
        let meets = |other: &&&VirtualService| {
            let ports = other.id.ports;
            ports != own && ports != all && ports.first <= own.last && own.first <= ports.last
        };
        if own != all
            && let Some(other) = same.iter().find(meets)
        {
            let message = format!("ports {own} overlap those of service {}", other.id);
            self.error(place, message, "each port needs one service");
        }
    }

    /// A packet has one mark, which stands for one service of each version of IP.
    fn shared_mark(
        &mut self,
        service: &VirtualService,
        others: &[VirtualService],
        place: &Range<usize>,
    ) {
        let Some(mark) = service.fwmark else { return };
        let v4 = service.id.address.is_ipv4();
        let same = |other: &&VirtualService| {
            other.fwmark == Some(mark) && other.id.address.is_ipv4() == v4
        };
        if let Some(other) = others.iter().find(same) {
            let message = format!("service {} has `fwmark` {mark} already", other.id);
            self.error(place, message, "give each service a mark of its own");
        }
    }

    fn mark(&mut self, raw: Option<At<i64>>) -> Option<u32> {
        let given = raw?;
        let place = given.span.clone();
        // 0 is no mark, and what an error leaves.
        let mark = self.number(Some(given), "fwmark", 1..=i64::from(u32::MAX), 0, |_, _| {});
        let mark = u32::try_from(mark).ok().filter(|mark| *mark != 0)?;
        let own = [
            (probe::MARK, probe::MARK_MASK, "health checks have"),
            (slow::MARK, slow::MARK_MASK, "the slow path has"),
        ];
        let taken = own.iter().find(|(own, mask, _)| mark & mask == *own);
        if let Some((first, _, whose)) = taken {
            let message = format!("`fwmark` {mark} is one of those that {whose}");
            let last = first | u32::from(u16::MAX);
            self.error(
                &place,
                message,
                &format!("take one outside {first} to {last}"),
            );
        }
        Some(mark)
    }

    fn service(
        &mut self,
        raw: RawService,
        span: &Range<usize>,
        instances: &[Instance],
    ) -> VirtualService {
        let (address, ports) = raw
            .address
            .as_ref()
            .map_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), Ports::one(1)), |at| {
                self.endpoint(at)
            });
        let protocol = self.choice(
            raw.protocol,
            "protocol",
            Protocol::Tcp,
            &[
                ("tcp", Protocol::Tcp),
                ("udp", Protocol::Udp),
                ("sctp", Protocol::Sctp),
            ],
        );
        let forwarding = self.forwarding(raw.forward, raw.tunnel);
        let scheduler = self.choice(raw.scheduler, "scheduler", Scheduler::Wrr, &Scheduler::ALL);
        let id = ServiceId {
            protocol,
            address,
            ports,
        };
        if raw.backends.is_empty() {
            self.error(
                span,
                format!("service {} has no real server", id.endpoint()),
                "add at least one [[service.backend]]",
            );
        }
        if raw.backends.len() > limits::MAX_COMPARED as usize
            && matches!(scheduler, Scheduler::Lc | Scheduler::Wlc)
        {
            let most = limits::MAX_COMPARED;
            self.error(
                span,
                format!("scheduler {scheduler} compares at most {most} real servers"),
                "use wrr, or several services",
            );
        }
        let checks = self.checks(raw.checks, ports);
        let sorry_checks = self.checks(raw.sorry_checks, ports);
        let places = pool::PoolPlaces::of(&raw.pool);
        let member = pool::member(raw.member);
        let service = VirtualService {
            instance: self.instance_of(raw.vrrp, address, instances),
            sorry: self.sorry_servers(raw.sorry_server, id, forwarding),
            sorry_checks: sorry_checks
                .iter()
                .map(|(check, _)| check.clone())
                .collect(),
            pool: self.pool(raw.pool, scheduler),
            hashing: self.hashing(raw.scheduler_flags, scheduler),
            forwarding,
            persistence: self.persistence(
                raw.persistence_timeout,
                raw.persistence_prefix,
                raw.persistence_engine,
                id,
            ),
            rate: self.rate(
                raw.new_connections_per_second,
                raw.new_connections_burst,
                "new_connections_per_second",
                "new_connections_burst",
            ),
            one_packet: raw.one_packet.is_some_and(|at| at.value),
            backends: self.backends(raw.backends, id, forwarding, (&checks, &member)),
            fwmark: self.mark(raw.fwmark),
            id,
            scheduler,
        };
        self.pool_of(&service, &places);
        if let Some((_, place)) = sorry_checks.first() {
            self.checked_sorry(&service, &sorry_checks, place);
        }
        service
    }

    fn instance_of(
        &mut self,
        raw: Option<At<String>>,
        vip: IpAddr,
        instances: &[Instance],
    ) -> Option<String> {
        let holds = |instance: &&Instance| instance.held().any(|p| p.address == vip);
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
            // An IPv6 address may have been put there by other means: the instance only says who serves.
            Some(instance) if vip.is_ipv4() && !holds(&instance) => {
                self.error(
                    &at.span,
                    format!("{vip} is not an address of {}", at.value),
                    "add it to the instance's `addresses` or `excluded_addresses`, or leave `vrrp` out",
                );
            }
            Some(_) => {}
        }
        Some(at.value)
    }

    fn backends(
        &mut self,
        raw: Vec<At<RawBackend>>,
        service: ServiceId,
        forwarding: Forwarding,
        (checks, member): (&[(Check, Range<usize>)], &MemberRules),
    ) -> Vec<RealServer> {
        let mut seen = HashSet::new();
        raw.into_iter()
            .map(|At { value: raw, span }| {
                let place = raw.address.as_ref().map_or(span, |at| at.span.clone());
                let nowhere = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), None);
                let (address, port) = raw
                    .address
                    .map_or(nowhere, |at| self.host(&at, service, forwarding));
                if address == service.address && !address.is_unspecified() {
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
                } else if !matches!(forwarding, Forwarding::Tunnel(_))
                    && !address.is_unspecified()
                    && address.is_ipv4() != service.address.is_ipv4()
                {
                    self.error(
                        &place,
                        format!("{address} is not of the VIP's version of IP"),
                        "only forward = \"tunnel\" mixes versions",
                    );
                }
                let weight = self.number(raw.weight, "weight", 0..=MAX_WEIGHT, 1, |_, _| {});
                let upper = self.threshold(raw.upper_threshold, "upper_threshold");
                let lower_place = raw.lower_threshold.as_ref().map(|at| at.span.clone());
                let lower = self.threshold(raw.lower_threshold, "lower_threshold");
                if let Some(place) = lower_place
                    && lower > upper
                {
                    self.error(
                        &place,
                        format!("`lower_threshold` {lower} is above `upper_threshold` {upper}"),
                        "",
                    );
                }
                let own = self.checks(raw.checks, service.ports);
                let checks = if own.is_empty() { checks } else { &own };
                RealServer {
                    checks: self.checks_of(address, checks),
                    member: pool::own_member(raw.member, member),
                    address,
                    port,
                    weight: u32::try_from(weight).unwrap_or(1),
                    upper,
                    lower,
                }
            })
            .collect()
    }

    fn checks(&mut self, raw: Vec<At<RawCheck>>, ports: Ports) -> Vec<(Check, Range<usize>)> {
        if let Some(surplus) = raw.get(MAX_CHECKS) {
            let message = format!("more than {MAX_CHECKS} checks of a real server");
            self.error(&surplus.span, message, "");
        }
        let mut all = Vec::with_capacity(raw.len());
        for At { value, span } in raw {
            let check = self.health_check(value, &span);
            if check.kind.has_port() && check.port.is_none() && ports.single().is_none() {
                self.error(
                    &span,
                    "the check needs `port`: the service has several",
                    "name the port that is to be asked",
                );
            }
            all.push((check, span));
        }
        all
    }

    /// The checks of the real server at `address`.
    pub(super) fn checks_of(
        &mut self,
        address: IpAddr,
        checks: &[(Check, Range<usize>)],
    ) -> Vec<Check> {
        for (check, span) in checks {
            let asked = check.address.unwrap_or(address);
            if let Some(source) = check.source
                && source.is_ipv4() != asked.is_ipv4()
                && !asked.is_unspecified()
            {
                let message = format!("{asked} cannot be asked from {source}");
                self.error(span, message, "one is of IPv4, the other of IPv6");
            }
        }
        checks.iter().map(|(check, _)| check.clone()).collect()
    }

    fn threshold(&mut self, raw: Option<At<i64>>, key: &str) -> u32 {
        let number = self.number(raw, key, 0..=i64::from(u32::MAX), 0, |_, _| {});
        u32::try_from(number).unwrap_or_default()
    }

    /// An address, and a port that is not the service's: only translation changes ports.
    pub(super) fn host(
        &mut self,
        at: &At<String>,
        service: ServiceId,
        forwarding: Forwarding,
    ) -> (IpAddr, Option<u16>) {
        let (address, port) = match at.value.parse::<SocketAddr>() {
            Ok(address) => (address.ip(), Some(address.port())),
            Err(_) => (self.ip(at, "address"), None),
        };
        let other = port.filter(|port| service.ports.single() != Some(*port));
        if let Some(port) = other
            && (forwarding != Forwarding::Nat || service.ports.single().is_none())
        {
            let message = format!(
                "port {port} differs from the service's port {}",
                service.ports
            );
            self.error(&at.span, message, "only forward = \"nat\" changes the port of a service; let the server listen on the service's port");
        }
        if !address.is_unspecified() {
            self.unicast_ip(address, &at.span);
        }
        (address, other)
    }
}
