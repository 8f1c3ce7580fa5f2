//! What a service does with its packets: ports, forwarding, scheduler options, persistence, limits;
//! and who may not come in at all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_common::limits;

use super::{Validator, values::DAY};
use crate::{
    config::{
        raw::{RawProtection, RawTunnel},
        reader::At,
        sources,
    },
    model::{
        Engine, Forwarding, GueChecksum, Hashing, IpPrefix, Persistence, Ports, Protection,
        Protocol, RateLimit, Scheduler, ServiceId, SourceRule, Tunnel,
    },
};

/// Connections a second that anybody could mean.
const MAX_RATE: i64 = 1_000_000_000;

impl Validator<'_> {
    /// VIP and ports: `10.1.15.50:80`, `[2001:db8::50]:80`, `10.1.15.50:1000-1999`, or port 0 for all.
    pub(super) fn endpoint(&mut self, at: &At<String>) -> (IpAddr, Ports) {
        let parsed = at.value.rsplit_once(':').and_then(|(host, ports)| {
            let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            let address: IpAddr = match bare {
                Some(v6) => IpAddr::V6(v6.parse().ok()?),
                None => IpAddr::V4(host.parse().ok()?),
            };
            Some((address, parse_ports(ports)?))
        });
        let Some((address, ports)) = parsed else {
            self.error(
                &at.span,
                format!("`{}` is not an address with a port", at.value),
                "such as \"10.1.15.50:80\", \"[2001:db8::50]:80\", \"10.1.15.50:1000-1999\", or \"10.1.15.50:0\" for all ports",
            );
            return (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Ports::one(1));
        };
        self.unicast_ip(address, &at.span);
        (address, ports)
    }

    pub(super) fn forwarding(&mut self, raw: Option<At<String>>, tunnel: RawTunnel) -> Forwarding {
        let known = &[
            ("dr", Forwarding::Dr),
            ("tunnel", Forwarding::Tunnel(Tunnel::Ipip)),
            ("nat", Forwarding::Nat),
        ];
        let forwarding = self.choice(raw, "forward", Forwarding::Dr, known);
        if matches!(forwarding, Forwarding::Tunnel(_)) {
            return Forwarding::Tunnel(self.tunnel(tunnel));
        }
        for (key, place) in [
            ("tunnel_type", tunnel.kind.map(|at| at.span)),
            ("tunnel_port", tunnel.port.map(|at| at.span)),
            ("tunnel_checksum", tunnel.checksum.map(|at| at.span)),
        ] {
            if let Some(place) = place {
                let message = format!("`{key}` without `forward = \"tunnel\"`");
                self.error(&place, message, "");
            }
        }
        forwarding
    }

    fn tunnel(&mut self, raw: RawTunnel) -> Tunnel {
        let checksum_place = raw.checksum.as_ref().map(|at| at.span.clone());
        let known = [
            ("none", GueChecksum::None),
            ("csum", GueChecksum::Full),
            ("remcsum", GueChecksum::Remote),
        ];
        let checksum = self.choice(raw.checksum, "tunnel_checksum", GueChecksum::None, &known);
        let kind_place = raw.kind.as_ref().map(|at| at.span.clone());
        let gue = Tunnel::Gue { port: 0, checksum };
        let gre = Tunnel::Gre {
            checksum: checksum != GueChecksum::None,
        };
        let known = [("ipip", Tunnel::Ipip), ("gue", gue), ("gre", gre)];
        let tunnel = self.choice(raw.kind, "tunnel_type", Tunnel::Ipip, &known);
        let has_port = matches!(tunnel, Tunnel::Gue { .. });
        if let (false, Some(at)) = (has_port, &raw.port) {
            let message = format!("a tunnel of type \"{}\" has no port", tunnel.name());
            self.error(
                &at.span,
                message,
                "`tunnel_port` is for `tunnel_type = \"gue\"`",
            );
        }
        if let (true, None, Some(place)) = (has_port, &raw.port, &kind_place) {
            let help = "where the real server's `ip fou add port ... gue` listens, such as 6080";
            self.error(place, "a tunnel of type \"gue\" needs `tunnel_port`", help);
        }
        let lacks = match (tunnel, checksum) {
            (Tunnel::Ipip, GueChecksum::Full | GueChecksum::Remote) => {
                Some("a tunnel of type \"ipip\" has no checksum")
            }
            (Tunnel::Gre { .. }, GueChecksum::Remote) => {
                Some("a tunnel of type \"gre\" has no checksum \"remcsum\"")
            }
            _ => None,
        };
        if let (Some(message), Some(place)) = (lacks, checksum_place) {
            let help = "\"csum\" is for gue and gre, \"remcsum\" for gue";
            self.error(&place, message, help);
        }
        match tunnel {
            Tunnel::Gue { checksum, .. } => Tunnel::Gue {
                port: self.number(raw.port, "tunnel_port", 1..=65_535, 1, |_, _| {}) as u16,
                checksum,
            },
            Tunnel::Ipip | Tunnel::Gre { .. } => tunnel,
        }
    }

    pub(super) fn hashing(
        &mut self,
        raw: Option<At<Vec<At<String>>>>,
        scheduler: Scheduler,
    ) -> Hashing {
        let mut hashing = Hashing::default();
        let known = match scheduler {
            Scheduler::Sh => ["sh-port", "sh-fallback"],
            Scheduler::Mh => ["mh-port", "mh-fallback"],
            _ => ["", ""],
        };
        for flag in raw.into_iter().flat_map(|at| at.value) {
            if flag.value.is_empty() || !known.contains(&flag.value.as_str()) {
                let help = match scheduler {
                    Scheduler::Sh | Scheduler::Mh => known.join(", "),
                    _ => "only sh and mh have flags".to_owned(),
                };
                let message = format!("scheduler {scheduler} has no flag `{}`", flag.value);
                self.error(&flag.span, message, &help);
                continue;
            }
            hashing.port |= flag.value == known[0];
            hashing.fallback |= flag.value == known[1];
        }
        hashing
    }

    pub(super) fn persistence(
        &mut self,
        timeout: Option<At<Duration>>,
        prefix: Option<At<i64>>,
        engine: Option<At<String>>,
        id: ServiceId,
    ) -> Option<Persistence> {
        let bits = if id.address.is_ipv4() { 32 } else { 128 };
        if let (None, Some(at)) = (&timeout, &prefix) {
            let help = "how long a client sticks, such as \"5m\"";
            self.error(
                &at.span,
                "`persistence_prefix` without `persistence_timeout`",
                help,
            );
        }
        let place = engine.as_ref().map(|at| at.span.clone());
        if let Some(place) = place {
            if timeout.is_none() {
                let help = "how long a call is remembered, such as \"5m\"";
                let message = "`persistence_engine` without `persistence_timeout`";
                self.error(&place, message, help);
            }
            if id.protocol != Protocol::Udp {
                let message = "`persistence_engine` is for protocol \"udp\"";
                self.error(&place, message, "the kernel reads calls in datagrams only");
            }
        }
        let known = [("sip", Some(Engine::Sip))];
        let engine = self.choice(engine, "persistence_engine", None, &known);
        let whole = self.small(prefix, "persistence_prefix", 0..=bits, bits as u8);
        timeout.map(|at| Persistence {
            timeout: self.duration(
                Some(at),
                "persistence_timeout",
                Duration::from_secs(1)..=DAY,
                DAY,
            ),
            prefix: whole,
            engine,
        })
    }

    pub(super) fn rate(
        &mut self,
        limit: Option<At<i64>>,
        burst: Option<At<i64>>,
        key: &str,
        burst_key: &str,
    ) -> Option<RateLimit> {
        if let (None, Some(at)) = (&limit, &burst) {
            self.error(&at.span, format!("`{burst_key}` without `{key}`"), "");
        }
        let per_second = self.number(limit, key, 0..=MAX_RATE, 0, |_, _| {});
        let burst = self.number(burst, burst_key, 1..=MAX_RATE, per_second.max(1), |_, _| {});
        let per_second = u32::try_from(per_second).ok().filter(|limit| *limit > 0)?;
        Some(RateLimit {
            per_second,
            burst: u32::try_from(burst).unwrap_or(1),
        })
    }

    pub(super) fn protection(&mut self, raw: RawProtection) -> Protection {
        let mut sources: HashMap<IpPrefix, SourceRule> = HashMap::new();
        for (list, rule) in [
            (raw.block, SourceRule::Block),
            (raw.allow, SourceRule::Allow),
        ] {
            for at in list.into_iter().flat_map(|list| list.value) {
                let Some(prefix) = sources::prefix(&at.value) else {
                    self.error(
                        &at.span,
                        format!("`{}` is not a prefix", at.value),
                        "an address or a network without host bits, such as \"192.0.2.0/24\" or \"2001:db8::/32\"",
                    );
                    continue;
                };
                if sources
                    .insert(prefix, rule)
                    .is_some_and(|before| before != rule)
                {
                    self.error(
                        &at.span,
                        format!("{prefix} is both blocked and allowed"),
                        "",
                    );
                }
            }
        }
        if sources.len() > limits::MAX_PREFIXES as usize {
            let message = format!("more than {} prefixes", limits::MAX_PREFIXES);
            self.error(&(0..0), message, "");
        }
        let mut files = Vec::new();
        for (file, key, rule) in [
            (raw.block_file, "block_file", SourceRule::Block),
            (raw.allow_file, "allow_file", SourceRule::Allow),
        ] {
            if file.is_some() {
                files.push((self.path(file, key, ""), rule));
            }
        }
        let mut sources: Vec<_> = sources.into_iter().collect();
        sources.sort_unstable();
        Protection {
            sources,
            files,
            source_rate: self.rate(
                raw.new_connections_per_source,
                raw.new_connections_per_source_burst,
                "new_connections_per_source",
                "new_connections_per_source_burst",
            ),
        }
    }
}

/// `80`, `1000-1999`, or `0` for all.
fn parse_ports(text: &str) -> Option<Ports> {
    let number = |text: &str| text.parse::<u16>().ok();
    match text.split_once('-') {
        Some((first, last)) => {
            let ports = Ports {
                first: number(first)?,
                last: number(last)?,
            };
            (ports.first >= 1 && ports.first <= ports.last).then_some(ports)
        }
        None => match number(text)? {
            0 => Some(Ports::ALL),
            port => Some(Ports::one(port)),
        },
    }
}
