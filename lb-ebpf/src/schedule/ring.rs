//! Round robin, weighted or not: a walk over the service's ring with one cursor that all CPUs
//! share, so that shares are exact and not only exact per CPU.

use lb_common::{Reason, limits::RING_CHUNK_SLOTS, service::ServiceDetail, table::Cursor};

use super::{is_available, least};
use crate::{atomic, maps::RINGS};

/// How many ring slots are tried when a backend died between two writes of the daemon, or reached
/// its threshold. After that the list of all of them decides.
const ATTEMPTS: u32 = 16;

/// The backend for a new connection.
#[inline(always)]
pub fn next(
    index: u32,
    detail: &ServiceDetail,
    cursor: *mut Cursor,
    counted: bool,
) -> Result<u16, Reason> {
    for _ in 0..ATTEMPTS {
        // SAFETY: `cursor` points to a live array element; all accesses to it are atomic adds.
        let turn = unsafe { atomic::fetch_add(&raw mut (*cursor).next, 1) };
        let backend = at(detail, turn)?;
        if is_available(backend, counted) {
            return Ok(backend);
        }
    }
    least::any(index)
}

/// The first backend of the ring that takes connections; behind the first of them any that does.
#[inline(always)]
pub fn first(index: u32, detail: &ServiceDetail, counted: bool) -> Result<u16, Reason> {
    for turn in 0..ATTEMPTS.min(detail.ring_len) {
        let backend = at(detail, u64::from(turn))?;
        if is_available(backend, counted) {
            return Ok(backend);
        }
    }
    least::any(index)
}

/// The backend at a ring position taken from the packet's hash. For segments that belong to no
/// known flow and must not move the cursor.
#[inline(always)]
pub fn by_hash(detail: &ServiceDetail, hash: u64) -> Result<u16, Reason> {
    at(detail, hash >> 32)
}

/// The backend of turn `turn`.
#[inline(always)]
pub fn at(detail: &ServiceDetail, turn: u64) -> Result<u16, Reason> {
    if detail.ring_len == 0 {
        return Err(Reason::NoBackend);
    }
    slot(detail.ring_first + (turn % u64::from(detail.ring_len)) as u32)
}

/// The backend in a slot, counted over all chunks.
#[inline(always)]
pub fn slot(slot: u32) -> Result<u16, Reason> {
    let chunk = RINGS.get(slot / RING_CHUNK_SLOTS).ok_or(Reason::NotReady)?;
    Ok(chunk.slots[(slot % RING_CHUNK_SLOTS) as usize])
}
