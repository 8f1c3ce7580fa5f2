//! The frame, and the only bounds check and pointer cast on it.

use core::mem::size_of;

use aya_ebpf::programs::XdpContext;
use lb_common::Reason;

/// A frame as the driver handed it over.
pub struct Packet<'a> {
    ctx: &'a XdpContext,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }

    /// Interface that the frame came in on.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// A header of type `T` at `offset` from the start of the frame.
    ///
    /// `T` must be valid for any bytes and aligned to at most two bytes: frames start at an even
    /// address (NET_IP_ALIGN makes it 2 modulo 4) and offsets of headers are even.
    #[inline(always)]
    pub fn header<T>(&self, offset: usize) -> Result<*mut T, Reason> {
        let start = self.ctx.data();
        if start + offset + size_of::<T>() > self.ctx.data_end() {
            return Err(Reason::Truncated);
        }
        Ok((start + offset) as *mut T)
    }
}
