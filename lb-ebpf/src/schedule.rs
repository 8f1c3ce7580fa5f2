//! Weighted round robin: a walk over the service's ring with one cursor that all CPUs share, so
//! that shares are exact and not only exact per CPU.

use lb_common::{BackendFlags, Reason, Service, limits::RING_CHUNK_SLOTS};

use crate::{
    atomic, forward,
    maps::{CURSORS, RINGS},
};

/// How many ring slots are tried when a backend died between two writes of the daemon.
const ATTEMPTS: u32 = 4;

/// The backend for a new connection.
#[inline(always)]
pub fn next(service: &Service) -> Result<u16, Reason> {
    let cursor = CURSORS
        .get_ptr_mut(u32::from(service.id))
        .ok_or(Reason::NotReady)?;
    for _ in 0..ATTEMPTS {
        // SAFETY: `cursor` points to a live array element; all accesses to it are atomic adds.
        let turn = unsafe { atomic::fetch_add(&raw mut (*cursor).next, 1) };
        let backend = at(service, turn)?;
        if forward::element(backend)?.flags() & BackendFlags::ALIVE != 0 {
            return Ok(backend);
        }
    }
    Err(Reason::NoBackend)
}

/// The backend at a ring position taken from the packet's hash. For segments that belong to no
/// known flow and must not move the cursor.
#[inline(always)]
pub fn by_hash(service: &Service, hash: u64) -> Result<u16, Reason> {
    at(service, hash >> 32)
}

#[inline(always)]
fn at(service: &Service, turn: u64) -> Result<u16, Reason> {
    if service.ring_len == 0 {
        return Err(Reason::NoBackend);
    }
    let slot = service.ring_first + (turn % u64::from(service.ring_len)) as u32;
    let chunk = RINGS.get(slot / RING_CHUNK_SLOTS).ok_or(Reason::NotReady)?;
    Ok(chunk.slots[(slot % RING_CHUNK_SLOTS) as usize])
}
