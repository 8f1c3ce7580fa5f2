//! What forwarding writes to a frame.

pub mod direct;
mod link;
mod reset;
mod too_big;
mod tunnel;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{Backend, BackendFlags, Reason};

use crate::{
    answer, maps,
    packet::Packet,
    parse::{
        Datagram, Piece, Place,
        ethernet::{IPV4_BE, IPV6_BE, Link},
    },
};

/// A frame that needs more than new addresses.
pub struct Job {
    place: Place,
    /// Backend id.
    backend: u16,
    /// Bytes from the IP header on.
    length: u32,
    /// Bytes of the frame in all its buffers.
    whole_length: u32,
}

/// Whether only addresses and TTL change: the backend is in the frame's VLAN, in no tunnel, and gets the packet.
#[inline(always)]
pub fn is_simple(link: &Link, backend: &Backend) -> bool {
    link.outer == backend.vlan()
        && u64::from(link.inner) == backend.inner_vlan
        && backend.flags() & (BackendFlags::TUNNEL | BackendFlags::RESET) == 0
}

/// Whether the packet is small enough for the interface that it leaves by. What leaves by the interface that it came
/// in by always is.
#[inline(always)]
pub fn fits(packet: &Packet<'_>, backend: &Backend, length: u32) -> bool {
    let limit = (backend.ifindex >> 32) as u32;
    limit == 0 || length <= limit || backend.ifindex as u32 == packet.ingress_ifindex()
}

/// Changes the VLAN, or puts the packet into a tunnel.
#[inline(always)]
pub fn uncommon<D: Datagram>(
    packet: &Packet<'_>,
    link: &Link,
    ip: &D,
    backend: u16,
) -> Result<(), Reason> {
    let (ctx, place) = (packet.ctx.ctx, Place::of(link, ip).0);
    let lengths = (packet.whole_length() as u64) << 32 | u64::from(ip.length());
    match answer::decode(rewrite_uncommon(ctx, place, u32::from(backend), lengths)) {
        Err(Reason::TooBig)
            if ip.protocol() == D::ICMP || matches!(ip.piece(), Piece::Later(_)) =>
        {
            Err(Reason::TooBigUnanswered)
        }
        Err(Reason::TooBig) => Err(too_big::answer(packet, place, backend, lengths)),
        // Errors and pieces have nothing that could be reset.
        Err(Reason::Reset) if ip.protocol() == D::ICMP || matches!(ip.piece(), Piece::Later(_)) => {
            Err(Reason::NoBackend)
        }
        Err(Reason::Reset) => Err(reset::answer(packet, place, lengths)),
        other => other.map(|_| ()),
    }
}

/// Verified on its own. `lengths` are those of the IP packet in bits 0-31 and of the frame in 32-63.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite_uncommon(ctx: *mut xdp_md, place: u64, backend: u32, lengths: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    let job = Job::new(place, backend, lengths);
    answer::encode(rewrite(&packet, &job).map(|()| 0))
}

#[inline(always)]
fn rewrite(packet: &Packet<'_>, job: &Job) -> Result<(), Reason> {
    let backend = maps::backend(job.backend);
    if backend.flags() & BackendFlags::RESET != 0 {
        return Err(Reason::Reset);
    }
    if !fits(packet, backend, job.length) {
        return Err(Reason::TooBig);
    }
    if backend.flags() & BackendFlags::TUNNEL != 0 {
        return tunnel::send(packet, job, backend);
    }
    let ethertype_be = if job.place.is_v4() { IPV4_BE } else { IPV6_BE };
    let offset = link::replace(packet, job, backend, ethertype_be, 0)?;
    direct::age(packet, offset, job.place.is_v4())
}

impl Job {
    #[inline(always)]
    fn new(place: u64, backend: u32, lengths: u64) -> Self {
        Self {
            place: Place(place),
            backend: backend as u16,
            length: lengths as u32,
            whole_length: (lengths >> 32) as u32,
        }
    }
}
