//! The order of the steps, and nothing else.
//!
//! The service look-up comes before every decision about the packet: what is not for a service of
//! this node leaves untouched. Nothing is written to the frame before the backend is certain.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{Address, Backend, BackendFlags, Control, Reason, service::ServiceInfo};

use crate::{
    answer::{self, late},
    flow::{self, Chosen},
    forward::{self, Forward},
    fragment, maps,
    packet::Packet,
    parse::{
        Datagram, Piece, Place,
        ethernet::{self, Addressee, Ethernet, Link},
        ipv4::{self, Ipv4Header},
        ipv6::{self, Ipv6Header},
        plain::{self, Frame, Plain},
        transport::{self, Kind, TCP, UDP},
    },
    protect, related,
    rewrite::{self, direct},
    service::{self, Vip},
    slow, stats,
};

/// What was found out about a packet on the way, for counters and captures.
#[derive(Default)]
pub struct Trace {
    /// Service id, 0 before one is found.
    pub service: u16,
    /// Backend id, 0 before one is found.
    pub backend: u16,
}

/// What turns an outcome into an action. It is handed in because the compiler then knows each outcome where it comes
/// about, and prepares no answers that it must tell apart later.
pub trait Act: Fn(Result<Forward, Reason>, &Trace) -> u32 {}
impl<F: Fn(Result<Forward, Reason>, &Trace) -> u32> Act for F {}

/// The common case on a way of its own, where all offsets are constants: a packet of the commonest
/// shape that continues a flow. `None` leaves everything to [`run`], and the frame as it was. The address of the control
/// element is loaded anew at each use: to keep it costs as much, and registers.
#[inline(always)]
pub fn run_plain(packet: &Packet<'_>, act: impl Act) -> Option<u32> {
    let Some(frame) = plain::frame(packet) else {
        return long_way();
    };
    // SAFETY: the bounds were checked, here and for IPv6 below.
    unsafe {
        if plain::is_v4(frame) {
            if plain::is_whole::<false>(frame) {
                return v4::<false>(packet, frame, act);
            }
            if plain::is_whole::<true>(frame) {
                return v4::<true>(packet, frame, act);
            }
        } else if plain::is_v6(frame)
            && let Ok(frame) = packet.header::<Frame<Ipv6Header>>(0)
        {
            match (*frame).network.next_header {
                TCP => return v6::<false>(packet, frame, act),
                UDP => return v6::<true>(packet, frame, act),
                _ => {}
            }
        }
    }
    long_way()
}

/// Not the common case. The compiler would prepare this answer before it knows, so it is told nothing of it either.
#[inline(always)]
fn long_way() -> Option<u32> {
    answer::opaque(0);
    None
}

#[inline(always)]
fn v4<const IS_UDP: bool>(
    packet: &Packet<'_>,
    frame: *mut Frame<Ipv4Header>,
    act: impl Act,
) -> Option<u32> {
    // SAFETY: the bounds were checked, here and below.
    let Some(Plain { frame, length }) = (unsafe { Plain::v4::<IS_UDP>(packet, frame) }) else {
        return long_way();
    };
    let (network, ports) = unsafe {
        (
            &raw const (*frame).network,
            &raw const (*frame).segment.ports,
        )
    };
    let (protocol, kind) = protocol::<IS_UDP>();
    let (vip, port_be) = unsafe { (Vip::v4((*network).destination_be), (*ports).destination_be) };
    let Some(info) = service::single(maps::control(), vip, port_be, protocol) else {
        return match service::has_ranges(maps::control()) {
            true => long_way(),
            false => Some(act(Err(late(Reason::NotAService)), &Trace::default())),
        };
    };
    if !may_go_on(packet, info, || Place::plain(true, protocol)) {
        return long_way();
    }
    let exit = flow::continued_v4(
        info,
        kind,
        || unsafe { ((*network).source_be, (*ports).source_be) },
        |backend| may_leave(packet, unsafe { &(*frame).link }, backend, length),
        |chosen, backend, exit| {
            unsafe { direct::plain_v4(frame, backend) };
            stats::count_forward(Chosen::known(chosen), length);
            exit
        },
    );
    match exit {
        Some(exit) => Some(leave(exit, info, act)),
        None => long_way(),
    }
}

#[inline(always)]
fn v6<const IS_UDP: bool>(
    packet: &Packet<'_>,
    frame: *mut Frame<Ipv6Header>,
    act: impl Act,
) -> Option<u32> {
    let Some(Plain { frame, length }) = Plain::v6::<IS_UDP>(packet, frame) else {
        return long_way();
    };
    // SAFETY: as above.
    let (network, ports) = unsafe {
        (
            &raw const (*frame).network,
            &raw const (*frame).segment.ports,
        )
    };
    let (protocol, kind) = protocol::<IS_UDP>();
    let (address, port_be) = unsafe { ((*network).destination, (*ports).destination_be) };
    let found = service::vip_v6(maps::control(), address).ok_or(Reason::NotAService);
    let found =
        found.and_then(
            |vip| match service::single(maps::control(), vip, port_be, protocol) {
                Some(info) => Ok(info),
                None if service::has_ranges(maps::control()) => {
                    service::in_a_range(vip, port_be, protocol)
                }
                None => Err(Reason::NotAService),
            },
        );
    let info = match found {
        Ok(info) => info,
        Err(reason) => return Some(act(Err(late(reason)), &Trace::default())),
    };
    if !may_go_on(packet, info, || Place::plain(false, protocol)) {
        return long_way();
    }
    let exit = flow::continued_v6(
        info,
        kind,
        || unsafe {
            (
                Address((*network).source),
                (*ports).source_be,
                (*ports).destination_be,
            )
        },
        |backend| may_leave(packet, unsafe { &(*frame).link }, backend, length),
        |chosen, backend, exit| {
            unsafe { direct::plain_v6(frame, backend) };
            stats::count_forward(Chosen::known(chosen), length);
            exit
        },
    );
    match exit {
        Some(exit) => Some(leave(exit, info, act)),
        None => long_way(),
    }
}

#[inline(always)]
const fn protocol<const IS_UDP: bool>() -> (u8, Kind) {
    if IS_UDP {
        (UDP, Kind::Datagram)
    } else {
        (TCP, Kind::Data)
    }
}

/// Of what every packet of a service must fulfil, what is not known from its shape. [`accept`] names the reasons.
#[inline(always)]
fn may_go_on(packet: &Packet<'_>, info: ServiceInfo, place: impl FnOnce() -> Place) -> bool {
    service::is_master(maps::control(), info.role())
        && protect::require_unlisted(packet, maps::control(), place).is_ok()
}

/// In place of an interface: the frame leaves by the one that it came in by.
const STAYS: u32 = 0;

/// The interface that the frame leaves by to the backend, if it is this host's and can leave as it is. What comes in by the
/// interface that the backend is behind was nearly always sent to the address that frames to the backend are
/// sent from.
#[inline(always)]
fn may_leave(packet: &Packet<'_>, link: &Ethernet, backend: &Backend, length: u32) -> Option<u32> {
    let ifindex = backend.ifindex as u32;
    if ifindex == packet.ingress_ifindex() && ethernet::is_to(link, backend.source) {
        return Some(STAYS);
    }
    // Reads everything anew, so that nothing is kept for it before.
    let ctx = XdpContext::new(answer::opaque(packet.ctx.ctx as i64) as *mut xdp_md);
    let again = Packet::again(&ctx);
    let addressee = ethernet::addressee(&again, maps::control(), link.destination);
    if !matches!(addressee, Addressee::Us) {
        return None;
    }
    if ifindex == again.ingress_ifindex() {
        return Some(STAYS);
    }
    let may_redirect = backend.flags() & BackendFlags::NO_REDIRECT == 0;
    (may_redirect && rewrite::fits(&again, backend, length)).then_some(ifindex)
}

#[inline(always)]
fn leave(exit: u32, info: ServiceInfo, act: impl Act) -> u32 {
    if exit == STAYS {
        return act(Ok(Forward::Transmit), &Trace::default());
    }
    let trace = Trace {
        service: info.id(),
        backend: 0,
    };
    act(Ok(Forward::Redirect(exit)), &trace)
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
