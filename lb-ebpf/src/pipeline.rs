//! The order of the steps, and nothing else.
//!
//! The service look-up comes before every decision about the packet: what is not for a service of
//! this node leaves untouched. Nothing is written to the frame before the backend is certain.

use lb_common::Reason;

use crate::{
    flow,
    forward::{self, Forward},
    maps,
    packet::Packet,
    parse::{ethernet, ipv4, transport},
    rewrite::direct,
    service, stats,
};

/// What happens to a frame. `Err` is the reason why it passes to the kernel unchanged.
#[inline(always)]
pub fn run(packet: &Packet<'_>) -> Result<Forward, Reason> {
    let control = maps::control()?;
    ethernet::parse(packet)?;
    let ip = ipv4::parse(packet)?;
    let transport = transport::parse(packet, &ip)?;
    let service = service::look_up(control, &ip, &transport)?;
    ip.forwardable()?;
    let chosen = flow::backend_of(control, service, &ip, &transport)?;
    let backend = forward::element(chosen.backend)?;
    let forward = forward::way_to(packet, backend)?;
    stats::count_forward(&chosen, &ip);
    match forward {
        Forward::ToStack => {}
        Forward::Transmit | Forward::Redirect(_) => direct::rewrite(packet, backend)?,
    }
    Ok(forward)
}
