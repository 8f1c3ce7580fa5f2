//! Headers from the outside in. Each module turns bytes into the few facts that later steps need
//! and writes nothing.

pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod plain;
pub mod transport;

use lb_common::{Address, Control, Reason};

use self::{ethernet::Link, ipv4::Ipv4Header, ipv6::Ipv6Header};
use crate::{packet::Packet, service::Vip};

/// Whether a packet is a piece of a larger one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// It is whole.
    Whole,
    /// It is the first piece, with the transport header. The identification, as loaded.
    First(u32),
    /// It is a later piece, without the transport header. The identification, as loaded.
    Later(u32),
}

/// What both versions of IP tell of a packet.
pub trait Datagram {
    /// Whether this is IPv4.
    const IS_V4: bool;
    /// The protocol number of this version's ICMP.
    const ICMP: u8;
    /// Number of the transport protocol.
    fn protocol(&self) -> u8;
    /// Where the transport header starts, from the start of the frame.
    fn transport_offset(&self) -> usize;
    /// Bytes from the IP header on, without padding of the frame.
    fn length(&self) -> u32;
    /// Whether it may travel on: TTL or hop limit above 1.
    fn may_travel(&self) -> bool;
    /// Whether it is whole.
    fn piece(&self) -> Piece;
    /// What stands for the destination in service keys.
    fn vip(&self, control: &Control) -> Option<Vip>;
}

/// Where the headers of a packet are, in one number: what functions are given that are verified on
/// their own and read the packet again. Transport header in bits 0-15, IP header in 16-23, bit 24 set
/// for IPv4, protocol in 32-39.
#[derive(Clone, Copy)]
pub struct Place(pub u64);

impl Place {
    #[inline(always)]
    pub fn of<D: Datagram>(link: &Link, ip: &D) -> Self {
        Self(
            ip.transport_offset() as u64
                | (link.network_offset() as u64) << 16
                | u64::from(D::IS_V4) << 24
                | u64::from(ip.protocol()) << 32,
        )
    }

    /// Of a packet in a frame without tags, with neither options nor extension headers.
    #[inline(always)]
    pub const fn plain(is_v4: bool, protocol: u8) -> Self {
        let length = if is_v4 {
            Ipv4Header::LENGTH
        } else {
            ipv6::LENGTH
        };
        Self(
            (ethernet::LENGTH + length) as u64
                | (ethernet::LENGTH as u64) << 16
                | (is_v4 as u64) << 24
                | (protocol as u64) << 32,
        )
    }

    /// Start of the transport header, with a bound that the verifier can see.
    #[inline(always)]
    pub fn transport(self) -> usize {
        (self.0 & 0x3fff) as usize
    }

    /// Start of the IP header, with a bound that the verifier can see.
    #[inline(always)]
    pub fn network(self) -> usize {
        match self.0 >> 16 & 0xff {
            14 => 14,
            18 => 18,
            _ => 22,
        }
    }

    #[inline(always)]
    pub fn is_v4(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    #[inline(always)]
    pub fn protocol(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// Source and destination.
    #[inline(always)]
    pub fn addresses(self, packet: &Packet<'_>) -> Result<(Address, Address), Reason> {
        if self.is_v4() {
            let ip = packet.header::<Ipv4Header>(self.network())?;
            // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
            let ip = unsafe { &*ip };
            return Ok((Address::v4(ip.source_be), Address::v4(ip.destination_be)));
        }
        let ip = packet.header::<Ipv6Header>(self.network())?;
        // SAFETY: as above.
        let ip = unsafe { &*ip };
        Ok((Address(ip.source), Address(ip.destination)))
    }
}
