//! lbd's XDP program: the entry, and the one place that turns an outcome into an XDP action.
//!
//! The order of the steps is in `pipeline`; what each step knows is in the module of its name.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]

mod answer;
mod atomic;
mod capture;
mod flow;
mod forward;
mod fragment;
mod maps;
mod packet;
mod parse;
mod pipeline;
mod probe;
mod protect;
mod related;
mod rewrite;
mod schedule;
mod service;
mod slow;
mod stats;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{Address, Reason, capture::Event, control::Features, reason::Verdict};

use crate::{forward::Forward, maps::DEVICES, packet::Packet, pipeline::Trace};

/// The program that every data-plane interface runs, for frames in one buffer or several (Linux 5.18
/// and later).
#[xdp(frags)]
#[inline(always)]
pub fn lbd(ctx: XdpContext) -> u32 {
    handle(&Packet {
        ctx: &ctx,
        frags: true,
    })
}

/// The same for kernels and drivers that only know frames in one buffer.
#[xdp]
#[inline(always)]
pub fn lbd_linear(ctx: XdpContext) -> u32 {
    handle(&Packet {
        ctx: &ctx,
        frags: false,
    })
}

#[inline(always)]
fn handle(packet: &Packet<'_>) -> u32 {
    let mut trace = Trace::default();
    let control = maps::control();
    // What a capture is shown takes the long way, so that the short one has no copy that knows of captures.
    if control.features & (Features::READY | Features::CAPTURE) == Features::READY {
        let act = |outcome, trace: &Trace| action_of(&outcome, trace, |_| ());
        if let Some(action) = pipeline::run_plain(packet, act) {
            return action;
        }
    }
    let control = maps::control();
    let features = answer::opaque(i64::from(control.features));
    if features & i64::from(Features::READY) == 0 {
        stats::count_reason(trace.service, Reason::NotReady);
        return xdp_action::XDP_PASS;
    }
    let capture = features & i64::from(Features::CAPTURE);
    // Asked anew each time: the compiler would make two copies of all that lies between.
    let is_shown = || answer::opaque(capture) != 0;
    let client = if is_shown() {
        capture::client_of(packet)
    } else {
        Address::default()
    };
    let outcome = pipeline::run(packet, control, &mut trace);
    let action = action_of(&outcome, &trace, |reason| {
        if trace.backend != 0 && slow::is_open(control) {
            slow::note(packet, reason, trace.backend);
        }
    });
    if is_shown() {
        capture::show(packet, &trace, client, action, number_of(&outcome));
    }
    action
}

/// How a capture is told of an outcome.
#[inline(always)]
fn number_of(outcome: &Result<Forward, Reason>) -> u32 {
    match outcome {
        Ok(Forward::Transmit) => Event::TRANSMITTED,
        Ok(Forward::Redirect(_)) => Event::REDIRECTED,
        Ok(Forward::ToStack) => Reason::Local as u32,
        Err(reason) => *reason as u32,
    }
}

/// The XDP action of an outcome, counted. A packet that passes is noted first.
#[inline(always)]
fn action_of(outcome: &Result<Forward, Reason>, trace: &Trace, note: impl FnOnce(Reason)) -> u32 {
    let reason = match outcome {
        Ok(Forward::Transmit) => return xdp_action::XDP_TX,
        // The daemon puts an interface into the device map before any backend names it.
        Ok(Forward::Redirect(ifindex)) => match DEVICES.redirect(*ifindex, 0) {
            Ok(action) => return action,
            Err(_) => Reason::DeviceGone,
        },
        Ok(Forward::ToStack) => Reason::Local,
        Err(reason) => *reason,
    };
    stats::count_reason(trace.service, reason);
    match reason.verdict() {
        Verdict::Pass => {
            note(reason);
            xdp_action::XDP_PASS
        }
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Answer => xdp_action::XDP_TX,
    }
}

/// Answers with the present tick: how the daemon learns where the program's clock stands.
#[xdp]
pub fn clock(_: XdpContext) -> u32 {
    maps::now(maps::control())
}

/// Runs on the far end of a veth pair, which needs a program of its own before the near end may
/// transmit from XDP.
#[xdp(frags)]
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
