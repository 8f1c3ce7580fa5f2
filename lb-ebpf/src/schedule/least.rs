//! `lc` and `wlc`: the backend with the fewest connections, an established one counting as much as
//! 256 others, as in IPVS.

use lb_common::{Reason, limits::MAX_COMPARED, service::ServiceDetail};

use super::{ring, standing};
use crate::{answer, maps::DETAILS};

/// The backend for a new connection. The ring names every backend once. `detail` is an index.
#[inline(always)]
pub fn choose(detail: u32, weighted: bool) -> Result<u16, Reason> {
    answer::decode(choose_least(detail, u32::from(weighted))).map(|backend| backend as u16)
}

/// Any backend that takes connections, where they are counted. `detail` is an index.
#[inline(always)]
pub fn any(detail: u32) -> Result<u16, Reason> {
    answer::decode(choose_any(detail)).map(|backend| backend as u16)
}

/// Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_any(detail: u32) -> i64 {
    let chosen = DETAILS
        .get(detail)
        .ok_or(Reason::NotReady)
        .and_then(first_available);
    answer::encode(chosen.map(u64::from))
}

#[inline(always)]
fn first_available(detail: &ServiceDetail) -> Result<u16, Reason> {
    for index in 0..MAX_COMPARED {
        if index >= detail.members_len {
            break;
        }
        let backend = ring::slot(detail.members_first + index)?;
        if standing(u32::from(backend)) != 0 {
            return Ok(backend);
        }
    }
    Err(Reason::NoBackend)
}

/// Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_least(detail: u32, weighted: u32) -> i64 {
    let chosen = DETAILS
        .get(detail)
        .ok_or(Reason::NotReady)
        .and_then(|detail| compare(detail, weighted != 0));
    answer::encode(chosen.map(u64::from))
}

#[inline(always)]
fn compare(detail: &ServiceDetail, weighted: bool) -> Result<u16, Reason> {
    let mut best = 0;
    let mut best_standing = 0;
    for index in 0..MAX_COMPARED {
        if index >= detail.ring_len {
            break;
        }
        let backend = ring::at(detail, u64::from(index))?;
        let mut standing = standing(u32::from(backend)) as u64;
        if standing == 0 {
            continue;
        }
        if !weighted {
            standing |= 0xffff;
        }
        if best == 0 || is_less(standing, best_standing) {
            best = backend;
            best_standing = standing;
        }
    }
    match best {
        0 => Err(Reason::NoBackend),
        backend => Ok(backend),
    }
}

/// Which has fewer connections for its weight? Without a division.
#[inline(always)]
const fn is_less(one: u64, other: u64) -> bool {
    (one >> 16).wrapping_mul(other & 0xffff) < (other >> 16).wrapping_mul(one & 0xffff)
}
