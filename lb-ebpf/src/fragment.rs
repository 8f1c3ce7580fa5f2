//! Later fragments have no ports: they follow their first one, whose decision is remembered.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{BackendFlags, Reason, flow::tick_shift, limits::MAX_SERVICES, table::FragmentKey};

use crate::{
    answer, forward,
    maps::{self, DETAILS, FRAGMENTS, now},
    packet::Packet,
    parse::{Datagram, Place, ethernet::Link},
    related::Owner,
    service,
};

/// How long pieces of a datagram follow the first one: the kernel's ipfrag_time of 30 s in ticks of
/// about 64 ms.
const PATIENCE_TICKS: u32 = 512;

/// The decision about the first fragment.
#[inline(always)]
pub fn remember<D: Datagram>(
    packet: &Packet<'_>,
    link: &Link,
    ip: &D,
    id: u32,
    service: u16,
    backend: u16,
) {
    let decision = u64::from(service) << 16 | u64::from(backend);
    remember_fragment(packet.ctx.ctx, Place::of(link, ip).0, id, decision);
}

/// Where this later fragment goes.
#[inline(always)]
pub fn recall<D: Datagram>(
    packet: &Packet<'_>,
    link: &Link,
    ip: &D,
    id: u32,
) -> Result<Owner, Reason> {
    let found = answer::decode(recall_fragment(packet.ctx.ctx, Place::of(link, ip).0, id))?;
    Ok(Owner::of(found))
}

/// Verified on its own. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_fragment(ctx: *mut xdp_md, place: u64, id: u32, decision: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let (Ok(key), Ok(control)) = (key_of(&ctx, place, id), maps::control()) else {
        return 0;
    };
    let expires = now(control).wrapping_add(PATIENCE_TICKS);
    let value = u64::from(expires) << 32 | decision & 0xffff_ffff;
    let _ = FRAGMENTS.insert(key, value, 0);
    0
}

/// Verified on its own. Answers with an [`Owner`]'s number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall_fragment(ctx: *mut xdp_md, place: u64, id: u32) -> i64 {
    answer::encode(find(&XdpContext::new(ctx), place, id))
}

#[inline(always)]
fn find(ctx: &XdpContext, place: u64, id: u32) -> Result<u64, Reason> {
    let control = maps::control()?;
    let key = key_of(ctx, place, id)?;
    service::vip_of(control, key.destination)?;
    // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
    let value = *unsafe { FRAGMENTS.get(key) }.ok_or(Reason::FragmentEarly)?;
    let left = ((value >> 32) as u32).wrapping_sub(now(control));
    if left == 0 || left > PATIENCE_TICKS {
        return Err(Reason::FragmentEarly);
    }
    let (backend, service) = (value as u16, (value >> 16) as u16);
    if forward::element(backend)?.flags() & BackendFlags::ALIVE == 0 {
        return Err(Reason::FragmentEarly);
    }
    let generation = service::live(control) * MAX_SERVICES;
    let detail = DETAILS
        .get(generation + (u32::from(service) & (MAX_SERVICES - 1)))
        .ok_or(Reason::NotReady)?;
    let owner = Owner {
        backend,
        service,
        role: detail.role as u16,
    };
    Ok(owner.number())
}

#[inline(always)]
fn key_of(ctx: &XdpContext, place: u64, id: u32) -> Result<FragmentKey, Reason> {
    let place = Place(place);
    let (source, destination) = place.addresses(&Packet::again(ctx))?;
    Ok(FragmentKey {
        source,
        destination,
        id,
        // RFC 8200 section 4.5 joins fragments by addresses and identification alone: what follows the
        // fragment header differs where there are more extension headers.
        protocol: if place.is_v4() {
            u32::from(place.protocol())
        } else {
            0
        },
    })
}

/// A tick is between 34 and 67 ms, so the patience is 17 to 34 s.
const _: () = assert!(tick_shift(1_000_000) == 6);
