//! Per-CPU counters. One element per packet: the backend's for what is forwarded, the reason's for
//! what passes.

use lb_common::Reason;

use crate::{
    flow::Chosen,
    maps::{BACKEND_STATS, REASONS},
    parse::ipv4::Ipv4,
};

/// A packet that goes to a backend.
#[inline(always)]
pub fn count_forward(chosen: &Chosen, ip: &Ipv4) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(u32::from(chosen.backend)) {
        // SAFETY: the element is this CPU's own, and XDP programs do not interrupt one another.
        let counters = unsafe { &mut *counters };
        counters.packets += 1;
        counters.bytes += u64::from(ip.total_length);
        counters.connections += u64::from(chosen.scheduled);
    }
}

/// A packet that goes to the kernel.
#[inline(always)]
pub fn count_pass(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: as above.
        unsafe { *counter += 1 };
    }
}
