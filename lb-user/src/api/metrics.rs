//! The status as Prometheus reads it. Pure: every scrape makes its registry from one status.
//!
//! docs/metrics.md says what each name means. Names and labels are an interface: what is there stays.

mod pools;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::proto::{BackendSnapshot, InstanceStatus, ServiceSnapshot, Status};
use crate::model::VrrpState;

/// `GET`: the metrics.
pub const PATH: &str = "/metrics";
/// OpenMetrics, which Prometheus asks for and other readers of its format understand.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Numbers<L> = Family<L, Gauge<f64, std::sync::atomic::AtomicU64>>;
type Counts<L> = Family<L, Counter>;

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
    data_plane(&mut registry, status);
    let mut out = String::new();
    match text::encode(&mut out, &registry) {
        Ok(()) => out,
        Err(std::fmt::Error) => String::new(),
    }
}

/// A family of gauges that is registered under a name.
fn numbers<L>(registry: &mut Registry, name: &str, help: &str) -> Numbers<L>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + Send + Sync + std::fmt::Debug + 'static,
{
    let family = Numbers::default();
    registry.register(name, help, family.clone());
    family
}

/// The same with a unit, which the name ends in.
fn seconds<L>(registry: &mut Registry, name: &str, help: &str) -> Numbers<L>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + Send + Sync + std::fmt::Debug + 'static,
{
    let family = Numbers::default();
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
    family
}

/// A family of counters; the text has `_total` behind the name.
fn counts<L>(registry: &mut Registry, name: &str, help: &str) -> Counts<L>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + Send + Sync + std::fmt::Debug + 'static,
{
    let family = Counts::default();
    registry.register(name, help, family.clone());
    family
}

fn daemon(registry: &mut Registry, status: &Status) {
    let about = numbers(
        registry,
        "build_info",
        "Version and name of this director; always 1",
    );
    about
        .get_or_create(&About {
            version: status.version.clone(),
            router_id: status.router_id.clone(),
        })
        .set(1.0);
    seconds(registry, "uptime", "Time since lbd started")
        .get_or_create(&Nothing {})
        .set(status.uptime_s as f64);
    numbers(
        registry,
        "problems",
        "Lines that lbctl status calls a PROBLEM",
    )
    .get_or_create(&Nothing {})
    .set(status.problems.len() as f64);
    let reloads = counts(
        registry,
        "reloads",
        "Reloads of the configuration by their result",
    );
    for (result, count) in [
        ("applied", status.reloads.applied),
        ("refused", status.reloads.refused),
    ] {
        let labels = OfResult {
            result: result.to_owned(),
        };
        reloads.get_or_create(&labels).inc_by(count);
    }
}

fn instances(registry: &mut Registry, instances: &[InstanceStatus]) {
    let state = numbers(
        registry,
        "vrrp_state",
        "1 for the state that the instance is in, 0 for the others",
    );
    let since = numbers(
        registry,
        "vrrp_state_since_timestamp_seconds",
        "When that state was entered, in seconds since 1970",
    );
    let priority = numbers(registry, "vrrp_priority", "Priority in force");
    let entered = counts(
        registry,
        "vrrp_transitions",
        "Times that a state was entered",
    );
    let sent = counts(
        registry,
        "vrrp_adverts_sent",
        "Adverts sent, each copy to a peer for itself",
    );
    let failed = counts(
        registry,
        "vrrp_adverts_not_sent",
        "Adverts that could not be sent",
    );
    let received = counts(
        registry,
        "vrrp_adverts_received",
        "Adverts that were believed",
    );
    let rejected = counts(
        registry,
        "vrrp_disagreements",
        "Adverts that were not believed, or that should not be, by kind and sender",
    );
    let late = seconds(
        registry,
        "vrrp_advert_lateness_max",
        "The longest that an advert was late since the start",
    );
    let announced = counts(
        registry,
        "vrrp_announcements",
        "Gratuitous ARP and unsolicited neighbour advertisements sent",
    );
    let heard = seconds(
        registry,
        "vrrp_peer_heard_ago",
        "Time since the last advert of another router; absent before the first",
    );
    let peer_priority = numbers(registry, "vrrp_peer_priority", "Priority in that advert");
    for instance in instances {
        let name = || Of {
            instance: instance.name.clone(),
        };
        let in_state = |state: VrrpState| OfState {
            instance: instance.name.clone(),
            state: state.to_string(),
        };
        for one in VrrpState::ALL {
            let here = f64::from(u8::from(one == instance.state));
            state.get_or_create(&in_state(one)).set(here);
        }
        for (one, count) in &instance.entered {
            entered.get_or_create(&in_state(*one)).inc_by(*count);
        }
        since.get_or_create(&name()).set(instance.since as f64);
        priority
            .get_or_create(&name())
            .set(f64::from(instance.priority));
        sent.get_or_create(&name()).inc_by(instance.sent);
        failed.get_or_create(&name()).inc_by(instance.send_errors);
        received.get_or_create(&name()).inc_by(instance.received);
        announced
            .get_or_create(&name())
            .inc_by(instance.announcements);
        late.get_or_create(&name())
            .set(instance.worst_lateness_us as f64 / 1e6);
        if let Some(peer) = &instance.peer {
            heard
                .get_or_create(&name())
                .set(peer.heard_ms_ago as f64 / 1e3);
            peer_priority
                .get_or_create(&name())
                .set(f64::from(peer.priority));
        }
        for one in &instance.disagreements {
            let labels = OfPeer {
                instance: instance.name.clone(),
                what: one.what.clone(),
                peer: one.peer.clone().unwrap_or_default(),
            };
            rejected.get_or_create(&labels).inc_by(one.count);
        }
    }
}

fn services(registry: &mut Registry, status: &Status) {
    let serving = numbers(
        registry,
        "service_serving",
        "1 while this director forwards the service's packets",
    );
    let live = numbers(
        registry,
        "service_servers_up",
        "Real servers of the service that take new connections",
    );
    let all = numbers(registry, "service_servers", "Real servers of the service");
    let reasons = counts(
        registry,
        "service_packets_not_forwarded",
        "Packets of the service that were not forwarded, by reason",
    );
    let up = numbers(
        registry,
        "server_up",
        "1 while the real server takes new connections",
    );
    let healthy = numbers(
        registry,
        "server_healthy",
        "1 while its checks succeed; absent without checks",
    );
    let weight = numbers(registry, "server_weight", "Its share of new connections");
    let active = numbers(
        registry,
        "server_connections_active",
        "Connections as ipvsadm's ActiveConn",
    );
    let inactive = numbers(
        registry,
        "server_connections_inactive",
        "Connections as ipvsadm's InActConn",
    );
    let connections = counts(registry, "server_connections", "Connections scheduled");
    let packets = counts(registry, "server_packets", "Packets forwarded");
    let bytes = counts(
        registry,
        "server_bytes",
        "Bytes forwarded, from the IP header on",
    );
    for service in &status.data_plane.services {
        let name = service_name(service);
        let of = OfService {
            service: name.clone(),
        };
        let servers = || service.backends.iter().filter(|server| !server.sorry);
        serving
            .get_or_create(&of)
            .set(f64::from(u8::from(service.serving || service.always)));
        live.get_or_create(&of)
            .set(servers().filter(|server| is_up(server)).count() as f64);
        all.get_or_create(&of).set(servers().count() as f64);
        for (reason, count) in &service.reasons {
            let labels = OfReason {
                service: name.clone(),
                reason: reason.clone(),
            };
            reasons.get_or_create(&labels).inc_by(*count);
        }
        for server in &service.backends {
            let of = OfServer {
                service: name.clone(),
                server: server.address.clone(),
                sorry: server.sorry.to_string(),
            };
            up.get_or_create(&of)
                .set(f64::from(u8::from(is_up(server))));
            weight.get_or_create(&of).set(f64::from(server.weight));
            active.get_or_create(&of).set(server.active as f64);
            inactive.get_or_create(&of).set(server.inactive as f64);
            connections.get_or_create(&of).inc_by(server.connections);
            packets.get_or_create(&of).inc_by(server.packets);
            bytes.get_or_create(&of).inc_by(server.bytes);
            let check = status
                .checks
                .iter()
                .find(|check| check.service == name && check.backend == server.address);
            if let (Some(check), false) = (check, server.sorry) {
                healthy
                    .get_or_create(&of)
                    .set(f64::from(u8::from(check.up)));
            }
        }
    }
}

fn data_plane(registry: &mut Registry, status: &Status) {
    let plane = &status.data_plane;
    let chosen = numbers(
        registry,
        "data_plane_info",
        "Which data plane forwards, and why; always 1",
    );
    let labels = Chosen {
        kind: plane.kind.clone(),
        reason: plane.choice.clone(),
    };
    chosen.get_or_create(&labels).set(1.0);
    counts(
        registry,
        "data_plane_repairs",
        "Changes by others in the kernel's tables that were changed back",
    )
    .get_or_create(&Nothing {})
    .inc_by(plane.repairs.count);
    let attached = numbers(
        registry,
        "data_plane_attached",
        "Interfaces that the program runs on, with its mode; always 1",
    );
    for one in &plane.interfaces {
        let labels = OfInterface {
            interface: one.interface.clone(),
            mode: one.mode.clone(),
        };
        attached.get_or_create(&labels).set(1.0);
    }
    numbers(
        registry,
        "data_plane_generation",
        "Number of the live configuration of the data plane",
    )
    .get_or_create(&Nothing {})
    .set(plane.generation as f64);
    let passed = counts(
        registry,
        "packets_not_forwarded",
        "Packets that were not forwarded, over all services and none, by reason",
    );
    for (reason, count) in &plane.passed {
        let labels = Reason {
            reason: reason.clone(),
        };
        passed.get_or_create(&labels).inc_by(*count);
    }
    let slots = numbers(registry, "flow_table_slots", "Room of a flow table");
    let used = numbers(
        registry,
        "flow_table_used",
        "Flows in it at the last sweep, a second ago at most",
    );
    for table in &plane.flow_tables {
        let labels = OfTable {
            table: table.name.clone(),
        };
        slots.get_or_create(&labels).set(f64::from(table.slots));
        used.get_or_create(&labels).set(f64::from(table.used));
    }
}

/// As the checks have it.
fn service_name(service: &ServiceSnapshot) -> String {
    format!("{} {}", service.protocol, service.address)
}

fn is_up(server: &BackendSnapshot) -> bool {
    server.state == "up"
}
