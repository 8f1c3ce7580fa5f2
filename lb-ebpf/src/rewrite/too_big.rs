//! The answer to a packet that does not fit into the tunnel to its backend, or on the way out: ICMP "fragmentation
//! needed" (RFC 792, RFC 1191) or ICMPv6 "packet too big" (RFC 4443 section 3.2).
//!
//! The VIP answers, as the real server's router would. The frame itself becomes the answer.

use aya_ebpf::{bindings::xdp_md, helpers::bpf_csum_diff, programs::XdpContext};
use lb_common::{BackendFlags, Reason};

use super::Job;
use crate::{
    answer,
    maps::{self, TUNNELS},
    packet::Packet,
    parse::{ethernet::Ethernet, icmp::IcmpHeader, ipv4::Ipv4Header, ipv6::Ipv6Header},
};

/// How much of the packet is quoted, IP header included. RFC 792 asks for the header and eight bytes
/// more; this covers all options and the ports. A multiple of four.
const QUOTED_V4: usize = 96;
/// RFC 4443 asks for as much as fits into 1,280 bytes; ports behind a few extension headers suffice.
const QUOTED_V6: usize = 256;
const IPV4_LENGTH: usize = 20;
const IPV6_LENGTH: usize = 40;
const ICMP_LENGTH: usize = 8;
const TTL: u8 = 64;

/// Turns the frame into the answer. Returns the reason to count.
#[inline(always)]
pub fn answer(packet: &Packet<'_>, place: u64, backend: u16, lengths: u64) -> Reason {
    match answer::decode(answer_too_big(
        packet.ctx.ctx,
        place,
        u32::from(backend),
        lengths,
    )) {
        Ok(_) => Reason::TooBig,
        Err(_) => Reason::NoRoom,
    }
}

/// Verified on its own. `lengths` as in `rewrite_uncommon`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_too_big(ctx: *mut xdp_md, place: u64, backend: u32, lengths: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    let job = Job::new(place, backend, lengths);
    let result = limit(&job).and_then(|mtu| match job.place.is_v4() {
        true => answer_v4(&packet, &job, mtu),
        false => answer_v6(&packet, &job, mtu),
    });
    answer::encode(result.map(|()| 0))
}

/// The largest packet that the backend can be sent.
#[inline(always)]
fn limit(job: &Job) -> Result<u32, Reason> {
    let backend = maps::backend(job.backend);
    if backend.flags() & BackendFlags::TUNNEL == 0 {
        return Ok((backend.ifindex >> 32) as u32);
    }
    let tunnel = TUNNELS.get(u32::from(job.backend));
    Ok(tunnel.ok_or(Reason::NotReady)?.inner_mtu)
}

#[inline(always)]
fn answer_v4(packet: &Packet<'_>, job: &Job, mtu: u32) -> Result<(), Reason> {
    let offset = job.place.network();
    let inner = packet.header::<Ipv4Header>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let (client_be, vip_be) = unsafe { ((*inner).source_be, (*inner).destination_be) };
    make_room(packet, job, IPV4_LENGTH + ICMP_LENGTH, QUOTED_V4)?;
    let length = (IPV4_LENGTH + ICMP_LENGTH + QUOTED_V4) as u16;
    let outer = packet.header::<Ipv4Header>(offset)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe {
        (*outer).version_ihl = 0x45;
        (*outer).tos = 0;
        (*outer).total_length_be = length.to_be();
        (*outer).id_be = 0;
        (*outer).fragment_be = 0x4000_u16.to_be();
        (*outer).ttl = TTL;
        (*outer).protocol = 1;
        (*outer).checksum = 0;
        (*outer).source_be = vip_be;
        (*outer).destination_be = client_be;
    }
    let icmp = packet.header::<IcmpHeader>(offset + IPV4_LENGTH)?;
    // Type 3 code 4; the size in the last two bytes.
    // SAFETY: as above.
    unsafe {
        (*icmp).kind = 3;
        (*icmp).code = 4;
        (*icmp).checksum = 0;
        (*icmp).rest = mtu.min(0xffff).to_be();
    }
    let header_sum = sum::<IPV4_LENGTH>(packet, offset)?;
    let icmp_sum = sum::<{ ICMP_LENGTH + QUOTED_V4 }>(packet, offset + IPV4_LENGTH)?;
    let outer = packet.header::<Ipv4Header>(offset)?;
    let icmp = packet.header::<IcmpHeader>(offset + IPV4_LENGTH)?;
    // SAFETY: as above.
    unsafe {
        (*outer).checksum = folded(header_sum);
        (*icmp).checksum = folded(icmp_sum);
    }
    Ok(())
}

#[inline(always)]
fn answer_v6(packet: &Packet<'_>, job: &Job, mtu: u32) -> Result<(), Reason> {
    let offset = job.place.network();
    let inner = packet.header::<Ipv6Header>(offset)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let (client, vip) = unsafe { ((*inner).source, (*inner).destination) };
    make_room(packet, job, IPV6_LENGTH + ICMP_LENGTH, QUOTED_V6)?;
    let payload = (ICMP_LENGTH + QUOTED_V6) as u16;
    let outer = packet.header::<Ipv6Header>(offset)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe {
        // The pseudo header of RFC 8200 section 8.1 is the addresses, the length, and the next
        // header: with the hop limit still 0 and the first word 0, the header itself sums the same.
        (*outer).version_class = 0;
        (*outer).class_label = 0;
        (*outer).label = 0;
        (*outer).payload_length_be = payload.to_be();
        (*outer).next_header = 0;
        (*outer).hop_limit = 58;
        (*outer).source = vip;
        (*outer).destination = client;
    }
    let icmp = packet.header::<IcmpHeader>(offset + IPV6_LENGTH)?;
    // SAFETY: as above.
    unsafe {
        (*icmp).kind = 2;
        (*icmp).code = 0;
        (*icmp).checksum = 0;
        (*icmp).rest = mtu.to_be();
    }
    let sum = sum::<{ IPV6_LENGTH + ICMP_LENGTH + QUOTED_V6 }>(packet, offset)?;
    let outer = packet.header::<Ipv6Header>(offset)?;
    let icmp = packet.header::<IcmpHeader>(offset + IPV6_LENGTH)?;
    // SAFETY: as above.
    unsafe {
        (*outer).version_class = 0x60;
        (*outer).next_header = 58;
        (*outer).hop_limit = TTL;
        (*icmp).checksum = folded(sum);
    }
    Ok(())
}

/// Cuts the frame to what is quoted, makes room for `headers` bytes in front of it, and gives the
/// link-layer header back with its addresses exchanged.
#[inline(always)]
fn make_room(packet: &Packet<'_>, job: &Job, headers: usize, quoted: usize) -> Result<(), Reason> {
    /// Ethernet with two tags, in words.
    const LINK_WORDS: usize = 11;
    let offset = job.place.network();
    let mut saved = [0u16; LINK_WORDS];
    for (index, word) in saved.iter_mut().enumerate() {
        if index * 2 < offset {
            // SAFETY: `header` checks the bounds.
            *word = unsafe { *packet.header::<u16>(index * 2)? };
        }
    }
    let surplus = job.whole_length as i32 - (offset + quoted) as i32;
    packet.move_end(-surplus)?;
    packet.move_start(-(headers as i32))?;
    for (index, word) in saved.iter().enumerate() {
        if index * 2 < offset {
            // SAFETY: `header` checks the bounds; nothing else refers to the frame here.
            unsafe { *packet.header::<u16>(index * 2)? = *word };
        }
    }
    let ethernet = packet.header::<Ethernet>(0)?;
    // SAFETY: as above.
    unsafe { core::mem::swap(&mut (*ethernet).source, &mut (*ethernet).destination) };
    Ok(())
}

/// The one's complement sum of `N` bytes, a multiple of four, as loaded.
#[inline(always)]
fn sum<const N: usize>(packet: &Packet<'_>, offset: usize) -> Result<u64, Reason> {
    let bytes = packet.header::<[u8; N]>(offset)?;
    // SAFETY: `header` checked the bounds; the helper reads `N` bytes, up to 512.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast(), N as u32, 0) };
    // Negative only where the arguments are wrong.
    u64::try_from(sum).map_err(|_| Reason::NoRoom)
}

/// The checksum of a sum of words as loaded, as it is stored.
#[inline(always)]
pub fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
