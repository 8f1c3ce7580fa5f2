//! The control element: what user space changes while packets flow, read directly by the program.

use crate::limits::MAX_ROLES;

/// One element, mapped into the daemon. Every field is written whole, by one aligned store.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Control {
    /// 1 once the daemon has filled the element; until then every packet passes.
    pub ready: u32,
    /// Which of the two generations is live: 0 or 1. Storing here switches the configuration.
    pub live: u32,
    /// Secrets of the bucket hash, drawn when the maps are created.
    pub hash_secret: [u64; 2],
    /// Bucket index mask by [`FlowTable`](crate::flow::FlowTable): buckets - 1.
    pub bucket_mask: [u32; 4],
    /// How long a flow may be silent, in [ticks](crate::flow::tick_shift).
    pub timeouts: Timeouts,
    /// How far jiffies are shifted to make ticks: [`tick_shift`](crate::flow::tick_shift).
    pub tick_shift: u32,
    /// Pads the hot part to two cache lines.
    pub reserved: [u32; 17],
    /// Mastership by role index: non-zero means that this node serves. Index 0 is always 1.
    pub roles: [u8; MAX_ROLES],
}

/// Time-outs of a flow's states, in [ticks](crate::flow::tick_shift).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP after the second packet (IPVS: 900 s).
    pub tcp: u32,
    /// TCP after a FIN or RST from the client (IPVS: 120 s).
    pub tcp_closing: u32,
    /// TCP before the second packet (IPVS's SYN_RECV: 60 s).
    pub tcp_half_open: u32,
    /// UDP (IPVS: 300 s).
    pub udp: u32,
}

const _: () = {
    assert!(core::mem::size_of::<Control>() == 128 + MAX_ROLES);
    assert!(core::mem::align_of::<Control>() == 8);
    assert!(core::mem::offset_of!(Control, hash_secret) == 8);
    assert!(core::mem::offset_of!(Control, roles) == 128);
};
