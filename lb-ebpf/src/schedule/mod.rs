//! The backend of a new connection: protection first, then persistence, then the scheduler.

mod hashed;
mod least;
mod ring;
mod sticky;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    BackendFlags, Control, Reason,
    limits::MAX_SERVICES,
    service::{Method, ServiceFlags, ServiceInfo},
    table::Load,
};

use crate::{
    answer, atomic,
    flow::{Arrival, Decision},
    maps::{self, CURSORS, DETAILS, LOADS},
    packet::Packet,
    protect, service,
};

/// A packet whose flow nobody knows yet.
pub struct Newcomer<'a> {
    pub arrival: &'a Arrival,
    /// Whether this is the start of a flow. Otherwise the choice leaves no trace.
    pub remember: bool,
    /// Whether limits of new connections hold for it.
    pub limited: bool,
}

/// The backend for a new connection. `flags` are those of [`Decision`].
#[inline(always)]
pub fn choose(
    packet: &Packet<'_>,
    place: u64,
    info: ServiceInfo,
    flags: u32,
) -> Result<u16, Reason> {
    let chosen = answer::decode(choose_backend(packet.ctx.ctx, place, info.0, flags));
    chosen.map(|backend| backend as u16)
}

/// Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_backend(ctx: *mut xdp_md, place: u64, info: u64, flags: u32) -> i64 {
    let Ok(arrival) = Arrival::read(ctx, place, info) else {
        return answer::encode(Err(Reason::NotReady));
    };
    let newcomer = Newcomer {
        arrival: &arrival,
        remember: flags & Decision::REMEMBER != 0,
        limited: flags & Decision::LIMITED != 0,
    };
    let chosen = match try_choose(maps::control(), &newcomer) {
        Err(Reason::SourceIsVip) if arrival.is_land != 0 => Err(Reason::Land),
        chosen => chosen,
    };
    answer::encode(chosen.map(u64::from))
}

#[inline(always)]
fn try_choose(control: &Control, newcomer: &Newcomer<'_>) -> Result<u16, Reason> {
    let index = service::live(control) * MAX_SERVICES + u32::from(newcomer.arrival.service());
    let detail = DETAILS.get(index).ok_or(Reason::NotReady)?;
    if detail.ring_len == 0 {
        return Err(Reason::NoBackend);
    }
    protect::require_sane_source(control, &newcomer.arrival.client)?;
    if newcomer.limited {
        protect::admit(control, detail, newcomer.arrival)?;
    }
    let flags = ServiceInfo(newcomer.arrival.info).flags();
    let counted = flags & ServiceFlags::COUNTED != 0;
    let is_sctp = flags & ServiceFlags::SCTP != 0;
    let stuck = match detail.sticky_ticks {
        0 => None,
        _ => sticky::backend_of(control, detail, newcomer.arrival),
    };
    let backend = match stuck {
        Some(backend) => backend,
        None => by_method(control, index, newcomer, counted)?,
    };
    if newcomer.remember {
        if detail.sticky_ticks != 0 {
            sticky::remember(control, detail, newcomer.arrival, backend, stuck.is_some());
        }
        if counted && let Some(load) = LOADS.get_ptr_mut(u32::from(backend)) {
            // As IPVS counts: TCP is active from the first SYN on, UDP never, and SCTP once it is
            // established, which the next sweep finds out.
            // SAFETY: a live array element; the words are only added to.
            unsafe {
                let word = match newcomer.arrival.is_udp() || is_sctp {
                    true => &raw mut (*load).inactive,
                    false => &raw mut (*load).active,
                };
                atomic::fetch_add(word, 1);
            }
        }
    }
    Ok(backend)
}

#[inline(always)]
fn by_method(
    control: &Control,
    index: u32,
    newcomer: &Newcomer<'_>,
    counted: bool,
) -> Result<u16, Reason> {
    let detail = DETAILS.get(index).ok_or(Reason::NotReady)?;
    match detail.method & Method::KIND {
        Method::SOURCE | Method::MAGLEV => hashed::choose(index, detail, newcomer, counted),
        _ if !newcomer.remember => ring::by_hash(detail, newcomer.arrival.hash(control)),
        Method::FIRST => ring::first(index, detail, counted),
        Method::LEAST => least::choose(index, false),
        Method::WEIGHTED_LEAST => least::choose(index, true),
        _ => {
            let cursor = CURSORS
                .get_ptr_mut(u32::from(newcomer.arrival.service()))
                .ok_or(Reason::NotReady)?;
            ring::next(index, detail, cursor, counted)
        }
    }
}

/// Whether a backend may get a new connection.
#[inline(always)]
fn is_available(backend: u16, counted: bool) -> bool {
    let usable = BackendFlags::ALIVE | BackendFlags::DRAINING;
    maps::backend(backend).flags() & usable == BackendFlags::ALIVE
        && !(counted && is_overloaded(backend))
}

/// For the loops over many backends where connections are counted: 0 for one that may not get any
/// more, otherwise its connections (an established one counts as 256 others, as in IPVS) above the
/// sixteen bits of its weight. Verified on its own; it keeps the frames of its callers small, because
/// kernels before 6.8 round every frame up to 32 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn standing(backend: u32) -> i64 {
    if !is_available(backend as u16, true) {
        return 0;
    }
    let Some(load) = LOADS.get(backend) else {
        return 0;
    };
    let (active, inactive) = connections(load);
    let connections = (active << 8).wrapping_add(inactive);
    let weight = u64::from(load.weight) & 0xffff;
    match weight {
        0 => 0,
        _ => (connections << 16 | weight) as i64,
    }
}

/// As [`Load::connections`], without a branch.
#[inline(always)]
fn connections(load: &Load) -> (u64, u64) {
    let at_least_zero = |count: u64| count & !(answer::opaque(count as i64 >> 63) as u64);
    (at_least_zero(load.active), at_least_zero(load.inactive))
}

/// Whether a backend has reached its upper threshold and not come down to the lower one since.
#[inline(always)]
fn is_overloaded(backend: u16) -> bool {
    let Some(load) = LOADS.get_ptr_mut(u32::from(backend)) else {
        return false;
    };
    // SAFETY: a live array element. Two CPUs may both find the threshold crossed and both say so.
    let load: &mut Load = unsafe { &mut *load };
    if load.upper == 0 {
        return false;
    }
    let (active, inactive) = connections(load);
    let total = active.wrapping_add(inactive);
    let was = load.overloaded != 0;
    let is = if !was {
        total >= u64::from(load.upper)
    } else if load.lower != 0 {
        total >= u64::from(load.lower)
    } else {
        // IPVS: without a lower threshold, three quarters of the upper one.
        total * 4 >= u64::from(load.upper) * 3
    };
    if is != was {
        load.overloaded = u32::from(is);
    }
    is
}
