//! Writing the generation that is not live.

use std::time::Duration;

use lb_common::{
    limits::{
        MAX_PORT_RANGES, MAX_SERVICES, RING_CHUNK_SLOTS, RING_CHUNKS_PER_GENERATION,
        SERVICE_BUCKETS, VIP_BUCKETS,
    },
    service::ServiceDetail,
};

use super::{GRACE, Xdp, image::Image, mapped::MappedArray};

impl Xdp {
    /// Fills the generation that is not live.
    pub(super) fn write_generation(&self, image: &Image, spare: u32) {
        write(
            &self.rings,
            spare * RING_CHUNKS_PER_GENERATION,
            &image.chunks,
        );
        write(&self.services, spare * SERVICE_BUCKETS, &image.services);
        write(&self.vips, spare * VIP_BUCKETS, &image.vips);
        write(&self.ranges, spare * MAX_PORT_RANGES, &image.ranges);
        for (id, detail) in &image.details {
            let slots = spare * RING_CHUNKS_PER_GENERATION * RING_CHUNK_SLOTS;
            let placed = ServiceDetail {
                ring_first: detail.ring_first + slots,
                members_first: detail.members_first + slots,
                ..*detail
            };
            let index = spare * MAX_SERVICES + u32::from(*id);
            self.details.store(index as usize, &placed);
        }
        self.control.describe(spare, &image.generation);
    }

    /// Waits until no packet can still be reading the generation that was live before.
    pub(super) fn wait_for_readers(&self) {
        if self.switched.is_some_and(|at| at.elapsed() < GRACE) {
            wait_for_all_readers();
        }
    }
}

/// Waits until every packet that is in the program now has left it.
pub fn wait_for_all_readers() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes no pointers. The global command is synchronize_rcu(), and XDP
    // programs run in RCU read-side critical sections.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes `values` from element `first` on.
fn write<T: Copy + PartialEq>(array: &MappedArray<T>, first: u32, values: &[T]) {
    for (index, value) in (first as usize..).zip(values) {
        if array.load(index) != *value {
            array.store(index, value);
        }
    }
}
