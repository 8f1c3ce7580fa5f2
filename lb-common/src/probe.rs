//! Health checks of the VIP *on* a real server: how a probe's packets are told from all others, and
//! what becomes of them.
//!
//! A probe's socket is connected to the real server's own address and carries a mark. On the way out
//! the address is exchanged for the VIP, behind the real server's MAC address that the kernel has found;
//! on the way in the VIP is exchanged for the address that the socket knows.

use core::mem::size_of;

use crate::Address;

/// The upper half of a probe's firewall mark (`SO_MARK`): the letters `lb`. The lower half is an index
/// into the map of [`ProbeTarget`]s.
pub const MARK: u32 = 0x6c62_0000;

/// The bits of a mark that must be [`MARK`]'s.
pub const MARK_MASK: u32 = 0xffff_0000;

/// Probe targets: one for each real server of each service.
pub const MAX_PROBES: u32 = crate::limits::MAX_BACKENDS;

/// Probes that wait for an answer. One that is forgotten fails as if the real server were silent; 2,000
/// checks each second for [`PATIENCE_NS`] need 120,000, and the oldest go first.
pub const MAX_PROBE_FLOWS: u32 = 1 << 17;

/// How long after its last packet a probe's answers are still its own, in nanoseconds: a minute. Later
/// the same port may be somebody else's.
pub const PATIENCE_NS: u64 = 60_000_000_000;

/// Whom a mark means. All 0 is nobody.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeTarget {
    /// Address that the packets shall have.
    pub vip: Address,
    /// Address that the probe's socket is connected to. Of the same family.
    pub host: Address,
    /// Non-zero where packets travel to the real server in a tunnel.
    pub tunnel: u64,
}

/// A probe under way, as its answers look.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProbeFlow {
    /// Where the answer goes: our address.
    pub local: Address,
    /// Where it comes from.
    pub vip: Address,
    /// Our port (network byte order) in bits 0-15, the VIP's in 16-31, the protocol in 32-39.
    pub rest: u64,
}

/// What is known of a probe under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The address that its socket is connected to.
    pub host: Address,
    /// Until when, in nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub until_ns: u64,
}

impl ProbeFlow {
    /// Packs a key. Ports in network byte order.
    #[inline(always)]
    pub const fn new(
        local: Address,
        vip: Address,
        local_port_be: u16,
        vip_port_be: u16,
        protocol: u8,
    ) -> Self {
        Self {
            local,
            vip,
            rest: local_port_be as u64 | (vip_port_be as u64) << 16 | (protocol as u64) << 32,
        }
    }
}

const _: () = {
    assert!(size_of::<ProbeTarget>() == 40);
    assert!(size_of::<ProbeFlow>() == 40);
    assert!(size_of::<Waiting>() == 24);
    assert!(MARK & !MARK_MASK == 0 && MAX_PROBES - 1 <= !MARK_MASK);
};
