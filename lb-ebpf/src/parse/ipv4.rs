//! IPv4 (RFC 791), with options.

use lb_common::{Control, Reason};

use super::{Datagram, Piece};
use crate::{packet::Packet, service::Vip};

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

impl Ipv4Header {
    /// Length without options.
    pub const LENGTH: usize = 20;
}

const MORE_FRAGMENTS_BE: u16 = 0x2000_u16.to_be();
const OFFSET_MASK_BE: u16 = 0x1fff_u16.to_be();

/// What later steps need of the header.
pub struct Ipv4 {
    destination_be: u32,
    protocol: u8,
    transport_offset: usize,
    total_length: u16,
    ttl: u8,
    fragment_be: u16,
    id_be: u16,
}

/// Reads the header at `offset`. Says nothing about whether the packet can be forwarded.
#[inline(always)]
pub fn parse(packet: &Packet<'_>, offset: usize) -> Result<Ipv4, Reason> {
    let header = packet.header::<Ipv4Header>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let header = unsafe { &*header };
    let header_length = usize::from(header.version_ihl & 0x0f) * 4;
    let total_length = u16::from_be(header.total_length_be);
    if header.version_ihl >> 4 != 4
        || header_length < 20
        || usize::from(total_length) < header_length
        || !packet.holds(offset + usize::from(total_length))
    {
        return Err(Reason::Truncated);
    }
    Ok(Ipv4 {
        destination_be: header.destination_be,
        protocol: header.protocol,
        transport_offset: offset + header_length,
        total_length,
        ttl: header.ttl,
        fragment_be: header.fragment_be,
        id_be: header.id_be,
    })
}

impl Datagram for Ipv4 {
    const IS_V4: bool = true;
    const ICMP: u8 = 1;

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn transport_offset(&self) -> usize {
        self.transport_offset
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.total_length)
    }

    #[inline(always)]
    fn may_travel(&self) -> bool {
        self.ttl > 1
    }

    #[inline(always)]
    fn piece(&self) -> Piece {
        if self.fragment_be & (OFFSET_MASK_BE | MORE_FRAGMENTS_BE) == 0 {
            Piece::Whole
        } else if self.fragment_be & OFFSET_MASK_BE == 0 {
            Piece::First(u32::from(self.id_be))
        } else {
            Piece::Later(u32::from(self.id_be))
        }
    }

    #[inline(always)]
    fn vip(&self, _: &Control) -> Option<Vip> {
        Some(Vip::v4(self.destination_be))
    }
}
