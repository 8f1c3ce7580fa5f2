//! Health checks of the VIP on a real server: two classifiers (TC) beside the XDP program. `lb_common::
//! probe` says what they do for each other.
//!
//! Forwarded packets never come here: XDP sends them away before. Whatever is not a probe's passes as it
//! came, and only a packet that could be changed in part alone is dropped.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_MARK_MANGLED_0,
        BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_diff, generated::bpf_ktime_get_coarse_ns},
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    Address,
    probe::{MARK, MARK_MASK, PATIENCE_NS, ProbeFlow, Waiting},
};

use crate::{
    maps::{self, PROBE_FLOWS, PROBE_TARGETS},
    parse::{
        ethernet::{self, IPV4_BE, IPV6_BE},
        ipv4::Ipv4Header,
        ipv6,
    },
    service,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// TTL and hop limit of an outer packet.
const TTL: u8 = 64;
/// Tells the kernel that a pseudo-header of IPv6 changed: without it the checksum that some drivers hand
/// over spoils (Linux 6.16 and stable kernels since; others refuse the flag, and such drivers' packets then
/// cost a second look at their checksum).
const BPF_F_IPV6: u64 = 1 << 7;

/// Why a packet is not what it should be. Only what asks for the steps decides which: a step cannot tell
/// whether anything was changed before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Something could not be read, or nothing was to be done: it passes as it came.
    Untouched,
    /// It may have been changed in part: nobody must see it.
    Halfway,
}

/// What a step comes to. One that fails has changed nothing, unless it was to change something.
type Step<T> = Result<T, ()>;

impl From<()> for Failure {
    fn from((): ()) -> Self {
        Failure::Untouched
    }
}

/// Where things are in a packet of one version of IP, from the start of the frame.
#[derive(Clone, Copy)]
struct Layout {
    protocol: usize,
    source: usize,
    destination: usize,
    transport: usize,
    /// Protocol number of ICMP.
    icmp: u8,
    is_v4: bool,
}

const V4: Layout = Layout {
    protocol: ethernet::LENGTH + 9,
    source: ethernet::LENGTH + 12,
    destination: ethernet::LENGTH + 16,
    transport: ethernet::LENGTH + Ipv4Header::LENGTH,
    icmp: 1,
    is_v4: true,
};
const V6: Layout = Layout {
    protocol: ethernet::LENGTH + 6,
    source: ethernet::LENGTH + 8,
    destination: ethernet::LENGTH + 24,
    transport: ethernet::LENGTH + ipv6::LENGTH,
    icmp: 58,
    is_v4: false,
};
/// Where the checksum stands in an IPv4 header.
const HEADER_SUM: usize = 10;
/// More fragments, or an offset.
const FRAGMENT_BE: u16 = 0x3fff_u16.to_be();
/// Length of an ICMP header; what an error quotes follows.
const ICMP_LENGTH: usize = 8;

/// Sends a probe's packets to the VIP on the real server.
#[classifier]
pub fn probe_out(ctx: TcContext) -> i32 {
    // SAFETY: the verifier checks accesses to the context.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let is_probe = mark & MARK_MASK == MARK;
    let sent = match layout(&ctx) {
        Some(true) if is_probe => send(&ctx, mark, V4),
        Some(_) if is_probe => send(&ctx, mark, V6),
        Some(true) => take_over(&ctx, V4).map_err(Failure::from),
        Some(_) => take_over(&ctx, V6).map_err(Failure::from),
        None => Ok(()),
    };
    action(sent)
}

/// Gives a probe's answers the address that its socket knows.
#[classifier]
pub fn probe_in(ctx: TcContext) -> i32 {
    let received = match layout(&ctx) {
        Some(true) => receive(&ctx, V4),
        Some(_) => receive(&ctx, V6),
        None => Ok(()),
    };
    action(received)
}

#[inline(always)]
fn action(done: Result<(), Failure>) -> i32 {
    match done {
        Err(Failure::Halfway) => TC_ACT_SHOT,
        Ok(()) | Err(Failure::Untouched) => TC_ACT_UNSPEC,
    }
}

/// Whether the frame has a whole IPv4 packet without options (`true`), or IPv6.
#[inline(always)]
fn layout(ctx: &TcContext) -> Option<bool> {
    match load::<u16>(ctx, ethernet::LENGTH - 2).ok()? {
        IPV4_BE if load::<u8>(ctx, ethernet::LENGTH) == Ok(0x45) => {
            // Pieces of a datagram have no ports, or a checksum over more than is here.
            let fragment_be = load::<u16>(ctx, ethernet::LENGTH + 6).ok()?;
            (fragment_be & FRAGMENT_BE == 0).then_some(true)
        }
        IPV6_BE => Some(false),
        _ => None,
    }
}

#[inline(always)]
fn send(ctx: &TcContext, mark: u32, at: Layout) -> Result<(), Failure> {
    let target = PROBE_TARGETS.get(mark & !MARK_MASK).ok_or(())?;
    let protocol = load::<u8>(ctx, at.protocol)?;
    if (protocol != TCP && protocol != UDP) || address(ctx, at.destination, at)? != target.host {
        return Ok(());
    }
    let local = address(ctx, at.source, at)?;
    let ports = ports(ctx, at.transport)?;
    let flow = ProbeFlow::new(local, target.vip, ports[0], ports[1], protocol);
    let until_ns = now_ns() + PATIENCE_NS;
    let waiting = Waiting {
        host: target.host,
        until_ns,
    };
    PROBE_FLOWS.insert(flow, waiting, 0).map_err(|_| ())?;
    let sum = transport_sum(at, protocol);
    exchange(ctx, at.destination, target.host, target.vip, at, Some(sum))
        .map_err(|()| Failure::Halfway)?;
    if target.tunnel != 0 {
        wrap(ctx, local, target.host, at).map_err(|()| Failure::Halfway)?;
    }
    Ok(())
}

/// A packet of this host to a VIP that is no probe's: its port belongs to no probe any more.
#[inline(always)]
fn take_over(ctx: &TcContext, at: Layout) -> Step<()> {
    let protocol = load::<u8>(ctx, at.protocol)?;
    if protocol != TCP && protocol != UDP {
        return Ok(());
    }
    let vip = address(ctx, at.destination, at)?;
    let control = maps::control();
    service::vip_of(control, vip).map_err(|_| ())?;
    let local = address(ctx, at.source, at)?;
    let ports = ports(ctx, at.transport)?;
    let flow = ProbeFlow::new(local, vip, ports[0], ports[1], protocol);
    // SAFETY: nothing is read.
    if unsafe { PROBE_FLOWS.get(flow) }.is_some() {
        let _ = PROBE_FLOWS.remove(flow);
    }
    Ok(())
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument and always succeeds.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
fn receive(ctx: &TcContext, at: Layout) -> Result<(), Failure> {
    let protocol = load::<u8>(ctx, at.protocol)?;
    let is_error = protocol == at.icmp;
    if !is_error && protocol != TCP && protocol != UDP {
        return Ok(());
    }
    let vip = address(ctx, at.source, at)?;
    let control = maps::control();
    service::vip_of(control, vip).map_err(|_| ())?;
    if is_error {
        return receive_error(ctx, vip, at);
    }
    let local = address(ctx, at.destination, at)?;
    let ports = ports(ctx, at.transport)?;
    let host = waiting(&ProbeFlow::new(local, vip, ports[1], ports[0], protocol))?;
    let sum = transport_sum(at, protocol);
    exchange(ctx, at.source, vip, host, at, Some(sum)).map_err(|()| Failure::Halfway)
}

/// An ICMP error of a real server about a probe: "port unreachable", in practice. What it quotes was
/// sent by us, to the VIP.
#[inline(always)]
fn receive_error(ctx: &TcContext, vip: Address, at: Layout) -> Result<(), Failure> {
    let kind = load::<u8>(ctx, at.transport)?;
    // RFC 792: unreachable, time exceeded, parameter problem. RFC 4443: errors are below 128.
    let is_quoting = if at.is_v4 {
        matches!(kind, 3 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    };
    if !is_quoting {
        return Ok(());
    }
    let quoted = at.transport + ICMP_LENGTH - ethernet::LENGTH;
    let protocol = load::<u8>(ctx, quoted + at.protocol)?;
    let local = address(ctx, quoted + at.source, at)?;
    let destination = address(ctx, quoted + at.destination, at)?;
    let ports = ports(ctx, quoted + at.transport)?;
    if destination != vip || (at.is_v4 && load::<u8>(ctx, quoted + ethernet::LENGTH)? != 0x45) {
        return Ok(());
    }
    let host = waiting(&ProbeFlow::new(local, vip, ports[0], ports[1], protocol))?;
    restore_error(ctx, quoted, vip, host, at).map_err(|()| Failure::Halfway)
}

/// Gives an ICMP error, and the packet that it quotes, the address that the socket knows.
#[inline(always)]
fn restore_error(
    ctx: &TcContext,
    quoted: usize,
    vip: Address,
    host: Address,
    at: Layout,
) -> Step<()> {
    if at.is_v4 {
        // The quoted header's checksum changes as its address does: ICMP's own sum stays the same.
        let header_sum = quoted + ethernet::LENGTH + HEADER_SUM;
        replace_v4(ctx, quoted + at.destination, vip, host, header_sum)?;
        exchange(ctx, at.source, vip, host, at, None)
    } else {
        let sum = Sum {
            offset: at.transport + 2,
            flags: 0,
        };
        exchange_plain(ctx, quoted + at.destination, vip, host, sum)?;
        let pseudo = Sum {
            flags: u64::from(BPF_F_PSEUDO_HDR),
            ..sum
        };
        exchange(ctx, at.source, vip, host, at, Some(pseudo))
    }
}

/// The address that the socket of a probe under way is connected to.
#[inline(always)]
fn waiting(flow: &ProbeFlow) -> Step<Address> {
    // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
    let waiting = unsafe { PROBE_FLOWS.get(flow) }.copied().ok_or(())?;
    if now_ns() > waiting.until_ns {
        return Err(());
    }
    Ok(waiting.host)
}

/// Where a checksum over the pseudo-header stands, and how it counts.
#[derive(Clone, Copy)]
struct Sum {
    offset: usize,
    flags: u64,
}

#[inline(always)]
fn transport_sum(at: Layout, protocol: u8) -> Sum {
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    if protocol == TCP {
        Sum {
            offset: at.transport + 16,
            flags: pseudo,
        }
    } else {
        Sum {
            offset: at.transport + 6,
            flags: pseudo | u64::from(BPF_F_MARK_MANGLED_0),
        }
    }
}

/// Exchanges an address of the IP header, and mends the checksums that it is part of.
#[inline(always)]
fn exchange(
    ctx: &TcContext,
    offset: usize,
    old: Address,
    new: Address,
    at: Layout,
    sum: Option<Sum>,
) -> Step<()> {
    if !at.is_v4 {
        return match sum {
            Some(sum) => exchange_plain(ctx, offset, old, new, sum),
            None => Err(()),
        };
    }
    let (old_be, new_be) = (old.as_v4().ok_or(())?, new.as_v4().ok_or(())?);
    if let Some(sum) = sum {
        let size = size_of::<u32>() as u64;
        ctx.l4_csum_replace(
            sum.offset,
            u64::from(old_be),
            u64::from(new_be),
            sum.flags | size,
        )
        .map_err(|_| ())?;
    }
    replace_v4(ctx, offset, old, new, ethernet::LENGTH + HEADER_SUM)
}

#[inline(always)]
fn replace_v4(
    ctx: &TcContext,
    offset: usize,
    old: Address,
    new: Address,
    header_sum: usize,
) -> Step<()> {
    let (old_be, new_be) = (old.as_v4().ok_or(())?, new.as_v4().ok_or(())?);
    let size = size_of::<u32>() as u64;
    ctx.l3_csum_replace(header_sum, u64::from(old_be), u64::from(new_be), size)
        .map_err(|_| ())?;
    ctx.store(offset, &new_be, 0).map_err(|_| ())
}

/// Exchanges an IPv6 address.
#[inline(always)]
fn exchange_plain(
    ctx: &TcContext,
    offset: usize,
    mut old: Address,
    mut new: Address,
    sum: Sum,
) -> Step<()> {
    let length = size_of::<Address>() as u32;
    // SAFETY: both are on the stack, of this length.
    let difference = unsafe {
        bpf_csum_diff(
            (&raw mut old).cast(),
            length,
            (&raw mut new).cast(),
            length,
            0,
        )
    };
    let difference = u64::from(difference as u32);
    let is_pseudo = sum.flags & u64::from(BPF_F_PSEUDO_HDR) != 0;
    let flags = sum.flags | if is_pseudo { BPF_F_IPV6 } else { 0 };
    ctx.l4_csum_replace(sum.offset, 0, difference, flags)
        .or_else(|_| ctx.l4_csum_replace(sum.offset, 0, difference, sum.flags))
        .map_err(|_| ())?;
    ctx.store(offset, &new, 0).map_err(|_| ())
}

/// Puts the packet into another one for the real server, as `rewrite::tunnel` does for clients' packets.
/// Headers are made of whole words: the compiler merges smaller stores, and the stack takes aligned
/// ones only.
#[inline(always)]
fn wrap(ctx: &TcContext, source: Address, host: Address, at: Layout) -> Step<()> {
    let inner = ctx.len() as usize - ethernet::LENGTH;
    let mode = BPF_ADJ_ROOM_MAC;
    if at.is_v4 {
        const LENGTH: u32 = Ipv4Header::LENGTH as u32;
        let length = ((inner + Ipv4Header::LENGTH) as u16).to_be_bytes();
        let source_be = source.as_v4().ok_or(())?;
        let destination_be = host.as_v4().ok_or(())?;
        // Version and length, class, total length, no identification, no fragment.
        let first = u64::from_ne_bytes([0x45, 0, length[0], length[1], 0, 0, 0, 0]);
        let second = |sum: u16| {
            let (sum, s) = (sum.to_ne_bytes(), source_be.to_ne_bytes());
            u64::from_ne_bytes([TTL, 4, sum[0], sum[1], s[0], s[1], s[2], s[3]])
        };
        let mut header = [first, second(0), u64::from(destination_be)];
        // SAFETY: the header is on the stack, and longer than that.
        let sum = unsafe {
            bpf_csum_diff(
                core::ptr::null_mut(),
                0,
                (&raw mut header).cast(),
                LENGTH,
                0,
            )
        };
        header[1] = second(folded(sum as u64));
        let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
        ctx.adjust_room(LENGTH as i32, mode, flags)
            .map_err(|_| ())?;
        let offset = ethernet::LENGTH;
        ctx.store(offset, &[header[0], header[1]], 0)
            .map_err(|_| ())?;
        return ctx.store(offset + 16, &destination_be, 0).map_err(|_| ());
    }
    let length = (inner as u16).to_be_bytes();
    let header = [
        u64::from_ne_bytes([0x60, 0, 0, 0, length[0], length[1], 41, TTL]),
        source.0[0],
        source.0[1],
        host.0[0],
        host.0[1],
    ];
    let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
    ctx.adjust_room(ipv6::LENGTH as i32, mode, flags)
        .map_err(|_| ())?;
    ctx.store(ethernet::LENGTH, &header, 0).map_err(|_| ())
}

/// The checksum of a sum of words as loaded, as it is stored.
#[inline(always)]
fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[inline(always)]
fn address(ctx: &TcContext, offset: usize, at: Layout) -> Step<Address> {
    if at.is_v4 {
        load::<u32>(ctx, offset).map(Address::v4)
    } else {
        load::<[u64; 2]>(ctx, offset).map(Address)
    }
}

/// Source and destination port, network byte order.
#[inline(always)]
fn ports(ctx: &TcContext, offset: usize) -> Step<[u16; 2]> {
    let b = load::<u32>(ctx, offset)?.to_ne_bytes();
    Ok([
        u16::from_ne_bytes([b[0], b[1]]),
        u16::from_ne_bytes([b[2], b[3]]),
    ])
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Step<T> {
    ctx.load::<T>(offset).map_err(|_| ())
}
