//! The answer to a segment of a connection whose real server is down: a RST (RFC 9293 section 3.5.2), from the
//! VIP, as the real server would send it if it had lost the connection. The frame itself becomes the answer.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::Reason;

use super::{Job, too_big::folded};
use crate::{
    answer,
    packet::Packet,
    parse::{
        ethernet::Ethernet,
        ipv4::Ipv4Header,
        ipv6::{self, Ipv6Header},
        transport::{ACK, FIN, RST, SYN, SegmentHeader, TCP},
    },
};

const TTL: u8 = 64;
/// Length of a TCP header without options, in bytes and in the header's own form.
const SEGMENT: usize = 20;
const SEGMENT_OFFSET: u8 = 5 << 4;
/// Ethernet's shortest frame, without its checksum.
const SHORTEST: usize = 60;

/// Turns the frame into the answer. Returns the reason to count.
#[inline(always)]
pub fn answer(packet: &Packet<'_>, place: u64, lengths: u64) -> Reason {
    match answer::decode(answer_with_reset(packet.ctx.ctx, place, lengths)) {
        Ok(_) => Reason::Reset,
        Err(reason) => reason,
    }
}

/// Verified on its own. `lengths` as in `rewrite_uncommon`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_with_reset(ctx: *mut xdp_md, place: u64, lengths: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    let job = Job::new(place, 0, lengths);
    answer::encode(reset(&packet, &job).map(|()| 0))
}

/// What the answer says besides addresses and ports.
struct Words {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

#[inline(always)]
fn reset(packet: &Packet<'_>, job: &Job) -> Result<(), Reason> {
    if job.place.protocol() != TCP {
        return Err(Reason::NoBackend);
    }
    let (network, transport) = (job.place.network(), job.place.transport());
    let segment = packet.header::<SegmentHeader>(transport)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let segment = unsafe { &*segment };
    let ports_be = [segment.ports.source_be, segment.ports.destination_be];
    let headers = (transport - network) as u32 + u32::from(segment.offset >> 4) * 4;
    let words = words(segment, job.length.wrapping_sub(headers))?;
    // What comes later finds the frame changed: it must not pass any more.
    turn(packet, job, &words, ports_be).map_err(|_| Reason::NoRoom)
}

/// Writes the answer.
#[inline(always)]
fn turn(
    packet: &Packet<'_>,
    job: &Job,
    words: &Words,
    [client_port_be, vip_port_be]: [u16; 2],
) -> Result<(), Reason> {
    let network = job.place.network();
    let (header, addresses) = if job.place.is_v4() {
        (Ipv4Header::LENGTH, turn_v4(packet, network)?)
    } else {
        (ipv6::LENGTH, turn_v6(packet, network)?)
    };
    let sequence_be = words.sequence.to_be();
    let acknowledgement_be = words.acknowledgement.to_be();
    // The pseudo header has the protocol and the length beside the addresses.
    let sum = addresses
        + u64::from(u16::from(TCP).to_be())
        + u64::from((SEGMENT as u16).to_be())
        + u64::from(client_port_be)
        + u64::from(vip_port_be)
        + halves(sequence_be)
        + halves(acknowledgement_be)
        + u64::from(u16::from_ne_bytes([SEGMENT_OFFSET, words.flags]));
    let out = packet.header::<SegmentHeader>(network + header)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe {
        (*out).ports.source_be = vip_port_be;
        (*out).ports.destination_be = client_port_be;
        (*out).sequence_be = sequence_be;
        (*out).acknowledgement_be = acknowledgement_be;
        (*out).offset = SEGMENT_OFFSET;
        (*out).flags = words.flags;
        (*out).window_be = 0;
        (*out).checksum = folded(sum);
        (*out).urgent_be = 0;
    }
    let ethernet = packet.header::<Ethernet>(0)?;
    // SAFETY: as above.
    unsafe { core::mem::swap(&mut (*ethernet).source, &mut (*ethernet).destination) };
    let kept = (network + header + SEGMENT).max(SHORTEST);
    match job.whole_length.checked_sub(kept as u32) {
        Some(surplus) if surplus > 0 => packet.move_end(-(surplus as i32)),
        _ => Ok(()),
    }
}

/// Makes the IP header the answer's. Returns the sum of its addresses.
#[inline(always)]
fn turn_v4(packet: &Packet<'_>, network: usize) -> Result<u64, Reason> {
    const LENGTH: u16 = (Ipv4Header::LENGTH + SEGMENT) as u16;
    /// The words of the header that are the same in all answers.
    const FIXED: u64 = 0x4500_u16.to_be() as u64
        + LENGTH.to_be() as u64
        + 0x4000_u16.to_be() as u64
        + ((TTL as u16) << 8 | TCP as u16).to_be() as u64;
    let ip = packet.header::<Ipv4Header>(network)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let (client_be, vip_be) = unsafe { ((*ip).source_be, (*ip).destination_be) };
    let addresses = halves(client_be) + halves(vip_be);
    // SAFETY: as above; nothing else refers to the frame here.
    unsafe {
        (*ip).version_ihl = 0x45;
        (*ip).tos = 0;
        (*ip).total_length_be = LENGTH.to_be();
        (*ip).id_be = 0;
        (*ip).fragment_be = 0x4000_u16.to_be();
        (*ip).ttl = TTL;
        (*ip).protocol = TCP;
        (*ip).checksum = folded(addresses + FIXED);
        (*ip).source_be = vip_be;
        (*ip).destination_be = client_be;
    }
    Ok(addresses)
}

/// The same for IPv6, without extension headers.
#[inline(always)]
fn turn_v6(packet: &Packet<'_>, network: usize) -> Result<u64, Reason> {
    let ip = packet.header::<Ipv6Header>(network)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let (client, vip) = unsafe { ((*ip).source, (*ip).destination) };
    // SAFETY: as above; nothing else refers to the frame here.
    unsafe {
        (*ip).version_class = 0x60;
        (*ip).class_label = 0;
        (*ip).label = 0;
        (*ip).payload_length_be = (SEGMENT as u16).to_be();
        (*ip).next_header = TCP;
        (*ip).hop_limit = TTL;
        (*ip).source = vip;
        (*ip).destination = client;
    }
    let sum = |[a, b]: [u64; 2]| {
        halves(a as u32) + halves((a >> 32) as u32) + halves(b as u32) + halves((b >> 32) as u32)
    };
    Ok(sum(client) + sum(vip))
}

/// A RST is never answered. A segment without acknowledgement is acknowledged as a whole.
#[inline(always)]
fn words(segment: &SegmentHeader, payload: u32) -> Result<Words, Reason> {
    if segment.flags & RST != 0 {
        return Err(Reason::NoBackend);
    }
    if segment.flags & ACK != 0 {
        return Ok(Words {
            sequence: u32::from_be(segment.acknowledgement_be),
            acknowledgement: 0,
            flags: RST,
        });
    }
    let ends = u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
    Ok(Words {
        sequence: 0,
        acknowledgement: u32::from_be(segment.sequence_be)
            .wrapping_add(payload)
            .wrapping_add(ends),
        flags: RST | ACK,
    })
}

/// Both halves of a word, to be summed.
#[inline(always)]
fn halves(word: u32) -> u64 {
    u64::from(word & 0xffff) + u64::from(word >> 16)
}
