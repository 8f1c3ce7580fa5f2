//! VRRP instances.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{AnnounceTiming, Auth, IpPrefix, LinkDamping, Watch, network::Network};

/// A VRRP instance (RFC 3768 and RFC 9568 call it a virtual router).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Unique name, as in logs and scripts.
    pub name: String,
    /// Interface that speaks VRRP and holds the addresses.
    pub interface: String,
    /// Protocol version. IPv6 addresses need version 3.
    pub version: VrrpVersion,
    /// Virtual router id, 1-255.
    pub vrid: u8,
    /// 1-254; 255 is the owner of the addresses.
    pub priority: u8,
    /// Version 2: whole seconds, 1-255. Version 3: 10 ms to 40.95 s in steps of 10 ms.
    pub advert_interval: Duration,
    /// Whether a higher priority takes over from a lower one.
    pub preempt: bool,
    /// How long a master of lower priority is left in peace before it is replaced.
    pub preempt_delay: Duration,
    /// Source address of adverts; the interface's first non-virtual one when absent (for IPv6 the
    /// first link-local one).
    pub source: Option<IpAddr>,
    /// Multicast group of the adverts.
    pub group: IpAddr,
    /// Other routers, to which adverts go one by one instead of to the group. Adverts of anybody
    /// else are not believed.
    pub peers: Vec<IpAddr>,
    /// TTL of adverts to and from the peers.
    pub unicast_ttl: UnicastTtl,
    /// Over what version 3's checksum is computed, for IPv4.
    pub checksum: ChecksumForm,
    /// Proof of origin.
    pub auth: Auth,
    /// When it announces its addresses as master.
    pub announce: AnnounceTiming,
    /// Virtual addresses, in advert order, all of one family.
    pub addresses: Vec<Prefix>,
    /// Addresses that come and go with the others and are not in the adverts.
    pub excluded: Vec<Prefix>,
    /// What it does to the host's network besides.
    pub network: Network,
    /// Instances of one group become master, and fail, together.
    pub sync_group: Option<String>,
    /// What it watches besides its interface.
    pub watches: Vec<Watch>,
    /// When its interface is used again after a loss.
    pub damping: LinkDamping,
    /// Commands run at transitions.
    pub notify: NotifyScripts,
}

impl Instance {
    /// Whether it speaks over IPv6.
    pub fn is_v6(&self) -> bool {
        self.group.is_ipv6()
    }

    /// What others know it by.
    pub fn router(&self) -> RouterId {
        RouterId {
            interface: self.interface.clone(),
            version: self.version,
            vrid: self.vrid,
            group: self.group,
        }
    }

    /// Whether a running instance becomes another by a change of configuration alone, with its state, timers
    /// and mastership: for other routers nothing happens. Its name may change, unless an interface of a virtual
    /// MAC address goes with that.
    pub fn goes_on_as(&self, new: &Instance) -> bool {
        let has_interface = |i: &Instance| i.network.virtual_mac.is_some();
        self.is_router(&new.router())
            && (self.name == new.name || !(has_interface(self) || has_interface(new)))
    }

    /// Whether others know it as this one.
    pub fn is_router(&self, id: &RouterId) -> bool {
        (self.vrid, self.version, self.group) == (id.vrid, id.version, id.group)
            && self.interface == id.interface
    }

    /// Everything that a master holds.
    pub fn held(&self) -> impl Iterator<Item = &Prefix> {
        self.addresses.iter().chain(&self.excluded)
    }
}

/// What names a virtual router on the wire, whatever it is called in a configuration. A configuration has each
/// once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterId {
    /// Interface that it speaks on.
    pub interface: String,
    /// Protocol version.
    pub version: VrrpVersion,
    /// Virtual router id.
    pub vrid: u8,
    /// Group, and with it the address family; that of one with unicast peers too, which is not spoken to then.
    pub group: IpAddr,
}

/// Version of VRRP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VrrpVersion {
    /// RFC 3768: IPv4, whole seconds.
    #[serde(rename = "2")]
    V2,
    /// RFC 9568: both families, hundredths of a second.
    #[serde(rename = "3")]
    V3,
}

impl fmt::Display for VrrpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VrrpVersion::V2 => "2",
            VrrpVersion::V3 => "3",
        })
    }
}

/// TTL (hop limit) of adverts to and from unicast peers, which may be behind routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnicastTtl {
    /// Of those sent.
    pub sent: u8,
    /// Of those believed.
    pub accepted: RangeInclusive<u8>,
}

impl Default for UnicastTtl {
    fn default() -> Self {
        Self {
            sent: 255,
            accepted: 0..=255,
        }
    }
}

/// Over what the checksum of a version 3 advert over IPv4 is computed. All are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumForm {
    /// As the peer does. Before one was heard: as [`ChecksumForm::Message`], and to peers that are spoken to one by
    /// one as [`ChecksumForm::PseudoHeader`].
    Auto,
    /// The message alone (RFC 9568 section 5.2.8).
    Message,
    /// A pseudo-header and the message, as keepalived and FRR do.
    PseudoHeader,
}

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address itself, host bits included.
    pub address: IpAddr,
    /// 0-32 or 0-128.
    pub length: u8,
}

impl Prefix {
    /// Whether an address is on the network that this one is on.
    pub fn holds(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let rest = width.saturating_sub(u32::from(self.length));
            rest >= width || (a ^ b) >> rest == 0
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(own.to_bits().into(), other.to_bits().into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }

    /// The network that the address is of: its host bits are clear.
    pub fn network(&self) -> IpPrefix {
        let length = u32::from(self.length);
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX
                    .checked_shl(32_u32.saturating_sub(length))
                    .unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX
                    .checked_shl(128_u32.saturating_sub(length))
                    .unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        IpPrefix {
            address,
            length: self.length,
        }
    }
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

impl VrrpState {
    /// Every state, in the order of its number.
    pub const ALL: [VrrpState; 4] = [
        VrrpState::Init,
        VrrpState::Backup,
        VrrpState::Master,
        VrrpState::Fault,
    ];
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
