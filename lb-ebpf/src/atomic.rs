//! 64-bit atomics with results (`-C target-cpu=v3`). The prebuilt `core` for BPF has no
//! `AtomicU64::compare_exchange`; the intrinsics compile to `cmpxchg_64` and `atomic_fetch_add`.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Stores `new` if the word is `old`; says whether it did.
///
/// # Safety
/// `word` is valid for reads and writes and aligned to eight bytes.
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
            .1
    }
}

/// Adds and returns the value before.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, amount) }
}
