//! The control element: the words that user space changes while packets flow.

use std::{mem::offset_of, sync::atomic::Ordering};

use lb_common::{Control, control::Timeouts, flow, limits::MAX_ROLES};

use super::{clock::Clock, mapped::MappedArray};
use crate::model::FlowTimeouts;

/// The mapped element.
pub struct ControlElement(MappedArray<Control>, Clock);

impl ControlElement {
    /// Fills the element. One that an earlier daemon left keeps its secrets and goes on serving: its
    /// packets are somebody's connections.
    pub fn prepare(
        array: MappedArray<Control>,
        clock: Clock,
        bucket_masks: [u32; 4],
        timeouts: &FlowTimeouts,
    ) -> Self {
        let element = Self(array, clock);
        element
            .0
            .half_word(0, offset_of!(Control, tick_shift))
            .store(clock.shift(), Ordering::Relaxed);
        let ready = element.0.half_word(0, offset_of!(Control, ready));
        if ready.load(Ordering::Acquire) == 0 {
            for index in 0..2 {
                let word = element
                    .0
                    .word(0, offset_of!(Control, hash_secret) + index * 8);
                word.store(secret(), Ordering::Relaxed);
            }
            element.serve_nothing();
        }
        for (index, mask) in bucket_masks.into_iter().enumerate() {
            let word = element
                .0
                .half_word(0, offset_of!(Control, bucket_mask) + index * 4);
            word.store(mask, Ordering::Relaxed);
        }
        element.set_timeouts(timeouts);
        element.role(0).store(1, Ordering::Relaxed);
        ready.store(1, Ordering::Release);
        element
    }

    /// Whether an earlier daemon has filled the element.
    pub fn is_ready(array: &MappedArray<Control>) -> bool {
        array
            .half_word(0, offset_of!(Control, ready))
            .load(Ordering::Acquire)
            != 0
    }

    /// Which generation is live.
    pub fn live(&self) -> u32 {
        self.0
            .half_word(0, offset_of!(Control, live))
            .load(Ordering::Acquire)
    }

    /// Makes a generation live: the one store that packets notice.
    pub fn switch_to(&self, generation: u32) {
        self.0
            .half_word(0, offset_of!(Control, live))
            .store(generation, Ordering::Release);
    }

    /// Sets or clears a mastership flag; role 0 and unknown ones stay as they are.
    pub fn set_role(&self, role: u16, serving: bool) {
        if (1..MAX_ROLES).contains(&usize::from(role)) {
            self.role(usize::from(role))
                .store(u8::from(serving), Ordering::Release);
        }
    }

    /// Whether a mastership flag is set.
    pub fn is_serving(&self, role: u16) -> bool {
        self.role(usize::from(role)).load(Ordering::Relaxed) != 0
    }

    /// Clears every mastership flag but that of services without an instance.
    pub fn serve_nothing(&self) {
        for role in 1..MAX_ROLES {
            self.role(role).store(0, Ordering::Release);
        }
    }

    /// Stores flow time-outs.
    pub fn set_timeouts(&self, timeouts: &FlowTimeouts) {
        let base = offset_of!(Control, timeouts);
        for (offset, timeout) in [
            (offset_of!(Timeouts, tcp), timeouts.tcp),
            (offset_of!(Timeouts, tcp_closing), timeouts.tcp_closing),
            (offset_of!(Timeouts, tcp_half_open), timeouts.tcp_half_open),
            (offset_of!(Timeouts, udp), timeouts.udp),
        ] {
            let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
            self.0
                .half_word(0, base + offset)
                .store(flow::ticks(seconds, self.1.tick_ns()), Ordering::Relaxed);
        }
    }

    /// A copy, for dumps.
    pub fn load(&self) -> Control {
        self.0.load(0)
    }

    fn role(&self, role: usize) -> &std::sync::atomic::AtomicU8 {
        self.0
            .byte(0, offset_of!(Control, roles) + role % MAX_ROLES)
    }
}

/// A secret word from the kernel.
fn secret() -> u64 {
    let mut bytes = [0; 8];
    // Cannot fail for eight bytes once the kernel's pool is initialised, long before any daemon
    // starts; a hash with a known secret would still be correct.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}
