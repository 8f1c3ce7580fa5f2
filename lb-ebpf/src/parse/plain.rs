//! The commonest shape of a packet: no VLAN tag, no options or extension headers, no fragment, all
//! headers in the first buffer, and a segment that neither opens nor ends a connection. Where every
//! header stands is known beforehand, so a bounds check and a few comparisons of whole words read it.
//!
//! This only recognises; what is not recognised is read by the other modules, which know every
//! shape. What is, they would take for the same.

use core::mem::size_of;

use super::{
    ethernet::{Ethernet, LENGTH},
    ipv4::Ipv4Header,
    ipv6::{self, Ipv6Header},
    transport::{self, SegmentHeader, TCP, UDP},
};
use crate::packet::Packet;

/// Headers at fixed places. A UDP datagram is read through the same form: no Ethernet frame with IPv4 is
/// shorter than this; with IPv6 the shortest datagrams are, and take the long way.
#[repr(C, packed(2))]
pub struct Frame<N> {
    pub link: Ethernet,
    pub network: N,
    pub segment: SegmentHeader,
}

/// A packet of this shape.
pub struct Plain<N> {
    pub frame: *mut Frame<N>,
    /// Bytes from the IP header on.
    pub length: u32,
}

/// Bytes 12 to 14 of a frame: its type, and version 4 with a header of five words.
const V4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
const V4_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
/// The same with version 6.
const V6: u32 = u32::from_ne_bytes([0x86, 0xdd, 0x60, 0]);
const V6_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xf0, 0]);
/// Bytes 6 to 9 of an IPv4 header: more fragments and offset, none of either; TTL; protocol.
const WHOLE_MASK: u32 = u32::from_ne_bytes([0x3f, 0xff, 0, 0xff]);
const WHOLE_SEGMENT: u32 = u32::from_ne_bytes([0, 0, 0, TCP]);
const WHOLE_DATAGRAM: u32 = u32::from_ne_bytes([0, 0, 0, UDP]);

/// A word of the frame, as loaded.
///
/// # Safety
///
/// It lies within the frame, whose bounds were checked.
#[inline(always)]
unsafe fn word<N>(frame: *const Frame<N>, offset: usize) -> u32 {
    // SAFETY: by the caller.
    unsafe {
        frame
            .cast::<u8>()
            .add(offset)
            .cast::<u32>()
            .read_unaligned()
    }
}

/// The frame, if it has room for all headers of IPv4.
#[inline(always)]
pub fn frame(packet: &Packet<'_>) -> Option<*mut Frame<Ipv4Header>> {
    packet.header::<Frame<Ipv4Header>>(0).ok()
}

/// Whether a frame carries IPv4 without options.
///
/// # Safety
///
/// The frame's bounds were checked.
#[inline(always)]
pub unsafe fn is_v4(frame: *const Frame<Ipv4Header>) -> bool {
    // SAFETY: by the caller.
    unsafe { word(frame, LENGTH - 2) & V4_MASK == V4 }
}

/// Whether a frame carries IPv6.
///
/// # Safety
///
/// The frame's bounds were checked.
#[inline(always)]
pub unsafe fn is_v6(frame: *const Frame<Ipv4Header>) -> bool {
    // SAFETY: by the caller.
    unsafe { word(frame, LENGTH - 2) & V6_MASK == V6 }
}

/// Whether an IPv4 packet is whole and of UDP, or else of TCP.
///
/// # Safety
///
/// The frame's bounds were checked.
#[inline(always)]
pub unsafe fn is_whole<const IS_UDP: bool>(frame: *const Frame<Ipv4Header>) -> bool {
    let wanted = if IS_UDP {
        WHOLE_DATAGRAM
    } else {
        WHOLE_SEGMENT
    };
    // SAFETY: by the caller.
    unsafe { word(frame, LENGTH + 6) & WHOLE_MASK == wanted }
}

impl<N> Plain<N> {
    /// A packet whose lengths are sound and which may travel on, or `None`.
    ///
    /// # Safety
    ///
    /// The frame's bounds were checked.
    #[inline(always)]
    unsafe fn of<const IS_UDP: bool>(
        packet: &Packet<'_>,
        frame: *mut Frame<N>,
        lifetime: u8,
        length: usize,
    ) -> Option<Self> {
        let least = size_of::<N>()
            + if IS_UDP {
                transport::UDP_LENGTH
            } else {
                size_of::<SegmentHeader>()
            };
        if lifetime <= 1 || length < least || length > packet.linear_length() - LENGTH {
            return None;
        }
        // SAFETY: by the caller.
        if !IS_UDP && !transport::goes_on(unsafe { (*frame).segment.flags }) {
            return None;
        }
        Some(Self {
            frame,
            length: length as u32,
        })
    }
}

impl Plain<Ipv4Header> {
    /// See [`Plain::of`].
    ///
    /// # Safety
    ///
    /// The frame's bounds were checked, and it carries what is said.
    #[inline(always)]
    pub unsafe fn v4<const IS_UDP: bool>(
        packet: &Packet<'_>,
        frame: *mut Frame<Ipv4Header>,
    ) -> Option<Self> {
        // SAFETY: by the caller.
        unsafe {
            let length = u16::from_be((*frame).network.total_length_be);
            Self::of::<IS_UDP>(packet, frame, (*frame).network.ttl, usize::from(length))
        }
    }
}

impl Plain<Ipv6Header> {
    /// Also checks the bounds. See [`Plain::of`].
    #[inline(always)]
    pub fn v6<const IS_UDP: bool>(
        packet: &Packet<'_>,
        frame: *mut Frame<Ipv6Header>,
    ) -> Option<Self> {
        // SAFETY: the caller checked the bounds.
        unsafe {
            let payload = u16::from_be((*frame).network.payload_length_be);
            let length = usize::from(payload) + ipv6::LENGTH;
            Self::of::<IS_UDP>(packet, frame, (*frame).network.hop_limit, length)
        }
    }
}
