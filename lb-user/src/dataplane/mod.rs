//! What forwards packets, behind one interface.
//!
//! `plan` is pure: from configuration and health to what the data plane should hold. An
//! implementation makes it so: `xdp` with BPF maps, `ipvs` with the kernel's IPVS. `selection` says
//! which.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::model::{
    FlowTimeouts, Neighbour, ProbePath, ProbeStyle, Protection, Scheduler, ServiceId, Target,
};

pub mod carried;
pub mod genetlink;
pub mod ipvs;
pub mod plan;
mod rate;
pub mod selection;
pub mod silence;
pub mod switching;
pub mod xdp;

pub use plan::Plan;
use silence::Silence;

/// Something that forwards packets of virtual services.
pub trait DataPlane: Send {
    /// Makes `plan` the live configuration by one atomic switch. Applying what is live already
    /// changes nothing. Returns the number of the live generation.
    fn apply(&mut self, plan: &Plan) -> Result<u64, DataPlaneError>;

    /// Whether it goes on with what an earlier daemon left: services are still forwarded as that one
    /// did, until roles are set.
    fn took_over(&self) -> bool;

    /// Serves the services of a role, or passes their packets to the kernel.
    fn set_role(&mut self, role: u16, serving: bool);

    /// Tells where a host on a connected network is; `None` when that is not known.
    fn set_neighbour(&mut self, address: IpAddr, neighbour: Option<Neighbour>);

    /// Follows changed flow time-outs; they hold from each flow's next packet on.
    fn set_timeouts(&mut self, timeouts: &FlowTimeouts);

    /// Follows the MAC addresses by which this host is addressed, and the VLANs that it is in (outer id first,
    /// 0 for none), each with the index of the interface that it is used on.
    fn set_own_addresses(&mut self, macs: &[(u32, [u8; 6])], vlans: &[(u32, [u16; 2])]);

    /// How health checks can ask for a VIP on one real server, if they can at present.
    fn probe_style(&self) -> Option<ProbeStyle>;

    /// Follows the largest packet, in bytes, that comes in by any interface of the data plane.
    fn set_receive_mtu(&mut self, mtu: u32);

    /// Makes these the paths of health checks that ask for a VIP on a real server, and no others. Answers
    /// come in on the named interfaces.
    fn set_probes(
        &mut self,
        paths: &[ProbePath],
        interfaces: &[String],
    ) -> Result<(), DataPlaneError>;

    /// Follows interfaces, given with their indexes, that went or were made again. What cannot be done
    /// is told of once and tried again with the next call.
    fn follow_interfaces(&mut self, present: &[(String, u32)]);

    /// Follows the lists of sources and their rate.
    fn set_protection(&mut self, protection: &Protection) -> Result<(), DataPlaneError>;

    /// What is live now, with counters.
    fn snapshot(&mut self) -> Snapshot;

    /// Names and sizes of the kernel tables.
    fn tables(&self) -> Vec<TableInfo>;

    /// The decoded entries of a kernel table; `None` when there is no such table.
    fn dump(&self, table: &str) -> Option<Vec<serde_json::Value>>;

    /// A page of the flows that are wanted.
    fn flows(&self, query: &FlowQuery) -> Result<FlowPage, String>;

    /// What would become of a client's packet, and why.
    fn why(&self, query: &WhyQuery) -> Result<Why, String>;

    /// Shows what becomes of packets, as the bytes of a pcapng file, until the receiver is dropped or
    /// enough was shown. One capture runs at a time.
    fn capture(&mut self, query: &CaptureQuery) -> Result<mpsc::Receiver<Vec<u8>>, String>;

    /// Frees flow slots that nobody uses any more and counts the others.
    fn sweep(&mut self);

    /// Real servers that most new connections got no answer from, before the last sweep.
    fn silent(&self) -> Vec<(BackendKey, Silence)>;

    /// Stops forwarding and removes everything from the kernel.
    fn detach(&mut self) -> Result<(), DataPlaneError>;
}

/// Why the data plane did not do what was asked. Every message ends in what to do.
#[derive(Debug, Error)]
pub enum DataPlaneError {
    /// The interface does not exist.
    #[error("interface {0} does not exist; `ip link` lists those that do")]
    NoInterface(String),
    /// Not enough rights.
    #[error(
        "no permission to {0}; run lbd as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON"
    )]
    NoPermission(&'static str),
    /// Health checks cannot be sent to a VIP on one real server.
    #[error("no way to ask for a VIP on one real server: {0}")]
    NoProbes(String),
    /// Another daemon holds the pins.
    #[error(
        "another lbd is running with the pins in {0}; stop it, or give this one its own `pin_path`"
    )]
    PinsInUse(String),
    /// The pin directory is unusable.
    #[error(
        "cannot use {path} for pins: {source}; it must lie on a bpffs (`mount -t bpf bpf /sys/fs/bpf`)"
    )]
    PinPath {
        /// The directory.
        path: String,
        /// What failed.
        source: std::io::Error,
    },
    /// The kernel refused the program or its maps.
    #[error("the kernel refuses the XDP program: {0}")]
    Load(String),
    /// The driver refused native XDP.
    #[error(
        "interface {interface} refuses native XDP ({reason}); set `allow_generic = true` in [dataplane] to accept slower generic XDP, or use another interface"
    )]
    NoNativeXdp {
        /// The interface.
        interface: String,
        /// The kernel's words.
        reason: String,
    },
    /// The interface cannot run the program in any permitted mode.
    #[error("cannot attach the XDP program to {interface}: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// The kernel's words.
        reason: String,
    },
    /// The kernel's IPVS does not do what it should.
    #[error(transparent)]
    Ipvs(#[from] ipvs::KernelError),
    /// A service wants what the running data plane does not have.
    #[error(
        "{service}: {plane} has no {what}; change the service, or restart lbd with another `mode` in [dataplane]"
    )]
    Lacks {
        /// "XDP" or "IPVS".
        plane: &'static str,
        /// The service.
        service: String,
        /// What is missing, with what there is.
        what: String,
    },
    /// Every permitted data plane was tried.
    #[error("no data plane can run here. {0}")]
    NoneWorks(String),
    /// A table is full.
    #[error(
        "no room for another {0}; identifiers of removed ones become free after their flows' time-out"
    )]
    Exhausted(&'static str),
    /// A map could not be read or written.
    #[error("cannot {what}: {reason}")]
    Map {
        /// What was tried.
        what: String,
        /// The kernel's words.
        reason: String,
    },
}

/// What is live, with counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Implementation: "xdp" or "ipvs".
    pub kind: String,
    /// Why this one runs.
    pub choice: String,
    /// Attached interfaces.
    pub interfaces: Vec<Attachment>,
    /// Number of the live generation; grows by one with each change.
    pub generation: u64,
    /// Slots of each table of promoted flows; with IPVS, buckets of its table of connections.
    pub flow_slots: u32,
    /// Every flow table and how full it is.
    #[serde(default)]
    pub flow_tables: Vec<FlowTableSnapshot>,
    /// Live services.
    pub services: Vec<ServiceSnapshot>,
    /// Packets that were not forwarded, by reason, over all services.
    pub passed: Vec<(String, u64)>,
    /// The kernel's synchronisation of connections, where it runs.
    pub sync: Option<String>,
    /// What others changed in the kernel's tables and was changed back.
    pub repairs: Repairs,
    /// Why the kernel does not hold what it should.
    pub trouble: Option<String>,
    /// How this one and the other take over from each other.
    #[serde(default)]
    pub switching: switching::Switching,
    /// What IPVS takes of what XDP leaves to the kernel; `None` where XDP does not forward.
    #[serde(default)]
    pub slow_path: Option<switching::SlowPath>,
}

/// Changes by others that were changed back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// How many since the start.
    pub count: u64,
    /// What was done for the last one.
    pub last: Option<String>,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// Counters in IPVS's five columns, or the same a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients: seen with NAT only.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
}

/// A flow table and how full it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowTableSnapshot {
    /// Its name: "tcp", "wide-udp-half-open" and so on.
    pub name: String,
    /// Its room; tables of promoted flows grow when half of it is used.
    pub slots: u32,
    /// Flows in it at the last sweep.
    pub used: u32,
}

/// An interface that runs the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// "native" or "generic".
    pub mode: String,
}

/// A live service with its backends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceSnapshot {
    /// "TCP", "UDP" or "SCTP".
    pub protocol: String,
    /// VIP and ports.
    pub address: String,
    /// The mark by which IPVS knows its packets, if that is how.
    #[serde(default)]
    pub fwmark: Option<u32>,
    /// Scheduler.
    pub scheduler: Scheduler,
    /// What ipvsadm prints behind it.
    pub flags: String,
    /// Whether ipvsadm would list it: the data plane holds it.
    pub listed: bool,
    /// Whether this node serves it (its VRRP instance is MASTER).
    pub serving: bool,
    /// Whether it depends on no VRRP instance: it is served always.
    pub always: bool,
    /// Seconds that a client sticks to its real server.
    pub persistent_s: Option<u64>,
    /// Packets of the service that were not forwarded, by reason; those of no packets left out.
    pub reasons: Vec<(String, u64)>,
    /// Counters over all backends, with IPVS also those that are gone.
    pub total: Traffic,
    /// The same a second, averaged over some seconds.
    pub rates: Traffic,
    /// Backends in plan order.
    pub backends: Vec<BackendSnapshot>,
}

/// A live backend with its counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendSnapshot {
    /// Its address, "local" for this host.
    pub address: String,
    /// Its port; 0 with a service of all ports.
    pub port: u16,
    /// "Route", "Tunnel", "Masq" or "Local", as IPVS names them.
    pub forward: String,
    /// Whether ipvsadm would list it.
    pub listed: bool,
    /// Whether it is the sorry server.
    pub sorry: bool,
    /// Share of new connections when it is up.
    pub weight: u32,
    /// The weight that ipvsadm would list: with IPVS 0 for one that gets no new connections.
    pub listed_weight: u32,
    /// "up", "draining", "unresolved", "inhibited", "standby", "resetting" or "down".
    pub state: String,
    /// MAC address, when known.
    pub mac: Option<String>,
    /// TCP flows that showed a second packet and did not begin to close.
    pub active: u64,
    /// All other flows.
    pub inactive: u64,
    /// Connections scheduled.
    pub connections: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded, from the IP header on.
    pub bytes: u64,
    /// Packets that came back: seen with NAT only.
    pub out_packets: u64,
    /// Bytes of those.
    pub out_bytes: u64,
    /// All of it a second, averaged over some seconds.
    pub rates: Traffic,
}

/// Which flows to list. Absent fields mean any.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowQuery {
    /// Client: an address, a network, or an address with a port.
    pub client: Option<String>,
    /// Service, as `10.1.15.50:80` or `TCP 10.1.15.50:80`.
    pub service: Option<String>,
    /// Real server's address, or `local`.
    pub backend: Option<String>,
    /// Flows skipped.
    #[serde(default)]
    pub offset: usize,
    /// Flows listed at most.
    #[serde(default = "page_length")]
    pub limit: usize,
}

/// Flows of one page unless asked for otherwise.
const PAGE: usize = 100;

fn page_length() -> usize {
    PAGE
}

/// Some of the flows that were asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowPage {
    /// How many there are.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// The page, ordered by client.
    pub flows: Vec<FlowEntry>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowEntry {
    /// Client with its port.
    pub client: String,
    /// Service.
    pub service: String,
    /// Destination port, where the service has several.
    pub port: Option<u16>,
    /// Its real server.
    pub backend: String,
    /// "established", "closing", "half-open" or "udp".
    pub state: String,
    /// Seconds of silence that are left to it.
    pub expires_in_s: u64,
}

/// Which packets to show. Absent fields mean any.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CaptureQuery {
    /// Client: an address or a network.
    pub client: Option<String>,
    /// Service, as `10.1.15.50:80` or `TCP 10.1.15.50:80`.
    pub service: Option<String>,
    /// Real server's address, or `local`.
    pub backend: Option<String>,
    /// `forwarded`, `passed`, `dropped`, or the name of a reason.
    pub only: Option<String>,
    /// Bytes kept of each packet.
    #[serde(default = "snap_length")]
    pub snap_length: u32,
    /// Packets after which the capture ends.
    pub count: Option<u64>,
}

/// A whole packet of Ethernet's usual size.
const SNAP_LENGTH: u32 = 1_600;

fn snap_length() -> u32 {
    SNAP_LENGTH
}

/// A packet that may come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyQuery {
    /// Client with its port.
    pub client: String,
    /// VIP with its port.
    pub vip: String,
    /// "tcp", "udp" or "sctp".
    #[serde(default)]
    pub protocol: Option<String>,
}

/// What would become of a packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// Service, if there is one.
    pub service: Option<String>,
    /// Real server, if it would get the packet.
    pub backend: Option<String>,
    /// What decides: "flow", "persistence", "ring", "hash", "least", "first", "sorry", or the reason
    /// why the packet is not forwarded.
    pub because: String,
    /// The steps that lead there, in order.
    pub steps: Vec<String>,
}

/// A kernel table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableInfo {
    /// Name in the kernel and in the pin directory.
    pub name: String,
    /// Map type.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Kernel id, as bpftool shows it.
    pub id: u32,
}

/// Identifies a backend over generations: the same host in the same service.
pub type BackendKey = (ServiceId, Target, bool);
