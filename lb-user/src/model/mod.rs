//! The values that subsystems exchange. Always valid: `config::validate` is the only maker of a
//! [`Config`], and nothing downstream checks again. No behaviour beyond small accessors.

pub mod address;
mod announce;
mod auth;
mod check;
pub mod network;
mod notify;
mod plane;
mod pool;
mod probe;
mod spread;
mod track;
mod tunnel;
mod vrrp;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::announce::AnnounceTiming;
pub use self::auth::{Auth, HmacAuth, HmacKey, HmacMode, Secret};
pub use self::check::{
    Advice, Advised, AgentCheck, BodyRule, Check, CheckKind, DnsCheck, ExecCheck, GrpcCheck,
    HttpCheck, HttpRequest, HttpVersion, Limits, Pattern, RECORDS, SmtpCheck, Timing, Tls,
    UdpCheck,
};
pub use self::notify::{
    CaFile, Login, Mail, MailSubjects, MailTls, NotifyFifo, Password, SyncGroup,
};
pub use self::plane::{Mode, SyncDaemonConfig, engine_in_xdp, ipvs_lacks, xdp_lacks};
pub use self::pool::{MemberRules, OnDown, PoolCommands, PoolRules, RAMP_STEPS};
pub use self::probe::{ProbePath, ProbeStyle};
pub use self::spread::Spread;
pub use self::track::{
    Condition, Effect, InitialValue, LinkDamping, ProcessPattern, Rest, Restart, TrackFile,
    TrackProcess, TrackRoute, TrackScript, Tracked, Verdict, Watch,
};
pub use self::tunnel::{GueChecksum, Tunnel};
pub use self::vrrp::{
    ChecksumForm, Instance, NotifyScripts, Prefix, RouterId, UnicastTtl, VrrpState, VrrpVersion,
};

/// A whole, validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this director in notifications.
    pub router_id: String,
    /// Paths and identities of the daemon itself.
    pub runtime: Runtime,
    /// Where metrics and the status page are shown over TCP, if anywhere. Changing it needs a restart.
    pub metrics: Option<SocketAddr>,
    /// What forwards packets, and how.
    pub dataplane: DataplaneConfig,
    /// Synchronisation of the kernel's connections.
    pub sync_daemon: Option<SyncDaemonConfig>,
    /// Addresses, routes and rules that are there whoever is master, in that order.
    pub statics: Vec<network::Item>,
    /// Scripts that instances watch.
    pub track_scripts: Vec<TrackScript>,
    /// Processes that instances watch.
    pub track_processes: Vec<TrackProcess>,
    /// Files that instances watch.
    pub track_files: Vec<TrackFile>,
    /// VRRP instances, in file order.
    pub instances: Vec<Instance>,
    /// Groups that instances name.
    pub sync_groups: Vec<SyncGroup>,
    /// How mail leaves; `None` sends none.
    pub mail: Option<Mail>,
    /// Virtual services, in file order.
    pub services: Vec<VirtualService>,
}

/// Paths and identities of the daemon itself. Changing one needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Unix socket that `lbctl` talks to.
    pub socket: PathBuf,
    /// Directory on a bpffs where maps, program and links are pinned.
    pub pin_path: PathBuf,
    /// Account that notify scripts run as.
    pub script_user: String,
    /// A named pipe that gets a line for every transition.
    pub notify_fifo: Option<NotifyFifo>,
}

/// What forwards packets, and how. Changing one needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Which data plane.
    pub mode: Mode,
    /// Interfaces that receive traffic for the VIPs.
    pub interfaces: Vec<String>,
    /// Whether generic XDP may be used where the driver refuses native XDP.
    pub allow_generic: bool,
    /// Slots that the table of established TCP flows of IPv4 begins with; a power of two, 65,536 to
    /// 16,777,216. Others begin smaller. All grow when they are half full.
    pub flow_slots: u32,
    /// Slots beyond which no table grows; a power of two.
    pub max_flow_slots: u32,
    /// Time-outs of flows.
    pub timeouts: FlowTimeouts,
    /// Who may not come in.
    pub protection: Protection,
}

/// Who may not come in. Follows a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Listed sources: the longest prefix that matches decides.
    pub sources: Vec<(IpPrefix, SourceRule)>,
    /// Files with more of them. What the file says has been read into `sources` by the daemon.
    pub files: Vec<(PathBuf, SourceRule)>,
    /// Limit of new connections of one source (IPv6: of one /64).
    pub source_rate: Option<RateLimit>,
}

/// What happens to packets of a listed source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceRule {
    /// Dropped.
    Block,
    /// Never dropped, and not limited in its rate.
    Allow,
}

/// A network of either version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpPrefix {
    /// The network, host bits clear.
    pub address: IpAddr,
    /// 0-32 or 0-128.
    pub length: u8,
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A limit of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// 1 to 1,000,000,000.
    pub per_second: u32,
    /// How many may come at once; at least 1.
    pub burst: u32,
}

/// How long a flow may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// Established TCP.
    pub tcp: Duration,
    /// TCP after the client's FIN or RST.
    pub tcp_closing: Duration,
    /// TCP of which only SYNs were seen.
    pub tcp_half_open: Duration,
    /// UDP.
    pub udp: Duration,
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// The ports of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last, at least the first.
    pub last: u16,
}

impl Ports {
    /// All of them: port 0 of IPVS.
    pub const ALL: Ports = Ports {
        first: 0,
        last: u16::MAX,
    };

    /// One port.
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// The only one.
    pub const fn single(self) -> Option<u16> {
        if self.first == self.last {
            Some(self.first)
        } else {
            None
        }
    }
}

/// `80`, `1000-2000`, or `0` for all, as IPVS shows it.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            f.write_str("0")
        } else if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// What identifies a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// Protocol.
    pub protocol: Protocol,
    /// VIP.
    pub address: IpAddr,
    /// Ports.
    pub ports: Ports,
}

impl ServiceId {
    /// A service of one port.
    pub const fn new(protocol: Protocol, address: SocketAddr) -> Self {
        Self {
            protocol,
            address: address.ip(),
            ports: Ports::one(address.port()),
        }
    }

    /// Whether an operator means this service by `name`: `TCP 10.1.15.50:80`, or without the protocol.
    pub fn is_called(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.to_string()) || name.eq_ignore_ascii_case(&self.endpoint())
    }

    /// VIP and ports, as in `10.1.15.50:80` or `[2001:db8::50]:80`.
    pub fn endpoint(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.ports),
            IpAddr::V6(address) => format!("[{address}]:{}", self.ports),
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.endpoint())
    }
}

/// A virtual service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// Protocol, VIP and port.
    pub id: ServiceId,
    /// The mark that a firewall gives to its packets, whatever else they are. `None`: they are known by `id`.
    pub fwmark: Option<u32>,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// Options of the schedulers `sh` and `mh`.
    pub hashing: Hashing,
    /// How packets reach the real servers.
    pub forwarding: Forwarding,
    /// Whether a client sticks to its real server.
    pub persistence: Option<Persistence>,
    /// Whether each packet is scheduled for itself (IPVS: `ops`). Only UDP.
    pub one_packet: bool,
    /// Limit of new connections.
    pub rate: Option<RateLimit>,
    /// VRRP instance whose mastership decides whether this node serves; `None` always serves.
    pub instance: Option<String>,
    /// Who answers when the quorum is lost; several share the work.
    pub sorry: Vec<Target>,
    /// Health checks of sorry servers on other hosts. What fails is told, and does not answer while another one
    /// would.
    pub sorry_checks: Vec<Check>,
    /// What happens when real servers fail and return.
    pub pool: PoolRules,
    /// Real servers, in file order.
    pub backends: Vec<RealServer>,
}

impl VirtualService {
    /// Sorry servers on other hosts, in file order.
    pub fn sorry_hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.sorry.iter().filter_map(|target| match target {
            Target::Host(address) => Some(*address),
            Target::Local => None,
        })
    }

    /// All hosts that it may send packets to: real servers, then sorry servers.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let backends = self.backends.iter().map(|backend| backend.address);
        backends.chain(self.sorry_hosts())
    }
}

/// How new connections are spread over real servers, with IPVS's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin: every real server of weight above 0 in turn.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Fewest connections.
    Lc,
    /// Fewest connections for the weight.
    Wlc,
    /// By a hash of the client's address.
    Sh,
    /// By the Maglev hash of the client's address.
    Mh,
    /// The real server of the highest weight; the others stand by.
    Fo,
    /// Overflow: the highest weight until it has as many connections as its weight, then the next.
    Ovf,
    /// By destination address, fewest connections: for caches.
    Lblc,
    /// The same with a set of servers for each destination.
    Lblcr,
    /// By a hash of the destination address.
    Dh,
    /// Shortest expected delay.
    Sed,
    /// An idle one if there is one, else the shortest expected delay.
    Nq,
    /// The better one of two chosen at random.
    Twos,
}

impl Scheduler {
    /// All of them, by name.
    pub const ALL: [(&'static str, Scheduler); 14] = [
        ("rr", Scheduler::Rr),
        ("wrr", Scheduler::Wrr),
        ("lc", Scheduler::Lc),
        ("wlc", Scheduler::Wlc),
        ("sh", Scheduler::Sh),
        ("mh", Scheduler::Mh),
        ("fo", Scheduler::Fo),
        ("ovf", Scheduler::Ovf),
        ("lblc", Scheduler::Lblc),
        ("lblcr", Scheduler::Lblcr),
        ("dh", Scheduler::Dh),
        ("sed", Scheduler::Sed),
        ("nq", Scheduler::Nq),
        ("twos", Scheduler::Twos),
    ];
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, scheduler)| scheduler == self);
        f.pad(name.map_or("", |(name, _)| name))
    }
}

/// Options of the schedulers `sh` and `mh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashing {
    /// The client's port counts too (IPVS: `sh-port`, `mh-port`).
    pub port: bool,
    /// Another real server when the chosen one takes nobody (`sh-fallback`, `mh-fallback`).
    pub fallback: bool,
}

/// How packets reach the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// Direct return: on a connected network, by their MAC address.
    Dr,
    /// In a tunnel, through routers.
    Tunnel(Tunnel),
    /// With address and port translated; answers come back through the director.
    Nat,
}

/// All connections of a client, or of its network, go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// How long after its last new connection.
    pub timeout: Duration,
    /// Bits of the client's address that count: 0-32 or 0-128.
    pub prefix: u8,
    /// What counts besides, if anything.
    pub engine: Option<Engine>,
}

/// The kernel's persistence engines: they find in packets what belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Datagrams of one SIP call, by its Call-ID (RFC 3261 section 20.8).
    Sip,
}

impl Engine {
    /// As configured and as the kernel calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Sip => "sip",
        }
    }
}

/// Where packets of a flow go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// This host's own stack.
    Local,
    /// Another host.
    Host(IpAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Local => f.pad("127.0.0.1"),
            Target::Host(address) => address.fmt(f),
        }
    }
}

/// A real server of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Its own address.
    pub address: IpAddr,
    /// Its port where that is not the service's: only translation changes it.
    pub port: Option<u16>,
    /// 0-65535; 0 keeps its flows and gets no new ones.
    pub weight: u32,
    /// From this many connections on it gets no new ones; 0 is no limit.
    pub upper: u32,
    /// Below this many it gets new ones again; 0 is three quarters of `upper`.
    pub lower: u32,
    /// Health checks that must all pass; without one it is always up.
    pub checks: Vec<Check>,
    /// What happens when it fails and returns.
    pub member: MemberRules,
}

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// The address is this host's own.
    ThisHost,
    /// Another host.
    Host(Hop),
}

/// The way to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its MAC address, or that of the router to it.
    pub mac: [u8; 6],
    /// Interface that carries frames to it: below any VLAN interface.
    pub ifindex: u32,
    /// MAC address of the outgoing interface.
    pub source_mac: [u8; 6],
    /// VLAN ids, outer first; 0 is no tag.
    pub vlans: [u16; 2],
    /// No router is between.
    pub on_link: bool,
    /// Source address of tunnels to it.
    pub source: Option<IpAddr>,
    /// Largest packet on the way, in bytes.
    pub mtu: u32,
}

impl Hop {
    /// A host on a network of interface `ifindex` without a tag.
    pub const fn on_link(mac: [u8; 6], ifindex: u32, source_mac: [u8; 6]) -> Self {
        Self {
            mac,
            ifindex,
            source_mac,
            vlans: [0; 2],
            on_link: true,
            source: None,
            mtu: 1500,
        }
    }
}
