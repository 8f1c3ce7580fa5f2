//! What the product is measured against, and the wrapper that makes measuring honest.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` feeds a program its own output. The wrapper restores what
//! forwarding changes, gives the packet the next client's address and port, and tail-calls the
//! program under test. `floor_tx` behind the wrapper is the wrapper's own cost.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    btf_maps::{Array, HashMap, LruHashMap, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{bench::Traffic, checksum};

/// Large enough for a million flows, as the product's own table in that case.
const LRU_ENTRIES: usize = 1 << 20;

#[btf_map(name = "traffic")]
static TRAFFIC: Array<Traffic, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "targets")]
static TARGETS: ProgramArray<8> = ProgramArray::new();

/// VIP and port to service id: what the textbook looks up first.
#[btf_map(name = "text_services")]
static TEXT_SERVICES: HashMap<u64, u32, 1024> = HashMap::new();

#[btf_map(name = "text_flows")]
static TEXT_FLOWS: LruHashMap<u64, u32, LRU_ENTRIES> = LruHashMap::new();

/// MAC address in the low six bytes.
#[btf_map(name = "text_backends")]
static TEXT_BACKENDS: Array<u64, 64> = Array::new();

#[btf_map(name = "text_cursor")]
static TEXT_CURSOR: Array<u64, 1> = Array::new();

/// Ethernet, IPv4 without options, and the ports: what every program here needs.
#[repr(C, packed(2))]
struct Frame {
    destination: [u16; 3],
    source: [u16; 3],
    ethertype_be: u16,
    version_ihl: u8,
    tos: u8,
    length: [u16; 3],
    ttl: u8,
    protocol: u8,
    checksum: u16,
    client_be: u32,
    vip_be: u32,
    client_port_be: u16,
    vip_port_be: u16,
}

/// The same with one VLAN tag.
#[repr(C, packed(2))]
struct TaggedFrame {
    destination: [u16; 3],
    source: [u16; 3],
    tag: [u16; 3],
    version_ihl: u8,
    tos: u8,
    length: [u16; 3],
    ttl: u8,
    protocol: u8,
    checksum: u16,
    client_be: u32,
    vip_be: u32,
    client_port_be: u16,
    vip_port_be: u16,
}

/// The same with IPv6.
#[repr(C, packed(2))]
struct Frame6 {
    destination: [u16; 3],
    source: [u16; 3],
    ethertype_be: u16,
    head: [u16; 3],
    next_header: u8,
    hop_limit: u8,
    client_network: u64,
    client_host: u64,
    vip: [u64; 2],
    client_port_be: u16,
    vip_port_be: u16,
}

#[inline(always)]
fn frame_of<T>(ctx: &XdpContext) -> Option<*mut T> {
    let start = ctx.data();
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn frame(ctx: &XdpContext) -> Option<*mut Frame> {
    frame_of(ctx)
}

/// The number of the next packet.
#[inline(always)]
fn next_number(traffic: &mut Traffic) -> u32 {
    let number = traffic.next;
    traffic.next = number.wrapping_add(1);
    number
}

/// The client of a flow as a difference to the first one, scattered, and its port, network byte order.
#[inline(always)]
fn client_of(traffic: &Traffic, number: u32) -> (u32, u16) {
    let flow = number & traffic.flow_mask;
    let bits = u32::from(traffic.port_bits) & 15;
    // The multiplication scatters their addresses.
    let client = (flow >> bits).wrapping_mul(2_654_435_761) & traffic.client_mask;
    let port = flow & ((1 << bits) - 1);
    (client, (port as u16 + 1024).to_be())
}

/// The header checksum after a 32-bit word was changed (RFC 1624, equation 3): the kernel's stack
/// verifies it.
#[inline(always)]
fn after_change(checksum: u16, old: u32, new: u32) -> u16 {
    let halves = |word: u32| (word & 0xffff) + (word >> 16);
    let sum = u32::from(!checksum) + halves(!old) + halves(new);
    !(halves(halves(sum)) as u16)
}

/// Prepares the next packet and calls the program under test.
#[xdp(frags)]
pub fn wrapper(ctx: XdpContext) -> u32 {
    let Some(target) = prepare(&ctx, |number| number) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: a tail call does not return; a missing target falls through.
    unsafe { TARGETS.tail_call(&ctx, target) };
    xdp_action::XDP_ABORTED
}

/// The same, with 4,096 flows in turn sixteen times before the next ones come. May run on several CPUs at once, which then
/// send packets of one flow at the same time.
#[xdp(frags)]
pub fn wrapper_again(ctx: XdpContext) -> u32 {
    let flow = |number: u32| (number >> 16) << 12 | number & 0xfff;
    let Some(target) = prepare(&ctx, flow) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: as in `wrapper`.
    unsafe { TARGETS.tail_call(&ctx, target) };
    xdp_action::XDP_ABORTED
}

/// Makes the next packet of a frame, and says who gets it. `flow` says of which flow the packet with a number is.
#[inline(always)]
fn prepare(ctx: &XdpContext, flow: impl FnOnce(u32) -> u32) -> Option<u32> {
    let (frame, traffic) = (frame(ctx)?, TRAFFIC.get_ptr_mut(0)?);
    // SAFETY: bounds are checked. Other CPUs at most count at the same time, which may lose some of the count.
    unsafe {
        let traffic = &mut *traffic;
        let number = next_number(traffic);
        let (client, port_be) = client_of(traffic, flow(number));
        (*frame).destination = traffic.destination;
        (*frame).source = traffic.source;
        (*frame).ttl = 64;
        let client = traffic.client ^ client;
        (*frame).checksum = after_change(traffic.checksum, traffic.client, client);
        (*frame).client_be = client;
        (*frame).client_port_be = port_be;
        Some(traffic.target)
    }
}

/// The same for frames with a tag.
#[xdp(frags)]
pub fn wrapper_vlan(ctx: XdpContext) -> u32 {
    let (Some(frame), Some(traffic)) = (frame_of::<TaggedFrame>(&ctx), TRAFFIC.get_ptr_mut(0))
    else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: as in `wrapper`.
    let target = unsafe {
        let traffic = &mut *traffic;
        let number = next_number(traffic);
        let (client, port_be) = client_of(traffic, number);
        (*frame).destination = traffic.destination;
        (*frame).source = traffic.source;
        (*frame).ttl = 64;
        (*frame).checksum = traffic.checksum;
        (*frame).client_be = traffic.client ^ client;
        (*frame).client_port_be = port_be;
        traffic.target
    };
    // SAFETY: as in `wrapper`.
    unsafe { TARGETS.tail_call(&ctx, target) };
    xdp_action::XDP_ABORTED
}

/// The same for IPv6.
#[xdp(frags)]
pub fn wrapper_ipv6(ctx: XdpContext) -> u32 {
    let (Some(frame), Some(traffic)) = (frame_of::<Frame6>(&ctx), TRAFFIC.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: as in `wrapper`.
    let target = unsafe {
        let traffic = &mut *traffic;
        let number = next_number(traffic);
        let (client, port_be) = client_of(traffic, number);
        (*frame).destination = traffic.destination;
        (*frame).source = traffic.source;
        (*frame).hop_limit = 64;
        (*frame).client_host = u64::from(traffic.client ^ client);
        (*frame).client_port_be = port_be;
        traffic.target
    };
    // SAFETY: as in `wrapper`.
    unsafe { TARGETS.tail_call(&ctx, target) };
    xdp_action::XDP_ABORTED
}

/// Nothing but the verdict.
#[xdp(frags)]
pub fn floor_tx(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Everything goes on to the kernel: for what IPVS costs.
#[xdp(frags)]
pub fn pass_all(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The cheapest end that a frame can have.
#[xdp(frags)]
pub fn drop_all(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Parses, swaps the MAC addresses, sends.
#[xdp(frags)]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: bounds are checked.
    unsafe {
        if (*frame).ethertype_be != 0x0800_u16.to_be()
            || (*frame).version_ihl != 0x45
            || (*frame).protocol != 6
        {
            return xdp_action::XDP_PASS;
        }
        core::mem::swap(&mut (*frame).source, &mut (*frame).destination);
    }
    xdp_action::XDP_TX
}

/// The load balancer of every tutorial: service hash, LRU flow hash, backend array, nothing else.
#[xdp(frags)]
pub fn textbook(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: bounds are checked; map values are read and written as the kernel allows.
    unsafe {
        if (*frame).ethertype_be != 0x0800_u16.to_be()
            || (*frame).version_ihl != 0x45
            || (*frame).protocol != 6
        {
            return xdp_action::XDP_PASS;
        }
        let vip = u64::from((*frame).vip_be) << 32 | u64::from((*frame).vip_port_be) << 16 | 6;
        let Some(service) = TEXT_SERVICES.get(vip).copied() else {
            return xdp_action::XDP_PASS;
        };
        let flow = u64::from((*frame).client_be) << 32
            | u64::from((*frame).client_port_be) << 16
            | u64::from(service);
        let backend = match TEXT_FLOWS.get(flow) {
            Some(backend) => *backend,
            None => {
                let Some(cursor) = TEXT_CURSOR.get_ptr_mut(0) else {
                    return xdp_action::XDP_ABORTED;
                };
                *cursor += 1;
                let backend = (*cursor % 4) as u32;
                let _ = TEXT_FLOWS.insert(flow, backend, 0);
                backend
            }
        };
        let Some(mac) = TEXT_BACKENDS.get(backend) else {
            return xdp_action::XDP_ABORTED;
        };
        (*frame).source = (*frame).destination;
        (*frame).destination = [*mac as u16, (*mac >> 16) as u16, (*mac >> 32) as u16];
        (*frame).ttl -= 1;
        (*frame).checksum = checksum::after_ttl_decrement((*frame).checksum);
    }
    xdp_action::XDP_TX
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier proves that no path reaches this.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
