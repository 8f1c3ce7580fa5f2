//! Per-CPU counters. One element per packet: the backend's for what is forwarded, the reason's for
//! all others.

use lb_common::{Reason, limits::MAX_SERVICES, reason::REASON_SLOTS};

use crate::{
    flow::Chosen,
    maps::{BACKEND_STATS, REASONS},
};

/// A packet that goes to a backend. `length` is counted from the IP header on.
#[inline(always)]
pub fn count_forward(chosen: Chosen, length: u32) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(u32::from(chosen.backend)) {
        // SAFETY: the element is this CPU's own, and XDP programs do not interrupt one another.
        let counters = unsafe { &mut *counters };
        counters.packets += 1;
        counters.bytes += u64::from(length);
        counters.connections += u64::from(chosen.scheduled);
    }
}

/// A packet that goes elsewhere. Service 0 is none.
#[inline(always)]
pub fn count_reason(service: u16, reason: Reason) {
    let index = (u32::from(service) & (MAX_SERVICES - 1)) * REASON_SLOTS + reason as u32;
    if let Some(counter) = REASONS.get_ptr_mut(index) {
        // SAFETY: as above.
        unsafe { *counter += 1 };
    }
}
