//! The commonest shape of a packet: no VLAN tag, no options or extension headers, no fragment, all
//! headers in the first buffer, and a segment that neither opens nor ends a connection. Where every
//! header stands is known beforehand, so one bounds check and a few comparisons read it.
//!
//! This only recognises; what is not recognised is read by the other modules, which know every
//! shape. Both give the same facts.

use super::{
    ethernet::{self, Ethernet},
    ipv4::{Ipv4, Ipv4Header},
    ipv6::{self, Ipv6, Ipv6Header},
    transport::{self, SegmentHeader, Transport},
};
use crate::packet::Packet;

/// Headers at fixed places. A UDP datagram is read through the same form: no Ethernet frame with IPv4 is
/// shorter than this; with IPv6 the shortest datagrams are, and take the long way.
#[repr(C, packed(2))]
pub struct Frame<N> {
    pub link: Ethernet,
    pub network: N,
    segment: SegmentHeader,
}

/// An IPv4 packet of this shape, and where it lies.
#[inline(always)]
pub fn v4(packet: &Packet<'_>) -> Option<(*mut Frame<Ipv4Header>, Ipv4, Transport)> {
    let place = packet.header::<Frame<Ipv4Header>>(0).ok()?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let frame = unsafe { &*place };
    let ip = Ipv4::plain(&frame.network)?;
    let room = packet.linear_length() - ethernet::LENGTH;
    let length = usize::from(ip.total_length());
    let payload = length.checked_sub(Ipv4Header::LENGTH)?;
    let transport = transport::plain(&frame.segment, frame.network.protocol, payload)?;
    (length <= room).then_some((place, ip, transport))
}

/// An IPv6 packet of this shape, likewise.
#[inline(always)]
pub fn v6(packet: &Packet<'_>) -> Option<(*mut Frame<Ipv6Header>, Ipv6, Transport)> {
    let place = packet.header::<Frame<Ipv6Header>>(0).ok()?;
    // SAFETY: as above.
    let frame = unsafe { &*place };
    let ip = Ipv6::plain(&frame.network)?;
    let room = packet.linear_length() - ethernet::LENGTH - ipv6::LENGTH;
    let payload = usize::from(u16::from_be(frame.network.payload_length_be));
    let transport = transport::plain(&frame.segment, frame.network.next_header, payload)?;
    (payload <= room).then_some((place, ip, transport))
}
