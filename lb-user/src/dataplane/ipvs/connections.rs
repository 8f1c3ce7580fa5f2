//! The kernel's table of connections (/proc/net/ip_vs_conn), and answers to operators from it.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    dataplane::{
        FlowEntry, FlowPage, FlowQuery, Plan, Why, WhyQuery,
        carried::Phase,
        plan::{BackendState, PlannedService},
    },
    model::{Protocol, Target},
};

/// Of the network namespace of the thread that asks.
const FILE: &str = "/proc/thread-self/net/ip_vs_conn";

/// The kernel's names of the states before a connection is established: `tcp_state_name_table` and
/// `sctp_state_name_table` of net/netfilter/ipvs.
const OPENING: [&str; 12] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "SYNACK",
    "LISTEN",
    "INIT",
    "INIT1",
    "COOKIE_SENT",
    "COOKIE_REPLIED",
    "COOKIE_WAIT",
    "COOKIE",
    "COOKIE_ECHOED",
];

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub server: SocketAddr,
    pub state: String,
    pub expires_in_s: u64,
}

impl Connection {
    /// Clients that stick are entries without a port.
    pub fn is_template(&self) -> bool {
        self.client.port() == 0
    }
}

/// All of it.
pub(super) fn read() -> Result<Vec<Connection>, String> {
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    Ok(text.lines().filter_map(line).collect())
}

/// Those of TCP that are half-open.
pub(super) fn opening() -> Result<Vec<Connection>, String> {
    let mut all = read()?;
    all.retain(|c| c.protocol == Protocol::Tcp && phase_of(c) == Phase::Opening);
    Ok(all)
}

/// "TCP 0A090002 D594 0A090001 0050 0A080002 0050 TIME_WAIT 103"; IPv6 addresses are written out.
fn line(text: &str) -> Option<Connection> {
    let mut words = text.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let mut endpoint = || {
        let address = address(words.next()?)?;
        let port = u16::from_str_radix(words.next()?, 16).ok()?;
        Some(SocketAddr::new(address, port))
    };
    let (client, vip, server) = (endpoint()?, endpoint()?, endpoint()?);
    Some(Connection {
        protocol,
        client,
        vip,
        server,
        state: words.next()?.to_owned(),
        expires_in_s: words.next()?.parse().ok()?,
    })
}

fn address(text: &str) -> Option<IpAddr> {
    match text.contains(':') {
        true => {
            let bare = text.trim_matches(|c| c == '[' || c == ']');
            bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        false => {
            let number = u32::from_str_radix(text, 16).ok()?;
            Some(Ipv4Addr::from(number).into())
        }
    }
}

/// The services of a plan, by what the kernel's entries say.
pub(super) struct Services<'p> {
    of_one_port: HashMap<(Protocol, SocketAddr), &'p PlannedService>,
    /// In the order of the plan.
    of_several: HashMap<(Protocol, IpAddr), Vec<&'p PlannedService>>,
}

impl<'p> Services<'p> {
    pub fn of(plan: Option<&'p Plan>) -> Self {
        let mut services = Self {
            of_one_port: HashMap::new(),
            of_several: HashMap::new(),
        };
        for service in plan.into_iter().flat_map(|plan| &plan.services) {
            let (protocol, address) = (service.id.protocol, service.id.address);
            match service.id.ports.single() {
                Some(port) => {
                    let vip = SocketAddr::new(address, port);
                    let entry = services.of_one_port.entry((protocol, vip));
                    entry.or_insert(service);
                }
                None => {
                    let entry = services.of_several.entry((protocol, address));
                    entry.or_default().push(service);
                }
            }
        }
        services
    }

    /// The service that a connection belongs to: one of all ports stands behind those of one.
    pub fn of_connection(&self, connection: &Connection) -> Option<&'p PlannedService> {
        self.find(connection.protocol, connection.vip)
    }

    fn find(&self, protocol: Protocol, vip: SocketAddr) -> Option<&'p PlannedService> {
        if let Some(service) = self.of_one_port.get(&(protocol, vip)) {
            return Some(service);
        }
        let has_port = |service: &&&PlannedService| {
            let ports = service.id.ports;
            (ports.first..=ports.last).contains(&vip.port())
        };
        let several = self.of_several.get(&(protocol, vip.ip()))?;
        several.iter().find(has_port).copied()
    }
}

/// As in the other data plane: the director's own stack is "local".
fn name_of(server: SocketAddr) -> String {
    match server.ip().is_loopback() {
        true => "local".to_owned(),
        false => server.ip().to_string(),
    }
}

/// How far a connection is.
pub(super) fn phase_of(connection: &Connection) -> Phase {
    let has_state = |names: &[&str]| names.contains(&connection.state.as_str());
    match connection.protocol {
        _ if connection.is_template() => Phase::Sticks,
        Protocol::Udp => Phase::Datagrams,
        Protocol::Tcp | Protocol::Sctp if has_state(&["ESTABLISHED"]) => Phase::Established,
        Protocol::Tcp | Protocol::Sctp if has_state(&OPENING) => Phase::Opening,
        Protocol::Tcp | Protocol::Sctp => Phase::Closing,
    }
}

fn entry(service: &PlannedService, connection: &Connection) -> FlowEntry {
    let single = service.id.ports.single().is_some();
    FlowEntry {
        client: connection.client.to_string(),
        service: service.id.to_string(),
        port: (!single).then_some(connection.vip.port()),
        backend: name_of(connection.server),
        state: phase_of(connection).label().to_owned(),
        expires_in_s: connection.expires_in_s,
    }
}

/// Who is asked for: an address, a network, or an address with a port.
enum Client {
    Any,
    Exactly(SocketAddr),
    Within(IpAddr, u8),
}

impl Client {
    fn parse(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text else {
            return Ok(Client::Any);
        };
        let network = || {
            let (address, length) = match text.split_once('/') {
                Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let length = length.unwrap_or(most);
            (length <= most).then_some(Client::Within(address, length))
        };
        match text.parse() {
            Ok(exact) => Ok(Client::Exactly(exact)),
            Err(_) => network().ok_or_else(|| {
                format!(
                    "`{text}` is no client: write an address, a network, or an address with a port"
                )
            }),
        }
    }

    fn wants(&self, client: SocketAddr) -> bool {
        match self {
            Client::Any => true,
            Client::Exactly(exact) => *exact == client,
            Client::Within(network, length) => same_network(*network, client.ip(), *length),
        }
    }
}

fn same_network(a: IpAddr, b: IpAddr, length: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let differing = bits(a) ^ bits(b);
    a.is_ipv4() == b.is_ipv4() && differing.leading_zeros() >= u32::from(length)
}

/// A page of the connections that are wanted. `is_probe` says which are our own health checks, by client,
/// VIP and real server: those are nobody's.
pub fn flows(
    plan: Option<&Plan>,
    query: &FlowQuery,
    is_probe: impl Fn(SocketAddr, SocketAddr, SocketAddr) -> bool,
) -> Result<FlowPage, String> {
    let mut connections = read()?;
    connections.retain(|c| !is_probe(c.client, c.vip, c.server));
    page(plan, query, connections)
}

fn page(
    plan: Option<&Plan>,
    query: &FlowQuery,
    mut connections: Vec<Connection>,
) -> Result<FlowPage, String> {
    let client = Client::parse(query.client.as_deref())?;
    connections.retain(|c| !c.is_template() && client.wants(c.client));
    connections.sort_by_key(|c| (c.client, c.vip));
    let services = Services::of(plan);
    let wanted = |connection: &Connection| {
        let service = services.of_connection(connection)?;
        let by_service = query.service.as_deref();
        let by_backend = query.backend.as_deref();
        (by_service.is_none_or(|name| service.id.is_called(name))
            && by_backend.is_none_or(|name| name.eq_ignore_ascii_case(&name_of(connection.server))))
        .then(|| entry(service, connection))
    };
    let all: Vec<FlowEntry> = connections.iter().filter_map(wanted).collect();
    Ok(FlowPage {
        total: all.len(),
        offset: query.offset,
        flows: all
            .into_iter()
            .skip(query.offset)
            .take(query.limit)
            .collect(),
    })
}

/// What would become of a packet, as far as it can be known: the kernel's scheduler keeps its
/// thoughts to itself.
pub fn why(plan: Option<&Plan>, query: &WhyQuery) -> Result<Why, String> {
    answer(plan, query, &read()?)
}

fn answer(plan: Option<&Plan>, query: &WhyQuery, table: &[Connection]) -> Result<Why, String> {
    let endpoint = |text: &str| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("`{text}` is no address with a port"))
    };
    let (client, vip) = (endpoint(&query.client)?, endpoint(&query.vip)?);
    let protocol = match query.protocol.as_deref().unwrap_or("tcp") {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(format!("`{other}` is no protocol: tcp, udp or sctp")),
    };
    let mut steps = Vec::new();
    let Some(service) = Services::of(plan).find(protocol, vip) else {
        steps.push(format!("no service has {protocol} {vip}"));
        return Ok(Why {
            service: None,
            backend: None,
            because: "no_service".to_owned(),
            steps,
        });
    };
    steps.push(format!("service {} ({})", service.id, service.scheduler));
    let done = |backend: Option<String>, because: &str, steps| Why {
        service: Some(service.id.to_string()),
        backend,
        because: because.to_owned(),
        steps,
    };
    let of = |c: &&Connection| c.protocol == protocol && c.client == client && c.vip == vip;
    if let Some(known) = table.iter().find(of) {
        let server = name_of(known.server);
        steps.push(format!(
            "the kernel knows this connection ({}), for {} s more",
            known.state, known.expires_in_s
        ));
        return Ok(done(Some(server), "flow", steps));
    }
    steps.push("the kernel does not know this connection: it is a new one".to_owned());
    if let Some(bond) = service.persistence {
        let sticks = |c: &&Connection| {
            c.is_template()
                && c.protocol == protocol
                && c.vip.ip() == vip.ip()
                && [0, vip.port()].contains(&c.vip.port())
                && same_network(c.client.ip(), client.ip(), bond.prefix)
        };
        if let Some(template) = table.iter().find(sticks) {
            steps.push(format!(
                "the client sticks, for {} s more",
                template.expires_in_s
            ));
            return Ok(done(Some(name_of(template.server)), "persistence", steps));
        }
    }
    let up: Vec<_> = service
        .backends
        .iter()
        .filter(|backend| backend.state == BackendState::Up && backend.weight > 0)
        .collect();
    let names: Vec<String> = up
        .iter()
        .map(|backend| match backend.target {
            Target::Local => "local".to_owned(),
            Target::Host(address) => format!("{address} (weight {})", backend.weight),
        })
        .collect();
    Ok(match up.as_slice() {
        [] => {
            steps.push("no real server takes new connections".to_owned());
            done(None, "no_backend", steps)
        }
        [only] => {
            let because = if only.sorry { "sorry" } else { "ring" };
            steps.push("it is the only one that takes new connections".to_owned());
            let name = match only.target {
                Target::Local => "local".to_owned(),
                Target::Host(address) => address.to_string(),
            };
            done(Some(name), because, steps)
        }
        _ => {
            steps.push(format!(
                "the kernel's scheduler {} chooses among {}",
                service.scheduler,
                names.join(", ")
            ));
            done(None, "kernel", steps)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::plan::PlannedBackend,
        model::{Persistence, Scheduler, ServiceId},
    };

    /// As Linux 6.1 printed it.
    const TABLE: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090002 0000 0A090001 0051 0A080002 0051 NONE             52
TCP 0A090002 D594 0A090001 0050 0A080002 0050 TIME_WAIT       103
UDP 0A090002 CDBD 0A090001 0035 0A080002 0035 UDP             291
TCP 2001:0db8:0009:0000:0000:0000:0000:0002 A5B4 2001:0db8:0009:0000:0000:0000:0000:0001 0050 2001:0db8:0008:0000:0000:0000:0000:0002 0050 ESTABLISHED   899
TCP 0A090003 B57A 0A090001 0051 7F000001 0051 SYN_RECV         54
odd line
TCP 0A09
";

    fn plan() -> Plan {
        let service = |vip: &str, protocol| {
            let id = ServiceId::new(protocol, vip.parse().unwrap());
            let servers = [2, 3].map(|last| {
                let target = Target::Host(IpAddr::from([10, 8, 0, last]));
                PlannedBackend::new(target, 1, BackendState::Up)
            });
            PlannedService::new(id, 0, Scheduler::Wrr, servers.to_vec())
        };
        let mut sticky = service("10.9.0.1:81", Protocol::Tcp);
        sticky.persistence = Some(Persistence {
            timeout: std::time::Duration::from_secs(60),
            prefix: 32,
            engine: None,
        });
        Plan::of(vec![
            service("10.9.0.1:80", Protocol::Tcp),
            sticky,
            service("[2001:db8:9::1]:80", Protocol::Tcp),
        ])
    }

    fn table() -> Vec<Connection> {
        TABLE.lines().filter_map(line).collect()
    }

    #[test]
    fn lines_are_read_and_odd_ones_passed_over() {
        assert_eq!(table().len(), 5);
        let query = FlowQuery {
            limit: 10,
            ..FlowQuery::default()
        };
        let page = page(Some(&plan()), &query, table()).unwrap();
        let seen: Vec<_> = page
            .flows
            .iter()
            .map(|f| {
                (
                    f.client.as_str(),
                    f.backend.as_str(),
                    f.state.as_str(),
                    f.expires_in_s,
                )
            })
            .collect();
        // Neither the client that sticks nor the connection of a service that is not ours.
        assert_eq!(
            seen,
            [
                ("10.9.0.2:54676", "10.8.0.2", "closing", 103),
                ("10.9.0.3:46458", "local", "half-open", 54),
                ("[2001:db8:9::2]:42420", "2001:db8:8::2", "established", 899),
            ]
        );
    }

    #[test]
    fn flows_are_chosen() {
        let count = |client: Option<&str>, backend: Option<&str>, service: Option<&str>| {
            let query = FlowQuery {
                client: client.map(str::to_owned),
                backend: backend.map(str::to_owned),
                service: service.map(str::to_owned),
                offset: 0,
                limit: 10,
            };
            page(Some(&plan()), &query, table()).map(|page| page.total)
        };
        assert_eq!(count(Some("10.9.0.0/24"), None, None), Ok(2));
        assert_eq!(count(Some("10.9.0.2:54676"), None, None), Ok(1));
        assert_eq!(count(None, Some("LOCAL"), None), Ok(1));
        assert_eq!(count(None, None, Some("tcp 10.9.0.1:81")), Ok(1));
        assert!(count(Some("nonsense"), None, None).is_err());
    }

    #[test]
    fn why() {
        let ask = |client: &str, vip: &str| {
            let query = WhyQuery {
                client: client.to_owned(),
                vip: vip.to_owned(),
                protocol: None,
            };
            let why = answer(Some(&plan()), &query, &table()).unwrap();
            (why.backend, why.because)
        };
        let server = |name: &str| Some(name.to_owned());
        assert_eq!(
            ask("10.9.0.2:54676", "10.9.0.1:80"),
            (server("10.8.0.2"), "flow".to_owned())
        );
        assert_eq!(
            ask("10.9.0.2:9", "10.9.0.1:81"),
            (server("10.8.0.2"), "persistence".to_owned())
        );
        assert_eq!(
            ask("10.9.0.9:9", "10.9.0.1:81"),
            (None, "kernel".to_owned())
        );
        assert_eq!(
            ask("10.9.0.9:9", "10.9.0.1:99"),
            (None, "no_service".to_owned())
        );
    }
}
