//! IPv6 (RFC 8200), with a bounded walk over its extension headers.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{Control, Reason};

use super::{Datagram, Piece};
use crate::{
    answer,
    packet::Packet,
    service::{self, Vip},
};

/// The fixed header. Frames start two bytes off a multiple of four.
#[repr(C, packed(2))]
pub struct Ipv6Header {
    pub version_class: u8,
    pub class_label: u8,
    pub label: u16,
    pub payload_length_be: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u64; 2],
    pub destination: [u64; 2],
}

/// Length of the fixed header.
pub const LENGTH: usize = 40;

/// What all extension headers but the fragment header begin with.
#[repr(C)]
struct Extension {
    next_header: u8,
    length: u8,
}

#[repr(C, packed(2))]
struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    offset_be: u16,
    id: u32,
}

/// RFC 8200 section 4.1 lets six extension headers precede the transport header, the destination
/// options twice.
const MAX_EXTENSIONS: usize = 7;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// What later steps need of the headers.
pub struct Ipv6 {
    destination: [u64; 2],
    payload_length: u16,
    hop_limit: u8,
    walk: Walk,
}

/// Where the walk ended.
#[derive(Clone, Copy)]
pub struct Walk {
    pub protocol: u8,
    pub offset: usize,
    pub piece: Piece,
}

/// Reads the headers at `offset`. Says nothing about whether the packet can be forwarded.
#[inline(always)]
pub fn parse(packet: &Packet<'_>, offset: usize) -> Result<Ipv6, Reason> {
    let header = packet.header::<Ipv6Header>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let header = unsafe { &*header };
    let payload_length = u16::from_be(header.payload_length_be);
    if header.version_class >> 4 != 6
        || !packet.holds(offset + LENGTH + usize::from(payload_length))
    {
        return Err(Reason::Truncated);
    }
    let destination = header.destination;
    let hop_limit = header.hop_limit;
    let walk = walk(packet, header.next_header, offset + LENGTH)?;
    Ok(Ipv6 {
        destination,
        payload_length,
        hop_limit,
        walk,
    })
}

/// Follows extension headers from one of type `next` at `offset`. What a later fragment carries
/// behind its fragment header is payload.
#[inline(always)]
pub fn walk(packet: &Packet<'_>, next: u8, offset: usize) -> Result<Walk, Reason> {
    if !is_extension(next) {
        return Ok(Walk {
            protocol: next,
            offset,
            piece: Piece::Whole,
        });
    }
    let start = u64::from(next) | (offset as u64) << 8;
    let end = answer::decode(walk_extensions(packet.ctx.ctx, start))?;
    let place = (end >> 8 & u64::from(MAX_OFFSET)) as usize;
    let piece = match end >> 24 & 3 {
        0 => Piece::Whole,
        state => {
            let header =
                packet.header::<FragmentHeader>((end >> 32 & u64::from(MAX_OFFSET)) as usize)?;
            // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
            let id = unsafe { (*header).id };
            if state == FIRST {
                Piece::First(id)
            } else {
                Piece::Later(id)
            }
        }
    };
    Ok(Walk {
        protocol: end as u8,
        offset: place,
        piece,
    })
}

/// States of a fragment in [`walk_extensions`]'s answer.
const FIRST: u64 = 1;
const LATER: u64 = 2;
/// A bound that the verifier can see: headers lie in the frame's first 16 KiB.
const MAX_OFFSET: u32 = 0x3fff;

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY
    )
}

/// Verified on its own. Starts from a protocol number in bits 0-7 and an offset in 8-23; answers with
/// the transport protocol in bits 0-7, its offset in 8-23, the state of a fragment in 24-25 and the
/// offset of the fragment header in 32-47.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_extensions(ctx: *mut xdp_md, start: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    answer::encode(try_walk(&packet, start))
}

#[inline(always)]
fn try_walk(packet: &Packet<'_>, start: u64) -> Result<u64, Reason> {
    let mut protocol = start as u8;
    let mut offset = (start >> 8) as u32 & MAX_OFFSET;
    let mut fragment = 0;
    for _ in 0..=MAX_EXTENSIONS {
        if !is_extension(protocol) {
            return Ok(fragment | u64::from(offset) << 8 | u64::from(protocol));
        }
        // All begin with the next header and, but for fragments, a length.
        let header = packet.header::<Extension>(offset as usize)?;
        // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
        let header = unsafe { &*header };
        let length = u32::from(header.length);
        let (next, bytes) = match protocol {
            FRAGMENT => {
                let header = packet.header::<FragmentHeader>(offset as usize)?;
                // SAFETY: as above.
                let place = u16::from_be(unsafe { (*header).offset_be });
                // Offset in the upper 13 bits, "more" in the lowest; neither is an atomic fragment
                // (RFC 6946), a whole packet.
                let state = if place & 0xfff8 != 0 {
                    LATER
                } else {
                    u64::from(place & 1) * FIRST
                };
                if state != 0 {
                    fragment = state << 24 | u64::from(offset) << 32;
                }
                (header_next(header), 8)
            }
            // RFC 4302 section 2.2 counts four-byte words here.
            AUTHENTICATION => (header.next_header, (length + 2) * 4),
            _ => (header.next_header, (length + 1) * 8),
        };
        protocol = next;
        offset = (offset + bytes) & MAX_OFFSET;
        if fragment >> 24 & 3 == LATER {
            return Ok(fragment | u64::from(offset) << 8 | u64::from(protocol));
        }
    }
    Err(Reason::ExtensionHeaders)
}

#[inline(always)]
fn header_next(header: *mut FragmentHeader) -> u8 {
    // SAFETY: the caller got it from `Packet::header`.
    unsafe { (*header).next_header }
}

impl Datagram for Ipv6 {
    const IS_V4: bool = false;
    const ICMP: u8 = 58;

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.walk.protocol
    }

    #[inline(always)]
    fn transport_offset(&self) -> usize {
        self.walk.offset
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.payload_length) + LENGTH as u32
    }

    #[inline(always)]
    fn may_travel(&self) -> bool {
        self.hop_limit > 1
    }

    #[inline(always)]
    fn piece(&self) -> Piece {
        self.walk.piece
    }

    #[inline(always)]
    fn vip(&self, control: &Control) -> Option<Vip> {
        service::vip_v6(control, self.destination)
    }
}
