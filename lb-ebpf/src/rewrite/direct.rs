//! Direct return: both MAC addresses, the TTL and its checksum. Nothing else of the frame changes.

use lb_common::{Backend, Reason, checksum};

use crate::{
    packet::Packet,
    parse::{
        ethernet::{self, Ethernet},
        ipv4::Ipv4Header,
    },
};

/// Sends the frame to the backend at Ethernet level. IPVS decrements the TTL in this mode too.
#[inline(always)]
pub fn rewrite(packet: &Packet<'_>, backend: &Backend) -> Result<(), Reason> {
    let ethernet = packet.header::<Ethernet>(0)?;
    let ip = packet.header::<Ipv4Header>(ethernet::LENGTH)?;
    // SAFETY: `header` checked the bounds of both; nothing else refers to the frame here.
    unsafe {
        (*ethernet).destination = address(backend.destination);
        (*ethernet).source = address(backend.source);
        (*ip).ttl -= 1;
        (*ip).checksum = checksum::after_ttl_decrement((*ip).checksum);
    }
    Ok(())
}

#[inline(always)]
fn address(word: u64) -> [u16; 3] {
    let b = word.to_ne_bytes();
    [
        u16::from_ne_bytes([b[0], b[1]]),
        u16::from_ne_bytes([b[2], b[3]]),
        u16::from_ne_bytes([b[4], b[5]]),
    ]
}
