//! TCP (RFC 9293) and UDP (RFC 768): ports, and what a TCP segment does to its connection.

use lb_common::Reason;

use super::ipv4::Ipv4;
use crate::packet::Packet;

const TCP: u8 = 6;
const UDP: u8 = 17;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Both protocols begin with the ports.
#[repr(C)]
struct Ports {
    source_be: u16,
    destination_be: u16,
}

#[repr(C, packed(2))]
struct TcpHeader {
    ports: Ports,
    sequence_be: u32,
    acknowledgement_be: u32,
    offset: u8,
    flags: u8,
    window_be: u16,
    checksum: u16,
    urgent_be: u16,
}

#[repr(C)]
struct UdpHeader {
    ports: Ports,
    length_be: u16,
    checksum: u16,
}

/// What a packet means for its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYN without ACK: a new connection, or the repetition of one.
    TcpSyn,
    /// FIN or RST.
    TcpEnd,
    /// Any other segment.
    TcpData,
    Udp,
}

/// Ports and [`Kind`].
pub struct Transport {
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub kind: Kind,
}

/// Reads the transport header of a packet or of a first fragment.
#[inline(always)]
pub fn parse(packet: &Packet<'_>, ip: &Ipv4) -> Result<Transport, Reason> {
    let (ports, kind) = match ip.protocol {
        TCP | UDP if !ip.has_transport_header() => return Err(Reason::Fragment),
        TCP => {
            let header = packet.header::<TcpHeader>(ip.transport_offset)?;
            // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
            let header = unsafe { &*header };
            (&header.ports, kind_of(header.flags))
        }
        UDP => {
            let header = packet.header::<UdpHeader>(ip.transport_offset)?;
            // SAFETY: as above.
            (unsafe { &(*header).ports }, Kind::Udp)
        }
        _ => return Err(Reason::NotTcpUdp),
    };
    Ok(Transport {
        source_port_be: ports.source_be,
        destination_port_be: ports.destination_be,
        kind,
    })
}

#[inline(always)]
fn kind_of(flags: u8) -> Kind {
    if flags & (FIN | RST) != 0 {
        Kind::TcpEnd
    } else if flags & (SYN | ACK) == SYN {
        Kind::TcpSyn
    } else {
        Kind::TcpData
    }
}
