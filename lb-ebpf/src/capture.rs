//! Shows packets to a capture, when one runs.

use aya_ebpf::{bindings::xdp_md, helpers::bpf_ktime_get_ns, programs::XdpContext};
use lb_common::{Address, capture::Event};

use crate::{
    maps::{self, EVENTS},
    packet::Packet,
    parse::{ethernet, ipv4, ipv6},
    pipeline::Trace,
};

/// The client, read before the packet is changed.
#[inline(always)]
pub fn client_of(packet: &Packet<'_>) -> Address {
    let mut client = Address::default();
    read_client(packet.ctx.ctx, &raw mut client);
    client
}

/// Verified on its own. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_client(ctx: *mut xdp_md, client: *mut Address) -> i64 {
    // SAFETY: the verifier checks that a pointer that is not null leads to a whole `Address`.
    let Some(client) = (unsafe { client.as_mut() }) else {
        return 0;
    };
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    let Ok(link) = ethernet::parse(&packet, maps::control()) else {
        return 0;
    };
    let offset = link.network_offset();
    match link.ethertype_be {
        ethernet::IPV4_BE => {
            if let Ok(header) = packet.header::<ipv4::Ipv4Header>(offset) {
                // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
                *client = Address::v4(unsafe { (*header).source_be });
            }
        }
        ethernet::IPV6_BE => {
            if let Ok(header) = packet.header::<ipv6::Ipv6Header>(offset) {
                // SAFETY: as above.
                *client = Address(unsafe { (*header).source });
            }
        }
        _ => {}
    }
    0
}

/// Tells of a packet as it leaves.
#[inline(always)]
pub fn show(packet: &Packet<'_>, trace: &Trace, client: Address, action: u32, outcome: u32) {
    let mut event = Event {
        time_ns: 0,
        client,
        length: packet.whole_length() as u32,
        kept: 0,
        ifindex: packet.ingress_ifindex(),
        outcome,
        service: trace.service,
        backend: trace.backend,
        action,
    };
    send_event(packet.ctx.ctx, &raw mut event);
}

/// Verified on its own. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_event(ctx: *mut xdp_md, event: *mut Event) -> i64 {
    // SAFETY: the verifier checks that a pointer that is not null leads to a whole `Event`.
    let Some(event) = (unsafe { event.as_mut() }) else {
        return 0;
    };
    let control = maps::control();
    if control.capture.wants(event) {
        // SAFETY: the helper takes no argument and always succeeds.
        event.time_ns = unsafe { bpf_ktime_get_ns() };
        event.kept = event.length.min(control.capture.snap_length);
        // The upper half of the flags asks for that many bytes of the frame.
        EVENTS.output(&XdpContext::new(ctx), event, event.kept);
    }
    0
}
