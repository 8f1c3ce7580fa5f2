//! Later fragments have no ports: they follow their first one, whose decision is remembered.
//!
//! Where there is a slow path, a later fragment of IPv4 that comes before its first one is remembered as well, as one
//! of backend 0: the kernel has it, so the first one and all others go there too, and the kernel puts them together.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_md},
    programs::XdpContext,
};
use lb_common::{
    BackendFlags, Control, Reason, flow::tick_shift, limits::MAX_SERVICES, table::FragmentKey,
};

use crate::{
    answer, forward,
    maps::{self, DETAILS, FRAGMENTS, now},
    packet::Packet,
    parse::{Datagram, Place, ethernet::Link},
    related::Owner,
    service, slow,
};

/// How long pieces of a datagram follow the first one: the kernel's ipfrag_time of 30 s in ticks of
/// about 64 ms.
const PATIENCE_TICKS: u32 = 512;
/// Backend ids begin at 1.
const IN_KERNEL: u16 = 0;

/// The decision about the first fragment. Says whether the kernel has others already.
#[inline(always)]
pub fn remember<D: Datagram>(
    packet: &Packet<'_>,
    link: &Link,
    ip: &D,
    id: u32,
    service: u16,
    backend: u16,
) -> bool {
    let decision = u64::from(service) << 16 | u64::from(backend);
    remember_fragment(packet.ctx.ctx, Place::of(link, ip).0, id, decision) != 0
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

/// Verified on its own. Non-zero if the kernel has later fragments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_fragment(ctx: *mut xdp_md, place: u64, id: u32, decision: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let Ok(key) = key_of(&ctx, place, id) else {
        return 0;
    };
    let control = maps::control();
    let value = lasting(control, decision);
    if !slow::is_open(control) || !Place(place).is_v4() {
        let _ = FRAGMENTS.insert(key, value, 0);
        return 0;
    }
    let way = forward::way_to(&Packet::again(&ctx), maps::backend(decision as u16));
    if way.is_err() {
        let _ = FRAGMENTS.insert(key, lasting(control, u64::from(IN_KERNEL)), 0);
        return 0;
    }
    // A later one may be on another CPU at this moment: whoever comes here first decides.
    if FRAGMENTS
        .insert(key, value, u64::from(BPF_NOEXIST))
        .is_err()
    {
        if fresh(control, &key).is_some_and(|known| known as u16 == IN_KERNEL) {
            return 1;
        }
        let _ = FRAGMENTS.insert(key, value, 0);
    }
    0
}

/// A decision with the tick until which it holds.
#[inline(always)]
fn lasting(control: &Control, decision: u64) -> u64 {
    let expires = now(control).wrapping_add(PATIENCE_TICKS);
    u64::from(expires) << 32 | decision & 0xffff_ffff
}

/// A decision that holds.
#[inline(always)]
fn fresh(control: &Control, key: &FragmentKey) -> Option<u64> {
    // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
    let value = *unsafe { FRAGMENTS.get(key) }?;
    let left = ((value >> 32) as u32).wrapping_sub(now(control));
    (left != 0 && left <= PATIENCE_TICKS).then_some(value)
}

/// What holds for a later fragment. One that is early is remembered.
#[inline(always)]
fn decision(control: &Control, key: &FragmentKey, is_v4: bool) -> Option<u64> {
    let known = fresh(control, key);
    if known.is_some() || !is_v4 || !slow::is_open(control) {
        return known;
    }
    let value = lasting(control, u64::from(IN_KERNEL));
    if FRAGMENTS.insert(key, value, u64::from(BPF_NOEXIST)).is_ok() {
        return None;
    }
    // Its first one came at this moment, or something old is in its place.
    let known = fresh(control, key);
    if known.is_none() {
        let _ = FRAGMENTS.insert(key, value, 0);
    }
    known
}

/// Verified on its own. Answers with an [`Owner`]'s number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall_fragment(ctx: *mut xdp_md, place: u64, id: u32) -> i64 {
    answer::encode(find(&XdpContext::new(ctx), place, id))
}

#[inline(always)]
fn find(ctx: &XdpContext, place: u64, id: u32) -> Result<u64, Reason> {
    let control = maps::control();
    let key = key_of(ctx, place, id)?;
    service::vip_of(control, key.destination)?;
    let value = decision(control, &key, Place(place).is_v4()).ok_or(Reason::FragmentEarly)?;
    let (backend, service) = (value as u16, (value >> 16) as u16);
    if maps::backend(backend).flags() & BackendFlags::ALIVE == 0 {
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
