//! Growing a table while packets flow: make one of twice the size beside it, switch, carry the flows
//! over, forget the old one.
//!
//! While flows are carried over, the program looks into both tables and moves what it meets itself.
//! One table grows at a time.

use std::sync::atomic::Ordering;

use lb_common::{
    control::TableWord,
    flow::{self, FlowKey, FlowTable, FlowValue},
    limits::{BUCKET_WAYS, CHUNK_SLOTS},
    wide::WideKey,
};

use super::{
    Flows,
    chunks::{Chunk, Table},
};
use crate::dataplane::xdp::{control::ControlElement, generation::wait_for_all_readers};

/// Chunks made in one sweep: each waits for the kernel for some milliseconds.
const CHUNKS_PER_SWEEP: usize = 16;

/// A growing table.
pub enum Growth {
    /// Chunks of the new table are being made.
    Making(Table),
    /// Flows must be carried over from this table, which an earlier daemon was moving out of.
    Moving(Table),
}

/// A flow that has no place in its table.
#[derive(Clone, Copy)]
pub enum Homeless {
    Narrow(FlowKey, FlowValue),
    Wide(WideKey, FlowValue),
}

impl Homeless {
    /// Whether its key is [wide](lb_common::wide).
    pub const fn is_wide(&self) -> bool {
        matches!(self, Homeless::Wide(..))
    }

    /// Backend and expiry.
    pub const fn value(&self) -> FlowValue {
        match self {
            Homeless::Narrow(_, value) | Homeless::Wide(_, value) => *value,
        }
    }
}

impl Growth {
    /// The table that flows are being carried over from.
    pub fn previous(&self) -> Option<&Table> {
        match self {
            Growth::Making(_) => None,
            Growth::Moving(table) => Some(table),
        }
    }
}

impl Flows {
    /// Does the next step. Flows that find no room in a new table are given to `spill`. Says whether a
    /// table has grown.
    pub(super) fn grow(
        &mut self,
        control: &ControlElement,
        live: &[u32],
        now: u32,
        spill: impl FnMut(Homeless),
    ) -> bool {
        let step = self.growth.take().or_else(|| self.begin(live));
        match step {
            None => false,
            Some(Growth::Moving(old)) => {
                self.move_out(&old, control, now, spill);
                true
            }
            Some(Growth::Making(table)) => match self.make(table) {
                Some(new) if is_whole(&new) => {
                    let old = self.switch(new, control);
                    self.move_out(&old, control, now, spill);
                    true
                }
                unfinished => {
                    self.growth = unfinished.map(Growth::Making);
                    false
                }
            },
        }
    }

    /// Picks a table that is more than half full.
    fn begin(&mut self, live: &[u32]) -> Option<Growth> {
        let slots = self.slots();
        let table = FlowTable::ALL.into_iter().find(|table| {
            let index = *table as usize;
            !table.is_half_open() && live[index] > slots[index] / 2 && slots[index] < self.max_slots
        })?;
        let count = slots[table as usize] / CHUNK_SLOTS * 2;
        let Some(first) = self.directory(table).reserve(count) else {
            tracing::warn!(table = table.label(), "no room for a larger flow table");
            return None;
        };
        Some(Growth::Making(Table {
            table,
            word: TableWord::new(first, count),
            chunks: Vec::with_capacity(count as usize),
        }))
    }

    /// Makes some more chunks.
    fn make(&mut self, mut new: Table) -> Option<Table> {
        let (first, count) = (new.word.0 as u32, (new.word.0 >> 32) as usize + 1);
        for _ in 0..CHUNKS_PER_SWEEP.min(count - new.chunks.len()) {
            let index = first + new.chunks.len() as u32;
            match self.directory(new.table).install(new.table, index) {
                Ok(chunk) => new.chunks.push(chunk),
                Err(error) => {
                    tracing::error!(%error, table = new.table.label(), "a flow table cannot grow");
                    self.directory(new.table).release(new.word);
                    return None;
                }
            }
        }
        Some(new)
    }

    /// Makes packets use the new table. Returns the old one.
    fn switch(&mut self, new: Table, control: &ControlElement) -> Table {
        let (table, word) = (new.table, new.word);
        let old = std::mem::replace(&mut self.tables[table as usize], new);
        // In this order a packet finds the old table as the first, as both, or as the second.
        control.set_previous(table, old.word.0);
        control.set_table(table, word.0);
        old
    }

    /// Carries over what is left in the old table and forgets it.
    fn move_out(
        &mut self,
        old: &Table,
        control: &ControlElement,
        now: u32,
        spill: impl FnMut(Homeless),
    ) {
        // After this no packet makes a flow in the old table any more.
        wait_for_all_readers();
        // Those without room are spilled before the program stops looking for them in the old table.
        self.carry_over(old, control, now)
            .into_iter()
            .for_each(spill);
        control.set_previous(old.table, 0);
        wait_for_all_readers();
        self.directory(old.table).release(old.word);
        let slots = self.slots()[old.table as usize];
        tracing::info!(table = old.table.label(), slots, "flow table has grown");
    }

    /// Puts a flow back that was spilled before its table grew. Says whether it found room.
    pub fn bring_home(&self, flow: Homeless, is_udp: bool, secret: [u64; 2], now: u32) -> bool {
        let table = FlowTable::promoted(flow.is_wide(), is_udp);
        flow.value().is_free(now) || self.put(table, flow, secret, now)
    }

    /// Puts a flow into a table, unless it is there. Says whether it is there now: its bucket may be full.
    pub fn put(&self, table: FlowTable, flow: Homeless, secret: [u64; 2], now: u32) -> bool {
        match flow {
            Homeless::Narrow(key, value) => self.insert(table, secret, key.0, None, value, now),
            Homeless::Wide(key, value) => {
                let print = key.fingerprint(secret);
                self.insert(table, secret, print, Some(key), value, now)
            }
        }
    }

    /// Puts a flow into its bucket, unless it is there. Says whether it is there now.
    fn insert(
        &self,
        table: FlowTable,
        secret: [u64; 2],
        key: u64,
        wide: Option<WideKey>,
        value: FlowValue,
        now: u32,
    ) -> bool {
        let place = &self.tables[table as usize];
        let hash = match wide {
            Some(_) => lb_common::wide::hash(key),
            None => flow::hash(secret, FlowKey(key)),
        };
        let (index, bucket) = match table.is_half_open() {
            // All of it is one chunk.
            true => (0, flow::half_open_bucket(hash)),
            false => {
                let index = place.word.chunk(hash) - place.word.0 as u32;
                (index, flow::bucket(hash))
            }
        };
        let chunk = &place.chunks[index as usize];
        insert(chunk, bucket as usize, key, wide, value, now)
    }

    /// Moves every flow that the program has not moved itself.
    fn carry_over(&self, old: &Table, control: &ControlElement, now: u32) -> Vec<Homeless> {
        let mut homeless = Vec::new();
        let secret = control.load().hash_secret;
        old.walk(|chunk, bucket, way| {
            let value_word = chunk.value(bucket, way);
            let value = FlowValue(value_word.load(Ordering::Acquire));
            if value.0 == 0 || value.is_busy() || value.is_free(now) {
                return;
            }
            let key = chunk.key(bucket, way).load(Ordering::Acquire);
            let wide = chunk.wide_key(bucket, way);
            if self.insert(old.table, secret, key, wide, value, now) {
                let gone = FlowValue::new(value.backend(), now, false);
                let _ = value_word.compare_exchange(
                    value.0,
                    gone.0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
            } else {
                homeless.push(match wide {
                    Some(key) => Homeless::Wide(key, value),
                    None => Homeless::Narrow(FlowKey(key), value),
                });
            }
        });
        homeless
    }

    fn directory(&mut self, table: FlowTable) -> &mut super::Directory {
        if table.is_wide() {
            &mut self.wide
        } else {
            &mut self.narrow
        }
    }
}

/// Whether all chunks of a table are there.
fn is_whole(table: &Table) -> bool {
    table.chunks.len() > (table.word.0 >> 32) as usize
}

/// Puts a flow into a bucket as the program does, unless it is there. Says whether it is there now.
fn insert(
    chunk: &Chunk,
    bucket: usize,
    key: u64,
    wide: Option<WideKey>,
    value: FlowValue,
    now: u32,
) -> bool {
    let is_there = (0..BUCKET_WAYS).any(|way| {
        let value = FlowValue(chunk.value(bucket, way).load(Ordering::Acquire));
        chunk.key(bucket, way).load(Ordering::Acquire) == key
            && chunk.wide_key(bucket, way) == wide
            && !value.is_free(now)
    });
    if is_there {
        return true;
    }
    for way in 0..BUCKET_WAYS {
        let word = chunk.value(bucket, way);
        let old = FlowValue(word.load(Ordering::Acquire));
        let busy = FlowValue::busy(now);
        let claimed = old.is_free(now)
            && word
                .compare_exchange(old.0, busy.0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if !claimed {
            continue;
        }
        chunk.key(bucket, way).store(0, Ordering::Release);
        if let Some(wide) = wide {
            chunk
                .beside(bucket, way, 0)
                .store(wide.client.0[0], Ordering::Release);
            chunk
                .beside(bucket, way, 1)
                .store(wide.client.0[1], Ordering::Release);
            chunk
                .beside(bucket, way, 2)
                .store(wide.rest, Ordering::Release);
        }
        chunk.key(bucket, way).store(key, Ordering::Release);
        word.store(value.0, Ordering::Release);
        return true;
    }
    false
}
