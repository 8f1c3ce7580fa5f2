//! The order of the steps, and nothing else.
//!
//! The service look-up comes before every decision about the packet: what is not for a service of
//! this node leaves untouched. Nothing is written to the frame before the backend is certain.

use lb_common::{Backend, Control, Reason};

use crate::{
    answer::{self, late},
    flow::{self, Chosen},
    forward::{self, Forward},
    fragment, maps,
    packet::Packet,
    parse::{
        Datagram, Piece, Place,
        ethernet::{self, Link},
        ipv4, ipv6, plain,
        transport::{self, Transport},
    },
    protect, related,
    rewrite::{self, direct},
    service, slow, stats,
};

/// What was found out about a packet on the way, for counters and captures.
#[derive(Default)]
pub struct Trace {
    /// Service id, 0 before one is found.
    pub service: u16,
    /// Backend id, 0 before one is found.
    pub backend: u16,
}

/// The common case on a way of its own, where all offsets are constants: a packet of the commonest
/// shape that continues a flow. `None` leaves everything to [`run`], and the frame as it was.
#[inline(always)]
pub fn run_plain(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
) -> Result<Option<Forward>, Reason> {
    let Some(link) = ethernet::untagged(packet, control) else {
        return long_way();
    };
    match link.ethertype_be {
        ethernet::IPV4_BE => match plain::v4(packet) {
            // SAFETY: only array elements are looked up in between.
            Some((frame, ip, transport)) => proceed(
                packet,
                control,
                trace,
                &link,
                &ip,
                &transport,
                |backend| unsafe {
                    direct::plain_v4(frame, backend);
                },
            ),
            None => long_way(),
        },
        ethernet::IPV6_BE => match plain::v6(packet) {
            // SAFETY: as above.
            Some((frame, ip, transport)) => proceed(
                packet,
                control,
                trace,
                &link,
                &ip,
                &transport,
                |backend| unsafe {
                    direct::plain_v6(frame, backend);
                },
            ),
            None => long_way(),
        },
        _ => Err(late(Reason::NotIp)),
    }
}

/// Not the common case. The compiler would prepare this answer before it knows, so it is told nothing of it either.
#[inline(always)]
fn long_way() -> Result<Option<Forward>, Reason> {
    answer::opaque(0);
    Ok(None)
}

#[inline(always)]
fn proceed<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
    link: &Link,
    ip: &D,
    transport: &Transport,
    rewrite: impl FnOnce(&Backend),
) -> Result<Option<Forward>, Reason> {
    let vip = ip.vip(control).ok_or_else(|| late(Reason::NotAService))?;
    let info = service::look_up(control, vip, transport.destination_port_be, ip.protocol())
        .map_err(late)?;
    admit(packet, control, trace, link, ip, info.id(), info.role())?;
    if !ip.may_travel() {
        return long_way();
    }
    let outcome = flow::continued(control, info, ip, transport, |chosen, backend| {
        let length = ip.length();
        let forward = match forward::out(packet, backend) {
            Ok(Forward::Redirect(_)) if !rewrite::fits(packet, backend, length) => return None,
            Ok(forward) => forward,
            Err(_) => return None,
        };
        trace.backend = chosen;
        rewrite(backend);
        stats::count_forward(Chosen::known(chosen), length);
        Some(Ok(forward))
    });
    match outcome {
        Some(outcome) => outcome.map(Some),
        None => long_way(),
    }
}

/// What happens to a frame. `Err` is the reason why it is not forwarded.
#[inline(always)]
pub fn run(packet: &Packet<'_>, control: &Control, trace: &mut Trace) -> Result<Forward, Reason> {
    let link = ethernet::parse(packet, control)?;
    let offset = link.network_offset();
    match link.ethertype_be {
        ethernet::IPV4_BE => serve(packet, control, trace, &link, &ipv4::parse(packet, offset)?),
        ethernet::IPV6_BE => serve(packet, control, trace, &link, &ipv6::parse(packet, offset)?),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn serve<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
    link: &Link,
    ip: &D,
) -> Result<Forward, Reason> {
    let chosen = if matches!(ip.piece(), Piece::Later(_)) || ip.protocol() == D::ICMP {
        packet_without_ports(packet, control, trace, link, ip)?
    } else {
        packet_of_a_flow(packet, control, trace, link, ip)?
    };
    trace.backend = chosen.backend;
    let backend = maps::backend(chosen.backend);
    let forward = forward::way_to(packet, backend)?;
    if let Forward::ToStack = forward {
        stats::count_forward(chosen, ip.length());
        return Ok(forward);
    }
    if rewrite::is_simple(link, backend) && rewrite::fits(packet, backend, ip.length()) {
        direct::rewrite(packet, link, ip, backend)?;
    } else {
        rewrite::uncommon(packet, link, ip, chosen.backend)?;
    }
    stats::count_forward(chosen, ip.length());
    Ok(forward)
}

/// A packet with ports: the common case.
#[inline(always)]
fn packet_of_a_flow<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
    link: &Link,
    ip: &D,
) -> Result<Chosen, Reason> {
    let end = link.network_offset() + ip.length() as usize;
    let transport = transport::parse(packet, ip.protocol(), ip.transport_offset(), end)?;
    let vip = ip.vip(control).ok_or(Reason::NotAService)?;
    let info = service::look_up(control, vip, transport.destination_port_be, ip.protocol())?;
    admit(packet, control, trace, link, ip, info.id(), info.role())?;
    if !ip.may_travel() {
        if slow::is_open(control) {
            trace.backend = flow::foreseen(packet, info, link, ip);
        }
        return Err(Reason::TtlExpired);
    }
    let chosen = flow::backend_of(packet, info, link, ip)?;
    if let Piece::First(id) = ip.piece()
        && fragment::remember(packet, link, ip, id, info.id(), chosen.backend)
    {
        trace.backend = chosen.backend;
        return Err(Reason::FragmentEarly);
    }
    Ok(chosen)
}

/// What every packet of a service must fulfil, whatever it carries, but to be allowed to travel on.
#[inline(always)]
fn admit<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
    link: &Link,
    ip: &D,
    service: u16,
    role: u16,
) -> Result<(), Reason> {
    trace.service = service;
    service::require_mastership(control, role).map_err(late)?;
    forward::require_own_address(link).map_err(late)?;
    forward::require_own_vlan(packet, control, link)?;
    protect::require_unlisted(packet, control, || Place::of(link, ip)).map_err(late)
}

/// A later fragment, or an ICMP error: it belongs to a flow that another packet made.
#[inline(always)]
fn packet_without_ports<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    trace: &mut Trace,
    link: &Link,
    ip: &D,
) -> Result<Chosen, Reason> {
    let owner = match ip.piece() {
        Piece::Later(id) => fragment::recall(packet, link, ip, id)?,
        _ => related::owner(packet, link, ip)?,
    };
    admit(packet, control, trace, link, ip, owner.service, owner.role)?;
    if ip.may_travel() {
        Ok(Chosen::known(owner.backend))
    } else {
        Err(Reason::TtlExpired)
    }
}
