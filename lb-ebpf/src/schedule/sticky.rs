//! Persistence: all connections of one client, or of its network, go to one backend.
//!
//! Clients of which one packet was seen are kept apart from those that went on, so that a flood of
//! forged sources cannot make the others change servers.

use lb_common::{BackendFlags, Control, flow::FlowValue, service::ServiceDetail, table::StickyKey};

use crate::{
    flow::Arrival,
    maps::{self, STICKY, STICKY_NEW, now},
};

/// The backend that the client sticks to, unless it is gone. One that is drained keeps those who stick
/// to it, as in IPVS.
#[inline(always)]
pub fn backend_of(control: &Control, detail: &ServiceDetail, arrival: &Arrival) -> Option<u16> {
    let key = key(detail, arrival);
    // SAFETY: values are copied at once; a concurrent update can only replace them whole.
    let [old, new] = unsafe { [STICKY.get(key), STICKY_NEW.get(key)] };
    // No option: the compiler would copy around what a missing one has for a value, and the verifier minds.
    let [old, new] = [old, new].map(|bond| FlowValue(bond.copied().unwrap_or_default()));
    usable(control, old).or_else(|| usable(control, new))
}

/// The backend of a bond that holds. 0 is no bond, and free.
#[inline(always)]
fn usable(control: &Control, value: FlowValue) -> Option<u16> {
    let flags = maps::backend(value.backend()).flags();
    let stays = flags & (BackendFlags::ALIVE | BackendFlags::PASSING) == BackendFlags::ALIVE;
    (stays && !value.is_free(now(control))).then_some(value.backend())
}

/// Renews or begins the bond.
#[inline(always)]
pub fn remember(
    control: &Control,
    detail: &ServiceDetail,
    arrival: &Arrival,
    backend: u16,
    known: bool,
) {
    let key = key(detail, arrival);
    let value = FlowValue::new(
        backend,
        now(control).wrapping_add(detail.sticky_ticks),
        false,
    );
    // A second connection proves that the client is there.
    let _ = if known {
        STICKY.insert(key, value.0, 0)
    } else {
        STICKY_NEW.insert(key, value.0, 0)
    };
}

#[inline(always)]
fn key(detail: &ServiceDetail, arrival: &Arrival) -> StickyKey {
    StickyKey {
        client: arrival.client.network(detail.sticky_bits as u8),
        service: u64::from(arrival.service()),
    }
}
