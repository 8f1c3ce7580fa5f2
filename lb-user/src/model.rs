//! The values that subsystems exchange. Always valid: `config::validate` is the only maker of a
//! [`Config`], and nothing downstream checks again. No behaviour beyond small accessors.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A whole, validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this director in notifications.
    pub router_id: String,
    /// Paths and identities of the daemon itself.
    pub runtime: Runtime,
    /// Where and how the XDP program runs.
    pub dataplane: DataplaneConfig,
    /// VRRP instances, in file order.
    pub instances: Vec<Instance>,
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
}

/// Where and how the XDP program runs. Changing one needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Interfaces that receive traffic for the VIPs.
    pub interfaces: Vec<String>,
    /// Whether generic XDP may be used where the driver refuses native XDP.
    pub allow_generic: bool,
    /// Slots of each table of promoted flows; a power of two, 1,024 to 16,777,216.
    pub flow_slots: u32,
    /// Time-outs of flows.
    pub timeouts: FlowTimeouts,
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

/// A VRRP version 2 instance (RFC 3768 calls it a virtual router).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Unique name, as in logs and scripts.
    pub name: String,
    /// Interface that speaks VRRP and holds the addresses.
    pub interface: String,
    /// Virtual router id, 1-255.
    pub vrid: u8,
    /// 1-254; 255 is the owner of the addresses.
    pub priority: u8,
    /// Whole seconds, 1-255 (the field has eight bits).
    pub advert_interval: Duration,
    /// Whether a higher priority takes over from a lower one.
    pub preempt: bool,
    /// Source address of adverts; the interface's first non-virtual one when absent.
    pub source: Option<Ipv4Addr>,
    /// Multicast group of the adverts.
    pub group: Ipv4Addr,
    /// PASS authentication (RFC 2338): up to eight bytes, in clear on the wire.
    pub password: Option<[u8; 8]>,
    /// Virtual addresses, in advert order.
    pub addresses: Vec<Prefix>,
    /// Commands run at transitions.
    pub notify: NotifyScripts,
}

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address itself, host bits included.
    pub address: Ipv4Addr,
    /// 0-32.
    pub length: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Commands run at VRRP transitions: program and arguments, no shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyScripts {
    /// On becoming MASTER.
    pub master: Option<Vec<String>>,
    /// On becoming BACKUP.
    pub backup: Option<Vec<String>>,
    /// On entering FAULT.
    pub fault: Option<Vec<String>>,
    /// On shut-down.
    pub stop: Option<Vec<String>>,
    /// On every transition, after the specific one, with four arguments: `INSTANCE`, name, state,
    /// priority.
    pub any: Option<Vec<String>>,
    /// A script that runs for longer is killed with its process group.
    pub timeout: Duration,
}

/// State of a VRRP instance, in keepalived's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum VrrpState {
    /// Not started, or stopped.
    Init,
    /// Listening.
    Backup,
    /// Holding the addresses.
    Master,
    /// The interface is unusable.
    Fault,
}

impl fmt::Display for VrrpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            VrrpState::Init => "INIT",
            VrrpState::Backup => "BACKUP",
            VrrpState::Master => "MASTER",
            VrrpState::Fault => "FAULT",
        })
    }
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// What identifies a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// Protocol.
    pub protocol: Protocol,
    /// VIP and port.
    pub address: SocketAddrV4,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.address)
    }
}

/// A virtual service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// Protocol, VIP and port.
    pub id: ServiceId,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// VRRP instance whose mastership decides whether this node serves; `None` always serves.
    pub instance: Option<String>,
    /// Who answers when no real server is alive.
    pub sorry: Option<Target>,
    /// Health check of each real server; `None` means always up.
    pub check: Option<Check>,
    /// Real servers, in file order.
    pub backends: Vec<RealServer>,
}

/// How new connections are spread over real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin: every real server of weight above 0 in turn.
    Rr,
    /// Weighted round robin.
    Wrr,
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Scheduler::Rr => "rr",
            Scheduler::Wrr => "wrr",
        })
    }
}

/// Where packets of a flow go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// This host's own stack.
    Local,
    /// Another host on a connected network.
    Host(Ipv4Addr),
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
    /// Its own address; the port is the service's (direct return changes no port).
    pub address: Ipv4Addr,
    /// 0-65535; 0 keeps its flows and gets no new ones.
    pub weight: u32,
}

/// A health check with its timing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Port asked; the service's when absent.
    pub port: Option<u16>,
    /// From the end of one round to the start of the next.
    pub interval: Duration,
    /// For the TCP connection, and again for the answer.
    pub connect_timeout: Duration,
    /// Further attempts after the first failed one before the real server is down.
    pub retries: u32,
    /// Before each of those.
    pub delay_before_retry: Duration,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A TCP connection can be made.
    Tcp,
    /// `GET path` is answered with this status.
    Http {
        /// Absolute path with optional query.
        path: String,
        /// `Host` header; the address asked when absent.
        host: Option<String>,
        /// Expected status code.
        status: u16,
    },
}

/// Where a host of a connected network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// The address is this host's own.
    ThisHost,
    /// Another host.
    Host {
        /// Its MAC address.
        mac: [u8; 6],
        /// Interface that leads to it.
        ifindex: u32,
        /// MAC address of that interface.
        source_mac: [u8; 6],
    },
}
