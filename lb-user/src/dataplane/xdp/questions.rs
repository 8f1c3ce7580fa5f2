//! Answers to operators: which flows there are, and what would become of a packet.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    Address, BackendFlags,
    flow::{FlowTable, FlowValue},
    hashing::{self, MAGLEV_OFFSET_KEY},
    limits::{MAX_SERVICES, RING_CHUNK_SLOTS},
    service::{Method, ServiceDetail},
    table::StickyKey,
};

use super::{
    Xdp,
    dump::{host, service_name},
    flows::Flow,
    maps::PodStickyKey,
};
use crate::{
    dataplane::{FlowEntry, FlowPage, FlowQuery, Why, WhyQuery, plan::PlannedService},
    model::{Protocol, SourceRule, address::wire},
};

/// Who is asked for.
enum Client {
    Any,
    Exactly(SocketAddr),
    Within(Address, u8),
}

impl Client {
    fn parse(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text else {
            return Ok(Client::Any);
        };
        if let Ok(exact) = text.parse() {
            return Ok(Client::Exactly(exact));
        }
        match network(text) {
            Some((address, bits)) => Ok(Client::Within(address, bits)),
            None => Err(format!(
                "`{text}` is no client: write an address, a network, or an address with a port"
            )),
        }
    }

    fn wants(&self, flow: &Flow) -> bool {
        match self {
            Client::Any => true,
            Client::Exactly(exact) => exact.ip() == flow.client && exact.port() == flow.client_port,
            Client::Within(network, bits) => {
                network.network(*bits) == wire(flow.client).network(*bits)
            }
        }
    }
}

/// An address or a network, and how many bits of it count (IPv4 prefixes are 96 longer).
pub fn network(text: &str) -> Option<(Address, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (offset, most) = if address.is_ipv4() {
        (96, 32)
    } else {
        (0, 128)
    };
    let length = length.unwrap_or(most);
    (length <= most).then_some((wire(address), length + offset))
}

impl Xdp {
    pub(super) fn answer_flows(&self, query: &FlowQuery) -> Result<FlowPage, String> {
        let client = Client::parse(query.client.as_deref())?;
        let now = self.clock.now();
        let is_service = |id: u16| {
            query.service.as_deref().is_none_or(|name| {
                let service = self.identities.service(id);
                service.is_some_and(|service| service.is_called(name))
            })
        };
        let is_backend = |id: u16| {
            let asked = query.backend.as_deref();
            asked.is_none_or(|name| name.eq_ignore_ascii_case(&host(self, id)))
        };
        let flows = self.flows.list(now, |flow| {
            client.wants(flow) && is_service(flow.service) && is_backend(flow.value.backend())
        });
        let mut keyed: Vec<&Flow> = flows.iter().collect();
        keyed.sort_by_key(|flow| (flow.client, flow.client_port, flow.service, flow.vip_port));
        let page = keyed
            .iter()
            .skip(query.offset)
            .take(query.limit)
            .map(|flow| self.flow_entry(flow, now))
            .collect();
        Ok(FlowPage {
            total: flows.len(),
            offset: query.offset,
            flows: page,
        })
    }

    fn flow_entry(&self, flow: &Flow, now: u32) -> FlowEntry {
        let state = match flow.table {
            FlowTable::Udp
            | FlowTable::WideUdp
            | FlowTable::UdpHalfOpen
            | FlowTable::WideUdpHalfOpen => "udp",
            _ if flow.value.is_closing() => "closing",
            FlowTable::TcpHalfOpen | FlowTable::WideTcpHalfOpen => "half-open",
            FlowTable::Tcp | FlowTable::WideTcp => "established",
        };
        FlowEntry {
            client: SocketAddr::new(flow.client, flow.client_port).to_string(),
            service: service_name(self, flow.service).unwrap_or_default(),
            port: (flow.vip_port != 0).then_some(flow.vip_port),
            backend: host(self, flow.value.backend()),
            state: state.to_owned(),
            expires_in_s: self.clock.seconds(flow.value.expires().wrapping_sub(now)),
        }
    }

    pub(super) fn answer_why(&self, query: &WhyQuery) -> Result<Why, String> {
        let socket = |text: &str, what: &str| {
            let parsed: Result<SocketAddr, _> = text.parse();
            parsed.map_err(|_| format!("`{text}` is no {what}: write an address with a port"))
        };
        let client = socket(&query.client, "client")?;
        let vip = socket(&query.vip, "VIP")?;
        let protocol = match query.protocol.as_deref().unwrap_or("tcp") {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(format!("`{other}` is no protocol: tcp, udp or sctp")),
        };
        let mut why = Why {
            service: None,
            backend: None,
            because: String::new(),
            steps: Vec::new(),
        };
        why.because = match self.follow(client, vip, protocol, &mut why) {
            Ok(because) => because.to_owned(),
            Err(reason) => reason.to_owned(),
        };
        Ok(why)
    }

    /// The steps of the program, from what the maps hold now. `Err` is a reason's name.
    fn follow(
        &self,
        client: SocketAddr,
        vip: SocketAddr,
        protocol: Protocol,
        why: &mut Why,
    ) -> Result<&'static str, &'static str> {
        let step = |why: &mut Why, text: String| why.steps.push(text);
        let Some(service) = self.service_at(vip, protocol) else {
            step(
                why,
                format!("no service at {protocol} {vip}: the packet passes to the kernel"),
            );
            return Err("not_a_service");
        };
        why.service = Some(service.id.to_string());
        step(
            why,
            format!("service {} ({})", service.id, service.scheduler),
        );
        if !self.control.is_serving(service.role) {
            step(
                why,
                "its VRRP instance is not MASTER here: the packet passes".to_owned(),
            );
            return Err("not_master");
        }
        if self.sources.rule_of(client.ip()) == Some(SourceRule::Block) {
            step(
                why,
                format!("{} is on the blocklist: the packet is dropped", client.ip()),
            );
            return Err("blocked");
        }
        let id = self.service_ids.get(&service.id).unwrap_or_default();
        if let Some(value) = self.flow_of(client, vip, id, step, why) {
            why.backend = Some(host(self, value.backend()));
            return self.deliverable(value.backend(), why).map(|()| "flow");
        }
        step(
            why,
            "no flow of this client is known: it is a new connection".to_owned(),
        );
        let detail = self
            .details
            .load((self.control.live() * MAX_SERVICES + u32::from(id)) as usize);
        if detail.ring_len == 0 {
            step(
                why,
                "no real server and no sorry server takes it: the packet passes".to_owned(),
            );
            return Err("no_backend");
        }
        let (backend, because) = self.scheduled(&detail, service, client, id, why)?;
        why.backend = Some(host(self, backend));
        let sorry = self
            .identities
            .backend(backend)
            .is_some_and(|(.., sorry)| sorry);
        self.deliverable(backend, why)?;
        Ok(if sorry { "sorry" } else { because })
    }

    fn service_at(&self, vip: SocketAddr, protocol: Protocol) -> Option<&PlannedService> {
        let fits = |service: &&PlannedService| {
            service.id.address == vip.ip()
                && service.id.protocol == protocol
                && (service.id.ports.first..=service.id.ports.last).contains(&vip.port())
        };
        let candidates = self.plan.services.iter().filter(fits);
        // One port before a range before all.
        candidates.min_by_key(|service| service.id.ports.last - service.id.ports.first)
    }

    fn flow_of(
        &self,
        client: SocketAddr,
        vip: SocketAddr,
        service: u16,
        step: impl Fn(&mut Why, String),
        why: &mut Why,
    ) -> Option<FlowValue> {
        let now = self.clock.now();
        let wanted = |flow: &Flow| {
            flow.client == client.ip()
                && flow.client_port == client.port()
                && flow.service == service
                && (flow.vip_port == 0 || flow.vip_port == vip.port())
        };
        let flows = self.flows.list(now, wanted);
        let flow = flows.iter().find(|flow| {
            let element = self.backends.load(usize::from(flow.value.backend()));
            element.flags() & BackendFlags::ALIVE != 0
        })?;
        let entry = self.flow_entry(flow, now);
        step(
            why,
            format!(
                "a known flow ({}, {} s of silence left) keeps {}",
                entry.state, entry.expires_in_s, entry.backend
            ),
        );
        Some(flow.value)
    }

    /// Whom the scheduler would choose now.
    fn scheduled(
        &self,
        detail: &ServiceDetail,
        service: &PlannedService,
        client: SocketAddr,
        id: u16,
        why: &mut Why,
    ) -> Result<(u16, &'static str), &'static str> {
        if detail.sticky_ticks != 0
            && let Some(backend) = self.stuck_to(detail, client.ip(), id)
        {
            why.steps.push(format!(
                "persistence: the client sticks to {}",
                host(self, backend)
            ));
            return Ok((backend, "persistence"));
        }
        let at = |turn: u64| {
            let slot = detail.ring_first + (turn % u64::from(detail.ring_len)) as u32;
            let chunk = self.rings.load((slot / RING_CHUNK_SLOTS) as usize);
            chunk.slots[(slot % RING_CHUNK_SLOTS) as usize]
        };
        let port = if detail.method & Method::PORT != 0 {
            client.port()
        } else {
            0
        };
        let subject = hashing::subject(wire(client.ip()), port);
        let (backend, because, text) = match detail.method & Method::KIND {
            Method::SOURCE => {
                let place = hashing::source_bucket(subject);
                (
                    at(u64::from(place)),
                    "hash",
                    format!("sh: bucket {place} of 256"),
                )
            }
            Method::MAGLEV => {
                let place = hashing::maglev(subject, MAGLEV_OFFSET_KEY) % detail.ring_len.max(1);
                (
                    at(u64::from(place)),
                    "hash",
                    format!("mh: place {place} of {}", detail.ring_len),
                )
            }
            Method::FIRST => (at(0), "first", "fo: the highest weight".to_owned()),
            Method::LEAST | Method::WEIGHTED_LEAST => {
                let weighted = detail.method & Method::KIND == Method::WEIGHTED_LEAST;
                let best = self.least_loaded(service, weighted);
                (
                    best.unwrap_or(0),
                    "least",
                    format!("{}: the fewest connections", service.scheduler),
                )
            }
            _ => {
                let turn = self.cursors.load(usize::from(id)).next;
                let slot = turn % u64::from(detail.ring_len);
                (
                    at(turn),
                    "ring",
                    format!("ring slot {slot} of {} is next", detail.ring_len),
                )
            }
        };
        why.steps.push(text);
        if backend == 0 {
            why.steps
                .push("nobody is there: the packet passes to the kernel".to_owned());
            return Err("no_backend");
        }
        let element = self.backends.load(usize::from(backend));
        if element.flags() & BackendFlags::DRAINING != 0 {
            let fallback = detail.method & Method::FALLBACK != 0;
            why.steps
                .push(format!("{} takes no new connections", host(self, backend)));
            if !fallback {
                return Err("no_backend");
            }
            why.steps.push("the fallback looks for another".to_owned());
        }
        Ok((backend, because))
    }

    fn stuck_to(&self, detail: &ServiceDetail, client: IpAddr, service: u16) -> Option<u16> {
        let key = PodStickyKey(StickyKey {
            client: wire(client).network(detail.sticky_bits as u8),
            service: u64::from(service),
        });
        let value = self
            .sticky
            .get(&key, 0)
            .or_else(|_| self.sticky_new.get(&key, 0))
            .ok()?;
        let value = FlowValue(value);
        (!value.is_free(self.clock.now())).then_some(value.backend())
    }

    fn least_loaded(&self, service: &PlannedService, weighted: bool) -> Option<u16> {
        let ids = super::keys(service).map(|key| self.backend_id(&key));
        let usable = ids.filter(|id| {
            let flags = self.backends.load(usize::from(*id)).flags();
            flags & (BackendFlags::ALIVE | BackendFlags::DRAINING) == BackendFlags::ALIVE
        });
        usable.min_by(|a, b| {
            let load = |id: &u16| self.loads.load(usize::from(*id));
            let (a, b) = (load(a), load(b));
            let weight = |w: u32| if weighted { u64::from(w) } else { 1 };
            let all = |l: &lb_common::table::Load| {
                let (active, inactive) = l.connections();
                (active << 8).wrapping_add(inactive)
            };
            (all(&a).wrapping_mul(weight(b.weight))).cmp(&all(&b).wrapping_mul(weight(a.weight)))
        })
    }

    /// Whether packets can be sent to a backend now.
    fn deliverable(&self, backend: u16, why: &mut Why) -> Result<(), &'static str> {
        let flags = self.backends.load(usize::from(backend)).flags();
        if flags & BackendFlags::LOCAL != 0 {
            why.steps
                .push("it is this host: the packet goes to its own stack".to_owned());
            return Ok(());
        }
        if flags & BackendFlags::RESOLVED == 0 {
            why.steps
                .push("its MAC address is not known: the packet passes".to_owned());
            return Err("neighbour_unknown");
        }
        let way = if flags & BackendFlags::TUNNEL != 0 {
            "in a tunnel"
        } else {
            "by direct return"
        };
        why.steps
            .push(format!("forwarded to {} {way}", host(self, backend)));
        Ok(())
    }
}
