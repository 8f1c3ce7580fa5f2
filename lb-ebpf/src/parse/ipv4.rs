//! IPv4 (RFC 791), with options.

use lb_common::Reason;

use super::ethernet;
use crate::packet::Packet;

/// The fixed part of the header. Addresses are two-byte aligned on the wire.
#[repr(C, packed(2))]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length_be: u16,
    pub id_be: u16,
    pub fragment_be: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source_be: u32,
    pub destination_be: u32,
}

const MORE_FRAGMENTS_BE: u16 = 0x2000_u16.to_be();
const OFFSET_MASK_BE: u16 = 0x1fff_u16.to_be();

/// What later steps need of the header.
pub struct Ipv4 {
    pub source_be: u32,
    pub destination_be: u32,
    pub protocol: u8,
    /// Where the transport header starts, from the start of the frame: 34 to 74.
    pub transport_offset: usize,
    /// Header and payload.
    pub total_length: u16,
    ttl: u8,
    fragment_be: u16,
}

/// Reads the header. Says nothing about whether the packet can be forwarded.
#[inline(always)]
pub fn parse(packet: &Packet<'_>) -> Result<Ipv4, Reason> {
    let header = packet.header::<Ipv4Header>(ethernet::LENGTH)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let header = unsafe { &*header };
    let header_length = usize::from(header.version_ihl & 0x0f) * 4;
    let total_length = u16::from_be(header.total_length_be);
    if header.version_ihl >> 4 != 4
        || header_length < 20
        || usize::from(total_length) < header_length
    {
        return Err(Reason::Truncated);
    }
    Ok(Ipv4 {
        source_be: header.source_be,
        destination_be: header.destination_be,
        protocol: header.protocol,
        transport_offset: ethernet::LENGTH + header_length,
        total_length,
        ttl: header.ttl,
        fragment_be: header.fragment_be,
    })
}

impl Ipv4 {
    /// A fragment other than the first has no ports.
    #[inline(always)]
    pub fn has_transport_header(&self) -> bool {
        self.fragment_be & OFFSET_MASK_BE == 0
    }

    /// Whether a packet of a service may be forwarded as it is. The kernel reassembles fragments
    /// and answers an expired TTL.
    #[inline(always)]
    pub fn forwardable(&self) -> Result<(), Reason> {
        if self.fragment_be & (OFFSET_MASK_BE | MORE_FRAGMENTS_BE) != 0 {
            return Err(Reason::Fragment);
        }
        if self.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        Ok(())
    }
}
