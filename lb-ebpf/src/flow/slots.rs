//! The slots of a bucket, shared by all CPUs without a lock.
//!
//! A writer claims a slot by swapping its value for BUSY, writes the key, then the value. A reader
//! takes key, value and the key again: only with both halves of that protocol can no reader see one
//! flow's key with another's backend. Memory order is that of x86-64.

use lb_common::{
    flow::{self, Bucket, FlowValue, Slot},
    limits::BUCKET_WAYS,
};

use super::key::Key;
use crate::atomic;

/// Where a flow was found, and its value then.
pub struct Found {
    slot: *mut Slot,
    pub value: FlowValue,
}

/// The slot of a flow, expired or not.
#[inline(always)]
pub fn find<K: Key>(key: &K, bucket: *mut Bucket) -> Option<Found> {
    for way in 0..BUCKET_WAYS {
        let slot = slot_at(bucket, way);
        if read_key(slot) == key.word() {
            let value = read_value(slot);
            if !value.is_busy() && key.is_at(bucket, way) && read_key(slot) == key.word() {
                return Some(Found { slot, value });
            }
        }
    }
    None
}

/// The slot of a flow to which there is nothing special; it may be that of another flow with the same word.
#[inline(always)]
pub fn find_lasting<K: Key>(key: &K, bucket: *mut Bucket) -> Option<Found> {
    for way in 0..BUCKET_WAYS {
        let slot = slot_at(bucket, way);
        if read_key(slot) == key.word() {
            let value = read_value(slot);
            let lasts = !value.is_special() && key.is_at(bucket, way);
            return (lasts && read_key(slot) == key.word()).then_some(Found { slot, value });
        }
    }
    None
}

/// Takes the first free slot of the bucket. A lost race counts as a full bucket.
#[inline(always)]
pub fn insert<K: Key>(key: &K, bucket: *mut Bucket, flow: FlowValue, now: u32) -> bool {
    for way in 0..BUCKET_WAYS {
        let value = read_value(slot_at(bucket, way));
        if value.is_free(now) {
            return claim(key, bucket, way, value, flow, now);
        }
    }
    false
}

/// Takes a free slot, or any.
#[inline(always)]
pub fn insert_evicting<K: Key>(
    key: &K,
    bucket: *mut Bucket,
    value: FlowValue,
    now: u32,
    hash: u64,
) {
    if !insert(key, bucket, value, now) {
        let victim = flow::victim(hash);
        let old = read_value(slot_at(bucket, victim));
        if !old.is_busy() {
            claim(key, bucket, victim, old, value, now);
        }
    }
}

#[inline(always)]
pub fn is_full(bucket: *mut Bucket, now: u32) -> bool {
    (0..BUCKET_WAYS).all(|way| !read_value(slot_at(bucket, way)).is_free(now))
}

/// Swaps the value of a place unless it has changed.
#[inline(always)]
pub fn replace(place: &Found, new: FlowValue) -> bool {
    swap(place.slot, place.value, new)
}

#[inline(always)]
fn slot_at(bucket: *mut Bucket, way: usize) -> *mut Slot {
    // SAFETY: callers pass a map element and a way below BUCKET_WAYS; nothing is read here.
    unsafe { &raw mut (*bucket).slots[way & (BUCKET_WAYS - 1)] }
}

/// A load that the compiler neither merges nor moves.
#[inline(always)]
fn read_key(slot: *mut Slot) -> u64 {
    // SAFETY: `slot` lies in a map element, which stays mapped while the program runs.
    unsafe { (&raw const (*slot).key).read_volatile() }
}

/// As [`read_key`].
#[inline(always)]
fn read_value(slot: *mut Slot) -> FlowValue {
    // SAFETY: as above.
    FlowValue(unsafe { (&raw const (*slot).value).read_volatile() })
}

#[inline(always)]
fn swap(slot: *mut Slot, old: FlowValue, new: FlowValue) -> bool {
    // SAFETY: `slot` lies in a map element and is eight-byte aligned.
    unsafe { atomic::compare_exchange(&raw mut (*slot).value, old.0, new.0) }
}

/// Takes over a slot for another flow: BUSY, key, value.
#[inline(always)]
fn claim<K: Key>(
    key: &K,
    bucket: *mut Bucket,
    way: usize,
    old: FlowValue,
    flow: FlowValue,
    now: u32,
) -> bool {
    let slot = slot_at(bucket, way);
    if !swap(slot, old, FlowValue::busy(now)) {
        return false;
    }
    // SAFETY: the slot lies in a map element, and BUSY makes this CPU its only writer. The old key
    // goes first: no reader may match the new one before all of it is there.
    unsafe {
        (&raw mut (*slot).key).write_volatile(0);
        key.write_beside(bucket, way);
        (&raw mut (*slot).key).write_volatile(key.word());
        (&raw mut (*slot).value).write_volatile(flow.0);
    }
    true
}
