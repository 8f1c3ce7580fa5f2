//! Who may not come in: listed sources, and new connections beyond a rate. All of it off unless
//! configured.

use aya_ebpf::{
    bindings::xdp_md, btf_maps::lpm_trie::Key, helpers::generated::bpf_ktime_get_coarse_ns,
    programs::XdpContext,
};
use lb_common::{
    Address, Control, Reason,
    control::{Features, Rate},
    protect::SourceRule,
    service::ServiceDetail,
};

use crate::{
    atomic,
    flow::Arrival,
    maps::{CURSORS, SOURCE_RATES, SOURCES4, SOURCES6},
    packet::Packet,
    parse::Place,
    service,
};

/// Refuses sources of the blocklist. The longest prefix that matches decides.
#[inline(always)]
pub fn require_unlisted(
    packet: &Packet<'_>,
    control: &Control,
    place: impl FnOnce() -> Place,
) -> Result<(), Reason> {
    if control.features & Features::SOURCES == 0 || is_blocked(packet.ctx.ctx, place().0) == 0 {
        return Ok(());
    }
    Err(Reason::Blocked)
}

/// Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_blocked(ctx: *mut xdp_md, place: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    match Place(place).addresses(&packet) {
        Ok((source, _)) => i64::from(rule_of(&source) == SourceRule::Block as u32),
        Err(_) => 0,
    }
}

#[inline(never)]
fn rule_of(source: &Address) -> u32 {
    let rule = match source.as_v4() {
        Some(be) => SOURCES4.get(&Key::new(32, be.to_ne_bytes())),
        None => {
            let (first, second) = (source.0[0].to_ne_bytes(), source.0[1].to_ne_bytes());
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&first);
            bytes[8..].copy_from_slice(&second);
            SOURCES6.get(&Key::new(128, bytes))
        }
    };
    rule.map_or(0, |rule| *rule)
}

/// Whether a new connection may come in.
#[inline(always)]
pub fn admit(control: &Control, detail: &ServiceDetail, arrival: &Arrival) -> Result<(), Reason> {
    let source_limited = control.features & Features::SOURCE_RATE != 0;
    if (source_limited || detail.rate.interval_ns != 0)
        && control.features & Features::SOURCES != 0
        && rule_of(&arrival.client) == SourceRule::Allow as u32
    {
        return Ok(());
    }
    if source_limited && !source_conforms(control.source_rate, arrival.client) {
        return Err(Reason::SourceRate);
    }
    if detail.rate.interval_ns != 0 && !service_conforms(detail.rate, arrival.service()) {
        return Err(Reason::ServiceRate);
    }
    Ok(())
}

/// No client has a VIP for its address, nor one that means no single host.
#[inline(always)]
pub fn require_sane_source(control: &Control, source: &Address) -> Result<(), Reason> {
    if source.is_martian() {
        return Err(Reason::MartianSource);
    }
    match service::vip_of(control, *source) {
        Ok(_) => Err(Reason::SourceIsVip),
        Err(_) => Ok(()),
    }
}

#[inline(always)]
fn nanoseconds() -> u64 {
    // SAFETY: the helper takes no argument and always succeeds.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// IPv6 sources are counted by their /64, of which anyone who has one address has all.
#[inline(always)]
fn source_conforms(rate: Rate, source: Address) -> bool {
    let subject = match source.as_v4() {
        Some(_) => source,
        None => source.network(64),
    };
    let now = nanoseconds();
    match SOURCE_RATES.get_ptr_mut(subject) {
        Some(state) => conforms(rate, state, now),
        None => {
            let _ = SOURCE_RATES.insert(subject, now + rate.interval_ns, 0);
            true
        }
    }
}

#[inline(always)]
fn service_conforms(rate: Rate, id: u16) -> bool {
    match CURSORS.get_ptr_mut(u32::from(id)) {
        // SAFETY: a live array element; nothing is read here.
        Some(cursor) => conforms(rate, unsafe { &raw mut (*cursor).arrival }, nanoseconds()),
        None => true,
    }
}

/// Lost races of several CPUs are tried again this often; then the connection may come in.
const ATTEMPTS: u32 = 4;

#[inline(always)]
fn conforms(rate: Rate, state: *mut u64, now: u64) -> bool {
    for _ in 0..ATTEMPTS {
        // SAFETY: `state` lies in a map element and is aligned.
        let old = unsafe { state.read_volatile() };
        let Some(new) = rate.admit(old, now) else {
            return false;
        };
        // SAFETY: as above.
        if unsafe { atomic::compare_exchange(state, old, new) } {
            break;
        }
    }
    true
}
