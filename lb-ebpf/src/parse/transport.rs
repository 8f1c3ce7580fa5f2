//! TCP (RFC 9293), UDP (RFC 768) and SCTP (RFC 9260): ports, and what a packet does to its
//! connection.

use core::mem::size_of;

use lb_common::Reason;

use crate::packet::Packet;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const SCTP: u8 = 132;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Types of the first chunk (RFC 9260 section 3.2).
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;

/// All protocols begin with the ports.
#[repr(C)]
pub struct Ports {
    pub source_be: u16,
    pub destination_be: u16,
}

/// TCP without options. Its beginning is that of a UDP header.
#[repr(C, packed(2))]
pub struct SegmentHeader {
    pub ports: Ports,
    pub sequence_be: u32,
    pub acknowledgement_be: u32,
    pub offset: u8,
    pub flags: u8,
    pub window_be: u16,
    pub checksum: u16,
    pub urgent_be: u16,
}

/// Length of a UDP header.
pub const UDP_LENGTH: usize = size_of::<UdpHeader>();

#[repr(C)]
struct UdpHeader {
    ports: Ports,
    length_be: u16,
    checksum: u16,
}

/// Common header and the head of the first chunk.
#[repr(C, packed(2))]
struct SctpHeader {
    ports: Ports,
    verification_tag: u32,
    checksum: u32,
    chunk_type: u8,
    chunk_flags: u8,
    chunk_length_be: u16,
}

/// What a packet means for its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// SYN without ACK, or INIT: a new connection, or the repetition of one.
    Open = 0,
    /// FIN, RST, SHUTDOWN or ABORT.
    End = 1,
    /// Any other packet of a connection.
    Data = 2,
    /// UDP knows no connections.
    Datagram = 3,
}

/// Ports and [`Kind`].
pub struct Transport {
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub kind: Kind,
}

/// Reads the transport header of a packet or of a first fragment, which ends at `end`: what a frame is
/// padded with is nobody's port.
#[inline(always)]
pub fn parse(
    packet: &Packet<'_>,
    protocol: u8,
    offset: usize,
    end: usize,
) -> Result<Transport, Reason> {
    let (ports, kind, length) = match protocol {
        TCP => {
            let header = packet.header::<SegmentHeader>(offset)?;
            // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
            let header = unsafe { &*header };
            (
                &header.ports,
                kind_of(header.flags),
                size_of::<SegmentHeader>(),
            )
        }
        UDP => {
            let header = packet.header::<UdpHeader>(offset)?;
            // SAFETY: as above.
            let ports = unsafe { &(*header).ports };
            (ports, Kind::Datagram, size_of::<UdpHeader>())
        }
        SCTP => {
            let header = packet.header::<SctpHeader>(offset)?;
            // SAFETY: as above.
            let header = unsafe { &*header };
            let kind = match header.chunk_type {
                INIT => Kind::Open,
                ABORT | SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => Kind::End,
                _ => Kind::Data,
            };
            (&header.ports, kind, size_of::<SctpHeader>())
        }
        _ => return Err(Reason::NotTransport),
    };
    if offset + length > end {
        return Err(Reason::Truncated);
    }
    Ok(Transport {
        source_port_be: ports.source_be,
        destination_port_be: ports.destination_be,
        kind,
    })
}

/// Whether a segment with these flags neither opens nor ends a connection.
#[inline(always)]
pub fn goes_on(flags: u8) -> bool {
    flags & (FIN | SYN | RST) == 0
}

#[inline(always)]
fn kind_of(flags: u8) -> Kind {
    if flags & (FIN | RST) != 0 {
        Kind::End
    } else if flags & (SYN | ACK) == SYN {
        Kind::Open
    } else {
        Kind::Data
    }
}
