//! ICMP (RFC 792) and ICMPv6 (RFC 4443) errors: the packet that they quote.

use lb_common::{Address, Reason};

use super::{
    ipv4::Ipv4Header,
    ipv6::{self, Ipv6Header},
};
use crate::{packet::Packet, parse::Piece};

/// Type, code, checksum, and four bytes that depend on the type.
#[repr(C, packed(2))]
pub struct IcmpHeader {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    pub rest: u32,
}

const LENGTH: usize = 8;

/// The flow that a quoted packet belonged to. A real server sent it, so its source is the VIP.
pub struct Quoted {
    pub vip: Address,
    pub client: Address,
    pub protocol: u8,
    pub vip_port_be: u16,
    pub client_port_be: u16,
}

/// All transports begin with the ports.
#[repr(C)]
struct Ports {
    source_be: u16,
    destination_be: u16,
}

/// Of an ICMP error at `offset`. Other messages are the host's.
#[inline(always)]
pub fn quoted_v4(packet: &Packet<'_>, offset: usize) -> Result<Quoted, Reason> {
    /// Destination unreachable (fragmentation needed included), time exceeded, parameter problem.
    const ERRORS: [u8; 3] = [3, 11, 12];
    let header = packet.header::<IcmpHeader>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let kind = unsafe { (*header).kind };
    if !ERRORS.contains(&kind) {
        return Err(Reason::NotTransport);
    }
    let inner = packet.header::<Ipv4Header>(offset + LENGTH)?;
    // SAFETY: as above.
    let inner = unsafe { &*inner };
    let header_length = usize::from(inner.version_ihl & 0x0f) * 4;
    let is_later_fragment = u16::from_be(inner.fragment_be) & 0x1fff != 0;
    if inner.version_ihl >> 4 != 4 || header_length < 20 || is_later_fragment {
        return Err(Reason::IcmpUnmatched);
    }
    let (vip, client) = (
        Address::v4(inner.source_be),
        Address::v4(inner.destination_be),
    );
    quoted(
        packet,
        vip,
        client,
        inner.protocol,
        offset + LENGTH + header_length,
    )
}

/// Of an ICMPv6 error at `offset`. Other messages are the host's.
#[inline(always)]
pub fn quoted_v6(packet: &Packet<'_>, offset: usize) -> Result<Quoted, Reason> {
    /// Destination unreachable, packet too big, time exceeded, parameter problem.
    const ERRORS: [u8; 4] = [1, 2, 3, 4];
    let header = packet.header::<IcmpHeader>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let kind = unsafe { (*header).kind };
    if !ERRORS.contains(&kind) {
        return Err(Reason::NotTransport);
    }
    let inner = packet.header::<Ipv6Header>(offset + LENGTH)?;
    // SAFETY: as above.
    let inner = unsafe { &*inner };
    if inner.version_class >> 4 != 6 {
        return Err(Reason::IcmpUnmatched);
    }
    let (vip, client) = (Address(inner.source), Address(inner.destination));
    let walk = ipv6::walk(packet, inner.next_header, offset + LENGTH + ipv6::LENGTH)?;
    if matches!(walk.piece, Piece::Later(_)) {
        return Err(Reason::IcmpUnmatched);
    }
    quoted(packet, vip, client, walk.protocol, walk.offset)
}

#[inline(always)]
fn quoted(
    packet: &Packet<'_>,
    vip: Address,
    client: Address,
    protocol: u8,
    offset: usize,
) -> Result<Quoted, Reason> {
    let ports = packet.header::<Ports>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is valid.
    let ports = unsafe { &*ports };
    Ok(Quoted {
        vip,
        client,
        protocol,
        vip_port_be: ports.source_be,
        client_port_be: ports.destination_be,
    })
}
