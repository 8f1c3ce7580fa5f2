//! Which data plane, and what only one of the two can do.

use std::net::IpAddr;

use super::{Forwarding, Persistence, Ports, Scheduler, ServiceId, Tunnel, VirtualService};

/// Which data plane forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Native XDP; where it cannot be, IPVS; where that cannot be either, generic XDP if allowed.
    #[default]
    Auto,
    /// XDP: native, or generic if allowed.
    Xdp,
    /// Generic XDP.
    XdpGeneric,
    /// The kernel's IPVS.
    Ipvs,
}

impl Mode {
    /// All of them, by name.
    pub const ALL: [(&'static str, Mode); 4] = [
        ("auto", Mode::Auto),
        ("xdp", Mode::Xdp),
        ("xdp-generic", Mode::XdpGeneric),
        ("ipvs", Mode::Ipvs),
    ];
}

/// The kernel's synchronisation of IPVS connections between directors (keepalived's
/// `lvs_sync_daemon`). What is `None` is the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncDaemonConfig {
    /// Interface of its packets.
    pub interface: String,
    /// VRRP instance: MASTER tells, all else learns.
    pub instance: String,
    /// The same on all directors; 0 listens to all.
    pub id: u8,
    /// Longest message, bytes.
    pub length: Option<u16>,
    /// Multicast group.
    pub group: Option<IpAddr>,
    /// UDP port.
    pub port: Option<u16>,
    /// TTL.
    pub ttl: Option<u8>,
}

impl Scheduler {
    /// Whether the XDP program has it.
    pub const fn is_in_xdp(self) -> bool {
        match self {
            Scheduler::Rr
            | Scheduler::Wrr
            | Scheduler::Lc
            | Scheduler::Wlc
            | Scheduler::Sh
            | Scheduler::Mh
            | Scheduler::Fo => true,
            Scheduler::Ovf
            | Scheduler::Lblc
            | Scheduler::Lblcr
            | Scheduler::Dh
            | Scheduler::Sed
            | Scheduler::Nq
            | Scheduler::Twos => false,
        }
    }
}

impl VirtualService {
    /// What of it the XDP program cannot do.
    pub fn xdp_lacks(&self) -> Option<String> {
        let (scheduler, forwarding) = (self.scheduler, self.forwarding);
        let lacks = xdp_lacks(scheduler, forwarding, self.one_packet, self.fwmark);
        lacks.or_else(|| engine_in_xdp(self.persistence))
    }

    /// What of it IPVS cannot do.
    pub fn ipvs_lacks(&self) -> Option<String> {
        ipvs_lacks(&self.id, self.persistence, self.fwmark)
    }
}

/// What of a service the XDP program cannot do, with what it can do instead.
pub fn xdp_lacks(
    scheduler: Scheduler,
    forwarding: Forwarding,
    one_packet: bool,
    fwmark: Option<u32>,
) -> Option<String> {
    if !scheduler.is_in_xdp() {
        let all = Scheduler::ALL.iter();
        let names: Vec<&str> = all
            .filter(|(_, scheduler)| scheduler.is_in_xdp())
            .map(|(name, _)| *name)
            .collect();
        let names = names.join(", ");
        return Some(format!("scheduler {scheduler} (it has {names})"));
    }
    if forwarding == Forwarding::Nat {
        return Some("`forward` \"nat\" (it has \"dr\" and \"tunnel\")".to_owned());
    }
    if let Forwarding::Tunnel(tunnel) = forwarding
        && tunnel != Tunnel::Ipip
    {
        let name = tunnel.name();
        return Some(format!("`tunnel_type` \"{name}\" (it has \"ipip\")"));
    }
    if fwmark.is_some() {
        return Some("`fwmark` (firewalls mark packets behind it)".to_owned());
    }
    one_packet.then(|| "`one_packet` (each flow has one real server)".to_owned())
}

/// What of a client's sticking the XDP program cannot do.
pub fn engine_in_xdp(persistence: Option<Persistence>) -> Option<String> {
    let engine = persistence?.engine?.name();
    Some(format!(
        "`persistence_engine` \"{engine}\" (it does not read what packets carry)"
    ))
}

/// What of a service IPVS cannot do, with what it can do instead.
pub fn ipvs_lacks(
    id: &ServiceId,
    persistence: Option<Persistence>,
    fwmark: Option<u32>,
) -> Option<String> {
    // The mark says which packets are meant.
    if id.ports.single().is_some() || fwmark.is_some() {
        return None;
    }
    if id.ports != Ports::ALL {
        return Some(
            "ranges of ports (it has single ones, all ports with `persistence_timeout`, and what a firewall marks for \
             `fwmark`)"
                .to_owned(),
        );
    }
    persistence.is_none().then(|| {
        "services of all ports without `persistence_timeout` (with it, it has them)".to_owned()
    })
}
