//! lbd's XDP program: the entry, and the one place that turns an outcome into an XDP action.
//!
//! The order of the steps is in `pipeline`; what each step knows is in the module of its name.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod atomic;
mod flow;
mod forward;
mod maps;
mod packet;
mod parse;
mod pipeline;
mod rewrite;
mod schedule;
mod service;
mod stats;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::Reason;

use crate::{forward::Forward, maps::DEVICES, packet::Packet};

/// The program that every data-plane interface runs.
#[xdp]
pub fn lbd(ctx: XdpContext) -> u32 {
    match pipeline::run(&Packet::new(&ctx)) {
        Ok(Forward::Transmit) => xdp_action::XDP_TX,
        // The daemon puts an interface into the device map before any backend names it.
        Ok(Forward::Redirect(ifindex)) => DEVICES
            .redirect(ifindex, 0)
            .unwrap_or(xdp_action::XDP_ABORTED),
        Ok(Forward::ToStack) => {
            stats::count_pass(Reason::Local);
            xdp_action::XDP_PASS
        }
        Err(reason) => {
            stats::count_pass(reason);
            xdp_action::XDP_PASS
        }
    }
}

/// Answers with the present tick: how the daemon learns where the program's clock stands.
#[xdp]
pub fn clock(_: XdpContext) -> u32 {
    maps::control().map_or(0, maps::now)
}

/// Runs on the far end of a veth pair, which needs a program of its own before the near end may
/// transmit from XDP.
#[xdp]
pub fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier proves that no path reaches this; nothing in the program can panic.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
