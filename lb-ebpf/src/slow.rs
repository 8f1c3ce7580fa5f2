//! The slow path: what passes because the program cannot send it, though it knows where to, is handled by the
//! kernel's IPVS. `lb_common::slow` says how the decision gets there.

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_md},
    helpers::bpf_xdp_adjust_meta,
    macros::classifier,
    programs::{TcContext, XdpContext},
};
use lb_common::{
    Control, Reason,
    control::Features,
    limits::MAX_BACKENDS,
    slow::{MAGIC, Note},
};

use crate::{atomic, maps::SLOW_WAYS, packet::Packet};

const LENGTH: usize = size_of::<Note>();

/// Whether there is one.
#[inline(always)]
pub fn is_open(control: &Control) -> bool {
    control.features & Features::SLOW_PATH != 0
}

/// Writes down which backend a packet is for that passes. Nothing reads the frame afterwards but a capture, by its context.
#[inline(always)]
pub fn note(packet: &Packet<'_>, reason: Reason, backend: u16) {
    note_backend(packet.ctx.ctx, reason as u32, u32::from(backend));
}

/// Verified on its own. Always 0. Drivers that leave no room for metadata refuse it, and the packet passes as it is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_backend(ctx: *mut xdp_md, reason: u32, backend: u32) -> i64 {
    let is_for_ipvs = reason == Reason::TtlExpired as u32
        || reason == Reason::NeighbourUnknown as u32
        || reason == Reason::NoRedirect as u32
        || reason == Reason::FragmentEarly as u32;
    // SAFETY: the helper checks its arguments.
    if !is_for_ipvs || unsafe { bpf_xdp_adjust_meta(ctx, -(LENGTH as i32)) } != 0 {
        return 0;
    }
    let ctx = XdpContext::new(ctx);
    let place = ctx.metadata();
    if place + LENGTH > ctx.metadata_end() {
        return 0;
    }
    let note = Note {
        magic: MAGIC,
        backend: backend as u16,
    };
    // SAFETY: the bounds were checked, and metadata is aligned as the frame is, to two bytes.
    unsafe { (place as *mut Note).write(note) };
    0
}

/// Gives a packet the mark of the backend that it is for.
#[classifier]
pub fn slow_in(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the verifier checks accesses to the context.
    let (place, end) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    if place + LENGTH > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the bounds were checked; every bit pattern is a valid note.
    let note = unsafe { (place as *const Note).read() };
    let Some(way) = SLOW_WAYS.get_ptr_mut(u32::from(note.backend) & (MAX_BACKENDS - 1)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: a live array element, whose words are stored whole.
    let mark = unsafe { (&raw const (*way).mark).read_volatile() };
    if note.magic == MAGIC && mark != 0 {
        // SAFETY: as above; the word is only added to.
        unsafe { atomic::fetch_add(&raw mut (*way).packets, 1) };
        // SAFETY: as above.
        unsafe { (*skb).mark = mark };
    }
    TC_ACT_UNSPEC
}
