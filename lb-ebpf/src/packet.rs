//! The frame, and the only bounds check and pointer cast on it.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use lb_common::Reason;

/// A frame as the driver handed it over.
pub struct Packet<'a> {
    pub ctx: &'a XdpContext,
    /// Whether the frame may continue in further buffers, of which `linear_length` knows nothing.
    pub frags: bool,
}

impl<'a> Packet<'a> {
    /// For functions that are verified on their own and read a packet again: its length was checked
    /// before, so further buffers do not matter.
    #[inline(always)]
    pub fn again(ctx: &'a XdpContext) -> Self {
        Self { ctx, frags: false }
    }

    /// Interface that the frame came in on.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Bytes of the frame that lie in its first buffer.
    #[inline(always)]
    pub fn linear_length(&self) -> usize {
        self.ctx.data_end() - self.ctx.data()
    }

    /// Whether the frame has at least `length` bytes.
    #[inline(always)]
    pub fn holds(&self, length: usize) -> bool {
        self.linear_length() >= length || (self.frags && self.whole_length() >= length)
    }

    /// Bytes of the frame in all its buffers.
    #[inline(always)]
    pub fn whole_length(&self) -> usize {
        if !self.frags {
            return self.linear_length();
        }
        // SAFETY: the helper reads the context it is given.
        unsafe {
            aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) as usize
        }
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

    /// Moves the start of the frame by `delta` bytes: negative makes room in front. Every pointer
    /// into the frame is void afterwards.
    #[inline(always)]
    pub fn move_start(&self, delta: i32) -> Result<(), Reason> {
        // SAFETY: the helper checks its arguments.
        match unsafe { bpf_xdp_adjust_head(self.ctx.ctx, delta) } {
            0 => Ok(()),
            _ => Err(Reason::NoRoom),
        }
    }

    /// Moves the end of the frame by `delta` bytes: negative cuts it.
    #[inline(always)]
    pub fn move_end(&self, delta: i32) -> Result<(), Reason> {
        // SAFETY: the helper checks its arguments.
        match unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, delta) } {
            0 => Ok(()),
            _ => Err(Reason::NoRoom),
        }
    }
}
