//! `lc` and `wlc`: the backend with the fewest connections, an established one counting as much as
//! 256 others, as in IPVS.

use lb_common::{Reason, limits::MAX_COMPARED, service::ServiceDetail};

use super::{connections, ring, takes_connections};
use crate::{
    answer,
    maps::{DETAILS, LOADS},
};

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
        if takes_connections(u32::from(backend)) != 0 {
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
    let mut best_load: u64 = 0;
    let mut best_weight: u64 = 1;
    for index in 0..MAX_COMPARED {
        if index >= detail.ring_len {
            break;
        }
        let backend = ring::at(detail, u64::from(index))?;
        if takes_connections(u32::from(backend)) == 0 {
            continue;
        }
        let load = LOADS.get(u32::from(backend)).ok_or(Reason::NotReady)?;
        let (active, inactive) = connections(load);
        let connections = (active << 8).wrapping_add(inactive);
        let weight = if weighted { u64::from(load.weight) } else { 1 };
        // Which is less, connections / weight? Without a division.
        if best == 0 || best_load.wrapping_mul(weight) > connections.wrapping_mul(best_weight) {
            best = backend;
            best_load = connections;
            best_weight = weight;
        }
    }
    match best {
        0 => Err(Reason::NoBackend),
        backend => Ok(backend),
    }
}
