//! Results of functions that the verifier checks on their own ("global" ones, Linux 5.6): they can
//! only give a number back. Without them every path through the program would be walked once for
//! every path before it, and the verifier would give up.

use core::arch::asm;

use lb_common::{Reason, reason::REASON_COUNT};

/// A number of up to 63 bits, or a reason.
#[inline(always)]
pub fn encode(result: Result<u64, Reason>) -> i64 {
    match result {
        Ok(number) => number as i64,
        Err(reason) => -1 - reason as i64,
    }
}

/// The reverse of [`encode`].
#[inline(always)]
pub fn decode(answer: i64) -> Result<u64, Reason> {
    let answer = opaque(answer);
    if answer >= 0 {
        return Ok(answer as u64);
    }
    let number = (-1 - answer) as u32;
    if number >= REASON_COUNT {
        return Err(Reason::NotReady);
    }
    // SAFETY: reasons are numbered from 0 to the last without gaps (a test of `reason`). A match
    // would be a comparison for each of them.
    Err(unsafe { core::mem::transmute::<u32, Reason>(number) })
}

/// The same number, of which the compiler knows nothing. It makes branches of what was written without,
/// and each doubles the verifier's work; it looks into the called function and
/// leaves out the masks that it proves needless; the verifier does not look, and needs them.
#[inline(always)]
pub fn opaque(mut number: i64) -> i64 {
    // SAFETY: one register is moved onto itself. No instruction at all would confuse the line numbers.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// The same reason, of which the compiler knows nothing. What it knows it prepares before the branch, and every packet
/// pays for what only refused ones need.
#[inline(always)]
pub fn late(reason: Reason) -> Reason {
    // SAFETY: the same number.
    unsafe { core::mem::transmute::<u32, Reason>(opaque(reason as i64) as u32) }
}

/// 0 if bytes 0-5 of both words are the same. The compiler would load a mask for it.
#[inline(always)]
pub fn low_six_bytes_differ(one: u64, other: u64) -> u64 {
    let mut difference = one ^ other;
    // SAFETY: one register is shifted.
    unsafe { asm!("{0} <<= 16", inout(reg) difference, options(nomem, nostack, preserves_flags)) };
    difference
}
