//! Ethernet II without tags.

use lb_common::Reason;

use crate::packet::Packet;

/// Ethernet header, in the three words per address that two-byte alignment allows.
#[repr(C)]
pub struct Ethernet {
    pub destination: [u16; 3],
    pub source: [u16; 3],
    pub ethertype_be: u16,
}

/// Where the network header starts.
pub const LENGTH: usize = 14;

const IPV4_BE: u16 = 0x0800_u16.to_be();

/// Succeeds for IPv4.
#[inline(always)]
pub fn parse(packet: &Packet<'_>) -> Result<(), Reason> {
    let ethernet = packet.header::<Ethernet>(0)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    match unsafe { (*ethernet).ethertype_be } {
        IPV4_BE => Ok(()),
        _ => Err(Reason::NotIpv4),
    }
}
