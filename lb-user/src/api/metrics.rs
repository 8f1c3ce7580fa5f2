//! The status as Prometheus reads it. Pure: every scrape makes its registry from one status.
//!
//! docs/metrics.md says what each name means. Names and labels are an interface: what is there stays.

mod checks;
mod pools;

use std::{fmt::Debug, hash::Hash};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::proto::{
    BackendSnapshot, FlowTableSnapshot, InstanceStatus, Peer, ServiceSnapshot, Status,
};
use crate::{dataplane::Snapshot, model::VrrpState};

/// `GET`: the metrics.
pub const PATH: &str = "/metrics";
/// OpenMetrics, which Prometheus asks for and other readers of its format understand.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Numbers<L> = Family<L, Gauge<f64, std::sync::atomic::AtomicU64>>;

/// What a family can be labelled with.
trait Label: Clone + Hash + Eq + EncodeLabelSet + Send + Sync + Debug + 'static {}

impl<L: Clone + Hash + Eq + EncodeLabelSet + Send + Sync + Debug + 'static> Label for L {}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct About {
    version: String,
    router_id: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Nothing {}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    instance: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    instance: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPeer {
    instance: String,
    what: String,
    peer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    service: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfServer {
    service: String,
    server: String,
    sorry: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Chosen {
    kind: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Taken {
    to: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfInterface {
    interface: String,
    mode: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTable {
    table: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    result: String,
}

/// Everything, in the text format. The format cannot fail; should it, there is nothing to read.
pub fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("lbd");
    daemon(&mut registry, status);
    instances(&mut registry, &status.instances);
    services(&mut registry, status);
    pools::pools(&mut registry, status);
    checks::checks(&mut registry, status);
    data_plane(&mut registry, &status.data_plane);
    let mut out = String::new();
    match text::encode(&mut out, &registry) {
        Ok(()) => out,
        Err(std::fmt::Error) => String::new(),
    }
}

/// A gauge with a value for each row.
fn gauge<L: Label>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, f64)>,
) {
    registry.register(name, help, filled(rows));
}

/// The same in seconds, which the name ends in.
fn seconds<L: Label>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, f64)>,
) {
    registry.register_with_unit(name, help, Unit::Seconds, filled(rows));
}

/// A counter with a count for each row; the text has `_total` behind the name.
fn counter<L: Label>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, u64)>,
) {
    let family: Family<L, Counter> = Family::default();
    for (labels, count) in rows {
        family.get_or_create(&labels).inc_by(count);
    }
    registry.register(name, help, family);
}

fn filled<L: Label>(rows: impl IntoIterator<Item = (L, f64)>) -> Numbers<L> {
    let family = Numbers::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).set(value);
    }
    family
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn daemon(registry: &mut Registry, status: &Status) {
    let about = About {
        version: status.version.clone(),
        router_id: status.router_id.clone(),
    };
    let help = "Version and name of this director; always 1";
    gauge(registry, "build_info", help, [(about, 1.0)]);
    let uptime = [(Nothing {}, status.uptime_s as f64)];
    seconds(registry, "uptime", "Time since lbd started", uptime);
    let help = "Lines that lbctl status calls a PROBLEM";
    let problems = [(Nothing {}, status.problems.len() as f64)];
    gauge(registry, "problems", help, problems);
    let reloads = [
        ("applied", status.reloads.applied),
        ("refused", status.reloads.refused),
    ];
    let labelled = reloads.map(|(result, count)| {
        let result = result.to_owned();
        (OfResult { result }, count)
    });
    let help = "Reloads of the configuration by their result";
    counter(registry, "reloads", help, labelled);
}

fn instances(registry: &mut Registry, instances: &[InstanceStatus]) {
    let name = |instance: &InstanceStatus| Of {
        instance: instance.name.clone(),
    };
    let in_state = |instance: &InstanceStatus, state: VrrpState| OfState {
        instance: instance.name.clone(),
        state: state.to_string(),
    };
    let all = || instances.iter();
    let gauges = |value: fn(&InstanceStatus) -> f64| all().map(move |i| (name(i), value(i)));
    let counts = |count: fn(&InstanceStatus) -> u64| all().map(move |i| (name(i), count(i)));
    let of_peers = |value: fn(&Peer) -> f64| {
        all().filter_map(move |i| Some((name(i), value(i.peer.as_ref()?))))
    };

    let states = all()
        .flat_map(|i| VrrpState::ALL.map(|state| (in_state(i, state), flag(state == i.state))));
    let help = "1 for the state that the instance is in, 0 for the others";
    gauge(registry, "vrrp_state", help, states);
    let help = "When that state was entered, in seconds since 1970";
    let since = gauges(|i| i.since as f64);
    gauge(registry, "vrrp_state_since_timestamp_seconds", help, since);
    let priorities = gauges(|i| f64::from(i.priority));
    gauge(registry, "vrrp_priority", "Priority in force", priorities);
    let entered = all().flat_map(|i| {
        let states = i.entered.iter();
        states.map(move |(state, count)| (in_state(i, *state), *count))
    });
    let help = "Times that a state was entered";
    counter(registry, "vrrp_transitions", help, entered);
    let help = "Adverts sent, each copy to a peer for itself";
    counter(registry, "vrrp_adverts_sent", help, counts(|i| i.sent));
    let help = "Adverts that could not be sent";
    let failed = counts(|i| i.send_errors);
    counter(registry, "vrrp_adverts_not_sent", help, failed);
    let help = "Adverts that were believed";
    let received = counts(|i| i.received);
    counter(registry, "vrrp_adverts_received", help, received);
    let disagreements = all().flat_map(|i| {
        i.disagreements.iter().map(|one| {
            let labels = OfPeer {
                instance: i.name.clone(),
                what: one.what.clone(),
                peer: one.peer.clone().unwrap_or_default(),
            };
            (labels, one.count)
        })
    });
    let help = "Adverts that were not believed, or that should not be, by kind and sender";
    counter(registry, "vrrp_disagreements", help, disagreements);
    let help = "The longest that an advert was late since the start";
    let late = gauges(|i| i.worst_lateness_us as f64 / 1e6);
    seconds(registry, "vrrp_advert_lateness_max", help, late);
    let help = "Gratuitous ARP and unsolicited neighbour advertisements sent";
    let announced = counts(|i| i.announcements);
    counter(registry, "vrrp_announcements", help, announced);
    let help = "Time since the last advert of another router; absent before the first";
    let heard = of_peers(|peer| peer.heard_ms_ago as f64 / 1e3);
    seconds(registry, "vrrp_peer_heard_ago", help, heard);
    let help = "Priority in that advert";
    let priorities = of_peers(|peer| f64::from(peer.priority));
    gauge(registry, "vrrp_peer_priority", help, priorities);
}

fn services(registry: &mut Registry, status: &Status) {
    let all = || status.data_plane.services.iter();
    let of = |service: &ServiceSnapshot| OfService {
        service: service_name(service),
    };
    let own = |service: &'_ ServiceSnapshot, wanted: fn(&BackendSnapshot) -> bool| {
        let servers = service.backends.iter().filter(|server| !server.sorry);
        servers.filter(|server| wanted(server)).count() as f64
    };
    let serving = all().map(|s| (of(s), flag(s.serving || s.always)));
    let help = "1 while this director forwards the service's packets";
    gauge(registry, "service_serving", help, serving);
    let help = "Real servers of the service that take new connections";
    let up = all().map(|s| (of(s), own(s, is_up)));
    gauge(registry, "service_servers_up", help, up);
    let servers = all().map(|s| (of(s), own(s, |_| true)));
    let help = "Real servers of the service";
    gauge(registry, "service_servers", help, servers);
    let reasons = all().flat_map(|s| {
        s.reasons.iter().map(|(reason, count)| {
            let labels = OfReason {
                service: service_name(s),
                reason: reason.clone(),
            };
            (labels, *count)
        })
    });
    let help = "Packets of the service that were not forwarded, by reason";
    counter(registry, "service_packets_not_forwarded", help, reasons);
    servers_of_services(registry, status);
}

fn servers_of_services(registry: &mut Registry, status: &Status) {
    let of = |service: &ServiceSnapshot, server: &BackendSnapshot| OfServer {
        service: service_name(service),
        server: server.address.clone(),
        sorry: server.sorry.to_string(),
    };
    let all = || {
        let services = status.data_plane.services.iter();
        services.flat_map(|service| service.backends.iter().map(move |server| (service, server)))
    };
    let gauges = |value: fn(&BackendSnapshot) -> f64| {
        all().map(move |(service, server)| (of(service, server), value(server)))
    };
    let counts = |count: fn(&BackendSnapshot) -> u64| {
        all().map(move |(service, server)| (of(service, server), count(server)))
    };
    let up = gauges(|server| flag(is_up(server)));
    let help = "1 while the real server takes new connections";
    gauge(registry, "server_up", help, up);
    let healthy = all().filter_map(|(service, server)| {
        let name = service_name(service);
        let mut checks = status.checks.iter();
        let check = checks.find(|c| {
            (&c.service, &c.backend, c.sorry) == (&name, &server.address, server.sorry)
        })?;
        Some((of(service, server), flag(check.up)))
    });
    let help = "1 while its checks succeed; absent without checks";
    gauge(registry, "server_healthy", help, healthy);
    let weights = gauges(|server| f64::from(server.weight));
    let help = "Its share of new connections";
    gauge(registry, "server_weight", help, weights);
    let active = gauges(|server| server.active as f64);
    let help = "Connections as ipvsadm's ActiveConn";
    gauge(registry, "server_connections_active", help, active);
    let inactive = gauges(|server| server.inactive as f64);
    let help = "Connections as ipvsadm's InActConn";
    gauge(registry, "server_connections_inactive", help, inactive);
    let help = "Connections scheduled";
    let scheduled = counts(|server| server.connections);
    counter(registry, "server_connections", help, scheduled);
    let packets = counts(|server| server.packets);
    counter(registry, "server_packets", "Packets forwarded", packets);
    let help = "Bytes forwarded, from the IP header on";
    counter(
        registry,
        "server_bytes",
        help,
        counts(|server| server.bytes),
    );
}

fn data_plane(registry: &mut Registry, plane: &Snapshot) {
    let chosen = Chosen {
        kind: plane.kind.clone(),
        reason: plane.choice.clone(),
    };
    let help = "Which data plane forwards, and why; always 1";
    gauge(registry, "data_plane_info", help, [(chosen, 1.0)]);
    let help = "Changes by others in the kernel's tables that were changed back";
    let repairs = [(Nothing {}, plane.repairs.count)];
    counter(registry, "data_plane_repairs", help, repairs);
    let help = "How often a data plane took over from the other, by which one did";
    let switching = &plane.switching;
    let switches = [("xdp", switching.to_xdp), ("ipvs", switching.to_ipvs)];
    let switches = switches.map(|(kind, count)| {
        let to = kind.to_owned();
        (Taken { to }, count)
    });
    counter(registry, "data_plane_switches", help, switches);
    let help = "Whether IPVS takes over when XDP is lost";
    let ready = switching.ready && switching.lacking.is_none();
    let ready = f64::from(u8::from(ready));
    gauge(
        registry,
        "data_plane_fallback_ready",
        help,
        [(Nothing {}, ready)],
    );
    let help = "Packets that XDP left to IPVS, which takes care of them for the real server that XDP chose";
    // While IPVS forwards there is none: 0 would look like a counter that began again.
    let slow = plane.slow_path.iter();
    let taken = slow.map(|slow| (Nothing {}, slow.packets));
    counter(registry, "slow_path_packets", help, taken);
    let attached = plane.interfaces.iter().map(|one| {
        let labels = OfInterface {
            interface: one.interface.clone(),
            mode: one.mode.clone(),
        };
        (labels, 1.0)
    });
    let help = "Interfaces that the program runs on, with its mode; always 1";
    gauge(registry, "data_plane_attached", help, attached);
    let help = "Number of the live configuration of the data plane";
    let generation = [(Nothing {}, plane.generation as f64)];
    gauge(registry, "data_plane_generation", help, generation);
    let passed = plane.passed.iter().map(|(reason, count)| {
        let reason = reason.clone();
        (Reason { reason }, *count)
    });
    let help = "Packets that were not forwarded, over all services and none, by reason";
    counter(registry, "packets_not_forwarded", help, passed);
    let tables = |value: fn(&FlowTableSnapshot) -> u32| {
        plane.flow_tables.iter().map(move |table| {
            let labels = OfTable {
                table: table.name.clone(),
            };
            (labels, f64::from(value(table)))
        })
    };
    let slots = tables(|table| table.slots);
    gauge(registry, "flow_table_slots", "Room of a flow table", slots);
    let help = "Flows in it at the last sweep, a second ago at most";
    gauge(
        registry,
        "flow_table_used",
        help,
        tables(|table| table.used),
    );
}

/// As the checks have it.
fn service_name(service: &ServiceSnapshot) -> String {
    format!("{} {}", service.protocol, service.address)
}

fn is_up(server: &BackendSnapshot) -> bool {
    server.state == "up"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        Repairs,
        switching::{SlowPath, Switching},
    };

    /// A sample that is absent for a while goes on where it was; one that falls to 0 would be counted again.
    #[test]
    fn packets_of_the_slow_path_never_begin_again() {
        let slow = |packets| SlowPath {
            packets,
            ..SlowPath::default()
        };
        for (slow_path, expected) in [
            (Some(slow(0)), Some("lbd_slow_path_packets_total{} 0")),
            (Some(slow(12)), Some("lbd_slow_path_packets_total{} 12")),
            (None, None),
        ] {
            let plane = Snapshot {
                kind: "xdp".to_owned(),
                choice: String::new(),
                interfaces: Vec::new(),
                generation: 1,
                flow_slots: 0,
                flow_tables: Vec::new(),
                services: Vec::new(),
                passed: Vec::new(),
                sync: None,
                repairs: Repairs::default(),
                trouble: None,
                switching: Switching::default(),
                slow_path,
            };
            let mut registry = Registry::with_prefix("lbd");
            data_plane(&mut registry, &plane);
            let mut text = String::new();
            text::encode(&mut text, &registry).unwrap();
            let mut lines = text.lines();
            let sample = lines.find(|line| line.starts_with("lbd_slow_path_packets_total"));
            assert_eq!(sample, expected);
        }
    }
}
