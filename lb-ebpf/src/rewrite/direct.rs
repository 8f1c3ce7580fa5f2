//! Direct return: both MAC addresses, the TTL or hop limit, and the checksum of the former. Nothing
//! else of the frame changes.

use lb_common::{Backend, Reason, checksum};

use super::link;
use crate::{
    packet::Packet,
    parse::{Datagram, ethernet::Link, ipv4::Ipv4Header, ipv6::Ipv6Header, plain::Frame},
};

/// Sends the frame to the backend at Ethernet level.
#[inline(always)]
pub fn rewrite<D: Datagram>(
    packet: &Packet<'_>,
    link: &Link,
    _: &D,
    backend: &Backend,
) -> Result<(), Reason> {
    age(packet, link.network_offset(), D::IS_V4)?;
    link::readdress(packet, backend)
}

/// The same for headers at fixed places, whose bounds are known.
///
/// # Safety
///
/// `frame` was checked against the end of the packet's first buffer, and nothing moved the packet since.
#[inline(always)]
pub unsafe fn plain_v4(frame: *mut Frame<Ipv4Header>, backend: &Backend) {
    // SAFETY: by the caller; nothing else refers to the frame here.
    unsafe {
        age_v4(&raw mut (*frame).network);
        link::write(&raw mut (*frame).link, backend);
    }
}

/// As [`plain_v4`].
///
/// # Safety
///
/// Likewise.
#[inline(always)]
pub unsafe fn plain_v6(frame: *mut Frame<Ipv6Header>, backend: &Backend) {
    // SAFETY: by the caller; nothing else refers to the frame here.
    unsafe {
        (*frame).network.hop_limit -= 1;
        link::write(&raw mut (*frame).link, backend);
    }
}

/// Takes one from TTL or hop limit, as a router does. IPVS does so in this mode too.
#[inline(always)]
pub fn age(packet: &Packet<'_>, offset: usize, ipv4: bool) -> Result<(), Reason> {
    if ipv4 {
        let ip = packet.header::<Ipv4Header>(offset)?;
        // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
        unsafe { age_v4(ip) };
    } else {
        let ip = packet.header::<Ipv6Header>(offset)?;
        // SAFETY: as above.
        unsafe { (*ip).hop_limit -= 1 };
    }
    Ok(())
}

/// # Safety
///
/// The header lies in the packet, and nothing else refers to it.
#[inline(always)]
unsafe fn age_v4(ip: *mut Ipv4Header) {
    // SAFETY: by the caller.
    unsafe {
        let word = (&raw mut (*ip).ttl).cast::<u32>();
        word.write_unaligned(checksum::aged(word.read_unaligned()));
    }
}
