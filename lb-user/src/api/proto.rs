//! Documents of the API. Pure.

mod doctor;
mod notify;
mod pool;

use serde::{Deserialize, Serialize};

pub use self::doctor::{DOCTOR, Diagnosis, Finding};
pub use self::notify::{
    FifoStatus, GroupStatus, MailStatus, ReaderStatus, ScriptCounts, ScriptFailure,
};
pub use self::pool::{Growing, PoolStatus};
pub use crate::dataplane::{
    Attachment, BackendSnapshot, CaptureQuery, FlowEntry, FlowPage, FlowQuery, FlowTableSnapshot,
    ServiceSnapshot, Snapshot as DataPlaneSnapshot, TableInfo, Traffic, Why, WhyQuery,
};
pub use crate::events::{Event, EventPage};
use crate::model::{Spread, VrrpState, VrrpVersion};

/// `GET`: a [`Status`].
pub const STATUS: &str = "/v1/status";
/// `GET`: a list of [`TableInfo`].
pub const MAPS: &str = "/v1/maps";
/// `GET`: a [`MapDump`]; the map's name is the last segment.
pub const MAP: &str = "/v1/maps/{name}";
/// `POST`: a [`Reload`]; with `?dry_run=true` nothing changes.
pub const RELOAD: &str = "/v1/reload";

/// `POST`: a [`Steered`]; the query is a [`Steer`].
pub const STEER: &str = "/v1/backends";
/// `POST`: a [`Steered`]; the query is a [`VrrpOrder`].
pub const VRRP: &str = "/v1/vrrp";
/// `POST`: a [`Steered`]; the query is `use=`, with a [`DataPlaneOrder`].
pub const DATA_PLANE: &str = "/v1/data-plane";
/// `GET`: a [`FlowPage`]; the query is a [`FlowQuery`].
pub const FLOWS: &str = "/v1/flows";
/// `GET`: a [`Why`]; the query is a [`WhyQuery`].
pub const WHY: &str = "/v1/why";

/// `GET`: a pcapng file that grows while packets come; the query is a [`CaptureQuery`].
pub const CAPTURE: &str = "/v1/capture";

/// `GET`: an [`EventPage`]; with `?since=ID` those after it.
pub const EVENTS: &str = "/v1/events";

/// What an operator tells of a real server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steer {
    /// Its address.
    pub backend: String,
    /// The service, as `10.1.15.50:80` or `TCP 10.1.15.50:80`; all that have it when absent.
    pub service: Option<String>,
    /// What to do.
    #[serde(flatten)]
    pub action: SteerAction,
}

/// What to do with a real server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum SteerAction {
    /// It keeps its connections and gets no new ones.
    Drain,
    /// As configured.
    Enable,
    /// Another share of new connections.
    Weight {
        /// 0 to 65535.
        #[serde(deserialize_with = "number")]
        weight: u32,
    },
}

/// What an operator tells of a VRRP instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VrrpOrder {
    /// Its name.
    pub instance: String,
    /// What to do.
    #[serde(flatten)]
    pub action: VrrpAction,
}

/// What to do with a VRRP instance.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum VrrpAction {
    /// Let another router be master, with the lowest priority until reset.
    Failover,
    /// Another priority until reset.
    Priority {
        /// 1 to 254.
        #[serde(deserialize_with = "number")]
        priority: u32,
    },
    /// As configured.
    Reset,
    /// Announce the addresses now, as a new master does.
    Announce,
}

/// Which data plane is to forward, until a reload or a restart.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPlaneOrder {
    /// XDP where it can be, else IPVS, as without an order.
    Auto,
    /// XDP; when it is lost, it is only attached again.
    Xdp,
    /// IPVS.
    Ipvs,
}

/// A number that came as text: queries have no types.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// What was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steered {
    /// A line for each service.
    pub changes: Vec<String>,
}

/// Everything there is to know at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of this director.
    pub router_id: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Configuration file.
    pub config: String,
    /// Last change of the data plane.
    pub generation: Generation,
    /// VRRP instances.
    pub instances: Vec<InstanceStatus>,
    /// Sync groups of VRRP instances.
    pub sync_groups: Vec<GroupStatus>,
    /// The FIFO of notifications, where there is one.
    pub fifo: Option<FifoStatus>,
    /// Mail, where it is configured.
    pub mail: Option<MailStatus>,
    /// Health of checked real servers.
    pub checks: Vec<CheckStatus>,
    /// What all attempts of health checks have in common.
    pub probes: ProbesStatus,
    /// Quorum, panic guard and growing weights of each service.
    pub pools: Vec<PoolStatus>,
    /// The data plane with its services.
    pub data_plane: DataPlaneSnapshot,
    /// What operators told of real servers since the last reload.
    pub steered: Vec<String>,
    /// Reloads by their result.
    #[serde(default)]
    pub reloads: Reloads,
    /// What needs an operator's attention, most important first.
    pub problems: Vec<String>,
}

/// Reloads since the start, dry runs left out.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reloads {
    /// Those that were applied.
    pub applied: u64,
    /// Those that were refused.
    pub refused: u64,
}

/// A switch of the data plane's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// What made it necessary.
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// A VRRP instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Interface.
    pub interface: String,
    /// Virtual router id.
    pub virtual_router_id: u8,
    /// Version of the protocol.
    pub version: VrrpVersion,
    /// The priority in force.
    pub priority: u8,
    /// The configured priority.
    pub configured_priority: u8,
    /// Whether an operator set the one in force.
    pub manual: bool,
    /// Present state.
    pub state: VrrpState,
    /// Why it is in that state.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Generation of the data plane when the state was entered.
    pub generation: u64,
    /// Virtual addresses.
    pub addresses: Vec<String>,
    /// Addresses held with them that are not in the adverts.
    pub excluded_addresses: Vec<String>,
    /// The virtual MAC address and its interface, where it is used.
    pub virtual_mac: Option<String>,
    /// Whether this host's own stack takes packets to the addresses.
    pub accept: bool,
    /// Routes and rules of a master, as `ip` shows them.
    pub placed: Vec<String>,
    /// Other routers, spoken to one by one; none: a group.
    pub unicast_peers: Vec<String>,
    /// Advertisement interval, milliseconds.
    pub advert_interval_ms: u64,
    /// Interval of the master that was heard last, milliseconds.
    pub master_interval_ms: u64,
    /// The longest that the thread, and with it an advert, was late, microseconds.
    pub worst_lateness_us: u64,
    /// Master-down or advertisement timer: milliseconds until it fires.
    pub timer_ms: Option<u64>,
    /// Source of adverts.
    pub source: Option<String>,
    /// The last other router heard.
    pub peer: Option<Peer>,
    /// Its notify scripts.
    pub scripts: ScriptCounts,
    /// What it watches besides its interface.
    pub watched: Vec<Watched>,
    /// Why its link is not used although it is up.
    pub link_wait: Option<LinkWait>,
    /// Adverts sent.
    pub sent: u64,
    /// Adverts believed.
    pub received: u64,
    /// Adverts that could not be sent.
    pub send_errors: u64,
    /// Gratuitous ARP and unsolicited neighbour advertisements sent.
    #[serde(default)]
    pub announcements: u64,
    /// Adverts not believed, by reason.
    pub rejected: Vec<(String, u64)>,
    /// What was heard that should not be, by sender.
    #[serde(default)]
    pub disagreements: Vec<Disagreement>,
    /// How adverts prove their origin: "none", "pass", "ah", or "hmac" with the key's id.
    #[serde(default)]
    pub authentication: String,
    /// How often each state was entered.
    #[serde(default)]
    pub entered: Vec<(VrrpState, u64)>,
}

/// Something that an instance heard and should not have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disagreement {
    /// Reason of a rejected advert, `other_addresses`, `second_master`, `other_interval` or `other_checksum`.
    pub what: String,
    /// The same as the end of a sentence that begins with the peer.
    pub advice: String,
    /// The sender; none where it is not known, or too many did the same.
    pub peer: Option<String>,
    /// How often.
    pub count: u64,
}

/// Something that a VRRP instance watches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Watched {
    /// What, such as "script chk_nginx".
    pub what: String,
    /// "up", "down", or a file's "value 3".
    pub state: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Whether it does no harm.
    pub up: bool,
    /// What it adds to the priority; 0: down means FAULT. A file's value is multiplied by it.
    pub weight: i16,
    /// By how much it moves the priority now; none: it is a FAULT.
    pub effect: Option<i32>,
    /// The last error, how many processes run, where a route leads.
    pub detail: Option<String>,
}

/// A link that is not trusted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkWait {
    /// Whether it was lost too often.
    pub held: bool,
    /// How long it must have been up, milliseconds.
    pub needed_ms: u64,
    /// How long that still takes; none: it is down.
    pub left_ms: Option<u64>,
}

/// Another router of the same VRID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its address.
    pub address: String,
    /// Its priority.
    pub priority: u8,
    /// Milliseconds since its last advert.
    pub heard_ms_ago: u64,
    /// Whether its last advert listed other addresses than are configured here.
    pub addresses_differ: bool,
}

/// A checked real server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Service, as `TCP 10.1.15.50:80`.
    pub service: String,
    /// Real server.
    pub backend: String,
    /// Whether it is a sorry server of the service.
    pub sorry: bool,
    /// Whether it is up.
    pub up: bool,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Error of the attempt that made it down.
    pub cause: Option<String>,
    /// Weight that its checks want it to have, where they say something about it.
    pub advised_weight: Option<u32>,
    /// Its checks, which must all pass.
    pub checks: Vec<ProbeStatus>,
}

/// What all attempts of health checks have in common, since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProbesStatus {
    /// How late attempts began.
    pub lateness: Spread,
    /// From the end of an attempt that changed something to the data plane that follows it.
    pub reaction: Spread,
}

/// One check of a real server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Its type in the configuration, such as "http".
    pub kind: String,
    /// Address and port asked.
    pub target: String,
    /// Whether this check lets the real server be up.
    pub up: bool,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Error of the attempt that made it down.
    pub cause: Option<String>,
    /// Attempts since it began.
    pub attempts: u64,
    /// Those that failed.
    pub failures: u64,
    /// The last attempt showed nothing of the server: its state may be old.
    pub blind: bool,
    /// Why the last attempt failed, or showed nothing.
    pub trouble: Option<String>,
}

/// A map's entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapDump {
    /// Name of the map.
    pub name: String,
    /// Decoded entries.
    pub entries: Vec<serde_json::Value>,
}

/// Result of a reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reload {
    /// What changed.
    pub changes: Vec<String>,
    /// Sections whose change waits for a restart.
    pub needs_restart: Vec<String>,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub error: String,
    /// Whether the configuration is at fault.
    pub invalid_config: bool,
}
