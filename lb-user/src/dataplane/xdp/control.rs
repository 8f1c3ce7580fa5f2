//! The control element: the words that user space changes while packets flow.

use std::{mem::offset_of, sync::atomic::Ordering};

use lb_common::{
    Control,
    capture::Filter,
    control::{Features, Generation, Rate, Timeouts, mac_slot},
    flow::{self, FlowTable},
    limits::{LOCAL_MAC_SLOTS, MAX_ROLES},
};

use super::{clock::Clock, generation::wait_for_all_readers, mapped::MappedArray};
use crate::model::FlowTimeouts;

/// The mapped element.
pub struct ControlElement(MappedArray<Control>, Clock);

impl ControlElement {
    /// Fills the element. One that an earlier daemon left keeps its secrets and goes on serving: its
    /// packets are somebody's connections.
    pub fn prepare(
        array: MappedArray<Control>,
        clock: Clock,
        tables: [u64; FlowTable::ALL.len()],
        timeouts: &FlowTimeouts,
    ) -> Self {
        let element = Self(array, clock);
        element
            .0
            .word(0, offset_of!(Control, tick_scale))
            .store(flow::tick_scale(clock.shift()), Ordering::Relaxed);
        if !Self::is_ready(&element.0) {
            for index in 0..2 {
                let word = element
                    .0
                    .word(0, offset_of!(Control, hash_secret) + index * 8);
                word.store(secret(), Ordering::Relaxed);
            }
            element.serve_nothing();
        }
        for (table, word) in FlowTable::ALL.into_iter().zip(tables) {
            element.set_table(table, word);
        }
        element.set_capture(None);
        // Whether there is one is another question for every daemon.
        element.set_feature(Features::SLOW_PATH, false);
        element.set_timeouts(timeouts);
        element.role(0).store(1, Ordering::Relaxed);
        element.set_feature(Features::READY, true);
        element
    }

    /// Whether an earlier daemon has filled the element.
    pub fn is_ready(array: &MappedArray<Control>) -> bool {
        let features = array.half_word(0, offset_of!(Control, features));
        features.load(Ordering::Acquire) & Features::READY != 0
    }

    /// Where flow tables lie that an earlier daemon made, and that one was moving out of.
    pub fn tables(array: &MappedArray<Control>) -> [[u64; FlowTable::ALL.len()]; 2] {
        if !Self::is_ready(array) {
            return [[0; FlowTable::ALL.len()]; 2];
        }
        let control = array.load(0);
        [control.tables, control.previous]
    }

    /// Which generation is live.
    pub fn live(&self) -> u32 {
        self.0
            .half_word(0, offset_of!(Control, live))
            .load(Ordering::Acquire)
    }

    /// Says how the generation that is not live is to be read.
    pub fn describe(&self, generation: u32, description: &Generation) {
        let base = offset_of!(Control, generations) + generation as usize * size_of::<Generation>();
        let half = |offset: usize, value: u32| {
            self.0
                .half_word(0, base + offset)
                .store(value, Ordering::Relaxed);
        };
        self.0
            .word(0, base + offset_of!(Generation, service_seed))
            .store(description.service_seed, Ordering::Relaxed);
        half(
            offset_of!(Generation, service_mask),
            description.service_mask,
        );
        half(offset_of!(Generation, vip_mask), description.vip_mask);
        half(offset_of!(Generation, wildcards), description.wildcards);
    }

    /// Where a flow table lies: see [`TableWord`](lb_common::control::TableWord).
    pub fn set_table(&self, table: FlowTable, word: u64) {
        let offset = offset_of!(Control, tables) + table as usize * 8;
        self.0.word(0, offset).store(word, Ordering::Release);
    }

    /// The table that is being moved out of; 0 is none.
    pub fn set_previous(&self, table: FlowTable, word: u64) {
        let offset = offset_of!(Control, previous) + table as usize * 8;
        self.0.word(0, offset).store(word, Ordering::Release);
    }

    /// Limits new connections of one source.
    pub fn set_source_rate(&self, rate: Rate) {
        let base = offset_of!(Control, source_rate);
        for (offset, value) in [
            (offset_of!(Rate, interval_ns), rate.interval_ns),
            (offset_of!(Rate, tolerance_ns), rate.tolerance_ns),
        ] {
            self.0
                .word(0, base + offset)
                .store(value, Ordering::Relaxed);
        }
        self.set_feature(Features::SOURCE_RATE, rate.interval_ns != 0);
    }

    /// Turns a feature on or off: see [`Features`].
    pub fn set_feature(&self, feature: u32, on: bool) {
        let features = self.0.half_word(0, offset_of!(Control, features));
        if on {
            features.fetch_or(feature, Ordering::Release);
        } else {
            features.fetch_and(!feature, Ordering::Release);
        }
    }

    /// Starts a capture, or ends it.
    pub fn set_capture(&self, filter: Option<&Filter>) {
        self.set_feature(Features::CAPTURE, false);
        let Some(filter) = filter else { return };
        let base = offset_of!(Control, capture);
        let word = |offset: usize, value: u64| {
            self.0
                .word(0, base + offset)
                .store(value, Ordering::Relaxed);
        };
        let half = |offset: usize, value: u32| {
            self.0
                .half_word(0, base + offset)
                .store(value, Ordering::Relaxed);
        };
        for index in 0..2 {
            word(
                offset_of!(Filter, client) + index * 8,
                filter.client.0[index],
            );
            word(
                offset_of!(Filter, client_mask) + index * 8,
                filter.client_mask.0[index],
            );
        }
        word(offset_of!(Filter, outcomes), filter.outcomes);
        half(offset_of!(Filter, service), filter.service);
        half(offset_of!(Filter, backend), filter.backend);
        half(offset_of!(Filter, snap_length), filter.snap_length);
        self.set_feature(Features::CAPTURE, true);
    }

    /// The MAC addresses of this host, as [`mac_word`](lb_common::control::mac_word)s. Says whether a
    /// hash without collisions was found; otherwise no frame is taken for foreign.
    pub fn set_macs(&self, words: &[u64]) -> bool {
        let multiplier = self.0.word(0, offset_of!(Control, mac_multiplier));
        let slot = |slot: usize| self.0.word(0, offset_of!(Control, macs) + slot * 8);
        let mut present: Vec<u64> = self
            .0
            .load(0)
            .macs
            .into_iter()
            .filter(|word| *word != 0)
            .collect();
        let mut wanted = words.to_vec();
        present.sort_unstable();
        wanted.sort_unstable();
        wanted.dedup();
        if multiplier.load(Ordering::Acquire) != 0 && present == wanted {
            return true;
        }
        let found = multipliers().find(|multiplier| collision_free(words, *multiplier));
        // While the slots change, no frame is foreign.
        multiplier.store(0, Ordering::Release);
        wait_for_all_readers();
        for index in 0..LOCAL_MAC_SLOTS {
            slot(index).store(0, Ordering::Release);
        }
        let Some(found) = found else { return false };
        for word in words {
            slot(mac_slot(*word, found)).store(*word, Ordering::Release);
        }
        multiplier.store(found, Ordering::Release);
        true
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

/// Odd numbers that scatter well, as many as are worth trying.
fn multipliers() -> impl Iterator<Item = u64> {
    (1..=1_000_000_u64).map(|turn| turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

fn collision_free(words: &[u64], multiplier: u64) -> bool {
    let mut taken = [0; LOCAL_MAC_SLOTS];
    words.iter().all(|word| {
        let slot = &mut taken[mac_slot(*word, multiplier)];
        let free = *slot == 0 || *slot == *word;
        *slot = *word;
        free
    })
}

/// A secret word from the kernel.
fn secret() -> u64 {
    let mut bytes = [0; 8];
    // Cannot fail for eight bytes once the kernel's pool is initialised, long before any daemon
    // starts; a hash with a known secret would still be correct.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}
