//! Direct return: both MAC addresses, the TTL or hop limit, and the checksum of the former. Nothing
//! else of the frame changes.

use lb_common::{Backend, Reason, checksum};

use super::link;
use crate::{
    packet::Packet,
    parse::{Datagram, ethernet::Link, ipv4::Ipv4Header, ipv6::Ipv6Header},
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

/// Takes one from TTL or hop limit, as a router does. IPVS does so in this mode too.
#[inline(always)]
pub fn age(packet: &Packet<'_>, offset: usize, ipv4: bool) -> Result<(), Reason> {
    if ipv4 {
        let ip = packet.header::<Ipv4Header>(offset)?;
        // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
        unsafe {
            (*ip).ttl -= 1;
            (*ip).checksum = checksum::after_ttl_decrement((*ip).checksum);
        }
    } else {
        let ip = packet.header::<Ipv6Header>(offset)?;
        // SAFETY: as above.
        unsafe { (*ip).hop_limit -= 1 };
    }
    Ok(())
}
