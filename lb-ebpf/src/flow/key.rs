//! The two shapes of flow keys: one word for IPv4 clients of a service of one port, a fingerprint
//! with the whole key beside it for all others.

use lb_common::{
    Control,
    control::TableWord,
    flow::{self, Bucket, FlowKey, FlowTable, FlowValue},
    limits::BUCKET_WAYS,
    wide::{self, WideBucket, WideKey},
};

use crate::maps::{
    FLOWS, HALF_OPEN_TCP, HALF_OPEN_UDP, SPILL, WIDE_FLOWS, WIDE_OPEN_TCP, WIDE_OPEN_UDP,
    WIDE_SPILL,
};

/// A key and the tables that it belongs to.
pub trait Key {
    /// First of this shape's tables in [`FlowTable`].
    const FIRST_TABLE: usize;

    /// What stands in a slot. Never 0.
    fn word(&self) -> u64;

    /// Where the flow lies.
    fn hash(&self, control: &Control) -> u64;

    /// The bucket of a hash in a table of promoted flows.
    fn bucket(table: u64, hash: u64) -> Option<*mut Bucket>;

    /// The bucket of a hash in a half-open table.
    fn half_open(is_udp: bool, hash: u64) -> Option<*mut Bucket>;

    /// Whether a slot that has this key's word has this key.
    fn is_at(&self, bucket: *mut Bucket, way: usize) -> bool;

    /// Writes what does not fit into the slot.
    fn write_beside(&self, bucket: *mut Bucket, way: usize);

    /// The flow in the spill table.
    fn spilled(&self) -> Option<FlowValue>;

    /// Puts the flow into the spill table.
    fn spill(&self, value: FlowValue);
}

impl Key for FlowKey {
    const FIRST_TABLE: usize = FlowTable::Tcp as usize;

    #[inline(always)]
    fn word(&self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn hash(&self, control: &Control) -> u64 {
        flow::hash(control.hash_secret, *self)
    }

    #[inline(always)]
    fn bucket(table: u64, hash: u64) -> Option<*mut Bucket> {
        FLOWS.get_value_ptr_mut(TableWord(table).chunk(hash), &flow::bucket(hash))
    }

    #[inline(always)]
    fn half_open(is_udp: bool, hash: u64) -> Option<*mut Bucket> {
        let index = flow::half_open_bucket(hash);
        if is_udp {
            HALF_OPEN_UDP.get_ptr_mut(index)
        } else {
            HALF_OPEN_TCP.get_ptr_mut(index)
        }
    }

    #[inline(always)]
    fn is_at(&self, _: *mut Bucket, _: usize) -> bool {
        true
    }

    #[inline(always)]
    fn write_beside(&self, _: *mut Bucket, _: usize) {}

    #[inline(always)]
    fn spilled(&self) -> Option<FlowValue> {
        // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
        unsafe { SPILL.get(self.0) }.map(|value| FlowValue(*value))
    }

    #[inline(always)]
    fn spill(&self, value: FlowValue) {
        let _ = SPILL.insert(self.0, value.0, 0);
    }
}

/// A wide key with its fingerprint.
pub struct Fingerprinted {
    key: WideKey,
    fingerprint: u64,
}

impl Fingerprinted {
    #[inline(always)]
    pub fn new(control: &Control, key: WideKey) -> Self {
        Self {
            fingerprint: key.fingerprint(control.hash_secret),
            key,
        }
    }
}

/// The key beside a slot.
#[inline(always)]
fn beside(bucket: *mut Bucket, way: usize) -> *mut WideKey {
    // SAFETY: wide keys only meet buckets that begin a `WideBucket`; nothing is read here.
    unsafe { &raw mut (*bucket.cast::<WideBucket>()).keys[way & (BUCKET_WAYS - 1)] }
}

impl Key for Fingerprinted {
    const FIRST_TABLE: usize = FlowTable::WideTcp as usize;

    #[inline(always)]
    fn word(&self) -> u64 {
        self.fingerprint
    }

    #[inline(always)]
    fn hash(&self, _: &Control) -> u64 {
        wide::hash(self.fingerprint)
    }

    #[inline(always)]
    fn bucket(table: u64, hash: u64) -> Option<*mut Bucket> {
        WIDE_FLOWS
            .get_value_ptr_mut(TableWord(table).chunk(hash), &flow::bucket(hash))
            .map(<*mut WideBucket>::cast)
    }

    #[inline(always)]
    fn half_open(is_udp: bool, hash: u64) -> Option<*mut Bucket> {
        let index = flow::half_open_bucket(hash);
        let bucket = if is_udp {
            WIDE_OPEN_UDP.get_ptr_mut(index)
        } else {
            WIDE_OPEN_TCP.get_ptr_mut(index)
        };
        bucket.map(<*mut WideBucket>::cast)
    }

    #[inline(always)]
    fn is_at(&self, bucket: *mut Bucket, way: usize) -> bool {
        // SAFETY: the key lies in a map element; what a writer leaves half done is told from the
        // slot, which is read again afterwards.
        unsafe { beside(bucket, way).read_volatile() == self.key }
    }

    #[inline(always)]
    fn write_beside(&self, bucket: *mut Bucket, way: usize) {
        // SAFETY: the slot is BUSY, so this CPU is the only writer.
        unsafe { beside(bucket, way).write_volatile(self.key) }
    }

    #[inline(always)]
    fn spilled(&self) -> Option<FlowValue> {
        // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
        unsafe { WIDE_SPILL.get(self.key) }.map(|value| FlowValue(*value))
    }

    #[inline(always)]
    fn spill(&self, value: FlowValue) {
        let _ = WIDE_SPILL.insert(self.key, value.0, 0);
    }
}
