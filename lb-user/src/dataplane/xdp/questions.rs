//! Answers to operators: which flows there are, and what would become of a packet.

mod newcomer;

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    Address, BackendFlags,
    flow::{FlowKey, FlowValue},
    wide::WideKey,
};

use super::{
    Xdp,
    dump::{host, service_name},
    flows::{Flow, Homeless},
    maps::PodWideKey,
};
use crate::{
    dataplane::{
        FlowEntry, FlowPage, FlowQuery, Why, WhyQuery, carried::Phase, plan::PlannedService,
    },
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
        let wanted = |flow: &Flow| {
            client.wants(flow) && is_service(flow.service) && is_backend(flow.value.backend())
        };
        let mut flows = self.flows.list(now, wanted);
        let spilled = self.all_spilled(|id| self.identities.service(id));
        flows.extend(spilled.into_iter().filter(wanted));
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
        FlowEntry {
            client: SocketAddr::new(flow.client, flow.client_port).to_string(),
            service: service_name(self, flow.service).unwrap_or_default(),
            port: (flow.vip_port != 0).then_some(flow.vip_port),
            backend: host(self, flow.value.backend()),
            state: flow.phase().label().to_owned(),
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
        let (backend, because) = self.newcomer(service, client, id, why)?;
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
        let mut flows = self.flows.list(now, wanted);
        flows.extend(self.spilled(client, vip, service, now));
        let flow = flows.iter().find(|flow| {
            let element = self.backends.load(usize::from(flow.value.backend()));
            element.flags() & BackendFlags::ALIVE != 0
        })?;
        let entry = self.flow_entry(flow, now);
        let reopened = match flow.phase() {
            Phase::Closing => "; a SYN would be a new connection",
            Phase::Opening | Phase::Established | Phase::Datagrams | Phase::Sticks => "",
        };
        step(
            why,
            format!(
                "a known flow ({}, {} s of silence left) keeps {}{reopened}",
                entry.state, entry.expires_in_s, entry.backend
            ),
        );
        Some(flow.value)
    }

    /// The client's flow, where it found no room in its bucket.
    fn spilled(&self, client: SocketAddr, vip: SocketAddr, service: u16, now: u32) -> Option<Flow> {
        let id = self.identities.service(service)?;
        let (port_be, vport_be) = (client.port().to_be(), vip.port().to_be());
        let flow = match (client.ip(), id.ports.single()) {
            (IpAddr::V4(address), Some(_)) => {
                let key = FlowKey::new(u32::from_ne_bytes(address.octets()), port_be, service);
                Homeless::Narrow(key, FlowValue(self.spill.get(&key.0, 0).ok()?))
            }
            (address, _) => {
                let key = WideKey::new(wire(address), port_be, vport_be, service);
                let value = self.wide_spill.get(&PodWideKey(key), 0).ok()?;
                Homeless::Wide(key, FlowValue(value))
            }
        };
        let is_udp = id.protocol == Protocol::Udp;
        (!flow.value().is_free(now)).then(|| Flow::spilled(flow, is_udp))
    }

    /// Whether packets can be sent to a backend now.
    fn deliverable(&self, backend: u16, why: &mut Why) -> Result<(), &'static str> {
        let flags = self.backends.load(usize::from(backend)).flags();
        if flags & BackendFlags::LOCAL != 0 {
            why.steps
                .push("it is this host: the packet goes to its own stack".to_owned());
            return Ok(());
        }
        if flags & BackendFlags::RESET != 0 {
            why.steps.push(format!(
                "{} is down, and its connections are reset: the client gets a RST",
                host(self, backend)
            ));
            return Err("reset");
        }
        let slow = self.has_slow_way(backend);
        if flags & BackendFlags::RESOLVED == 0 {
            let end = match slow {
                true => " to IPVS, which finds it out and sends the packet there (slow path)",
                false => "",
            };
            why.steps.push(format!(
                "its MAC address is not known: the packet passes{end}"
            ));
            return Err("neighbour_unknown");
        }
        let way = if flags & BackendFlags::TUNNEL != 0 {
            "in a tunnel"
        } else {
            "by direct return"
        };
        why.steps
            .push(format!("forwarded to {} {way}", host(self, backend)));
        if flags & BackendFlags::NO_REDIRECT != 0 {
            let index = self.backends.load(usize::from(backend)).ifindex;
            let end = match slow {
                true => " to IPVS, which sends them there (slow path)",
                false => "",
            };
            why.steps.push(format!(
                "only if it came in by {}: its driver cannot send what XDP redirects, and other packets pass \
                 (no_redirect){end}",
                super::ways::name(index as u32)
            ));
        }
        Ok(())
    }
}
