//! `sh` and `mh`: the client's address chooses the place in a table that user space has filled as
//! the kernel's IPVS would.

use lb_common::{
    Reason,
    hashing::{self, MAGLEV_OFFSET_KEY},
    service::{Method, ServiceDetail},
};

use super::{Newcomer, is_available, ring};
use crate::{answer, maps::DETAILS};

/// How many other places the fallback tries. The kernel tries as many as its table has; after this
/// many, all but a thousandth of the table would have to be unavailable for that to matter.
const ATTEMPTS: u32 = 64;

/// The backend for a new connection. `index` is that of `detail`.
#[inline(always)]
pub fn choose(
    index: u32,
    detail: &ServiceDetail,
    newcomer: &Newcomer<'_>,
    counted: bool,
) -> Result<u16, Reason> {
    let port = match detail.method & Method::PORT {
        0 => 0,
        _ => u16::from_be(newcomer.arrival.client_port_be),
    };
    let subject = hashing::subject(newcomer.arrival.client, port);
    answer::decode(choose_hashed(index, subject, u32::from(counted))).map(|backend| backend as u16)
}

/// Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_hashed(index: u32, subject: u32, counted: u32) -> i64 {
    let chosen = DETAILS
        .get(index)
        .ok_or(Reason::NotReady)
        .and_then(|detail| try_places(detail, subject, counted != 0));
    answer::encode(chosen.map(u64::from))
}

#[inline(always)]
fn try_places(detail: &ServiceDetail, subject: u32, counted: bool) -> Result<u16, Reason> {
    let first = place(detail, subject);
    let backend = ring::at(detail, u64::from(first))?;
    if backend != 0 && is_available(backend, counted) {
        return Ok(backend);
    }
    if detail.method & Method::FALLBACK == 0 {
        return Err(Reason::NoBackend);
    }
    for offset in 0..ATTEMPTS {
        let again = (first + offset) % detail.ring_len.max(1);
        let backend = ring::at(detail, u64::from(other_place(detail, subject, again)))?;
        if backend != 0 && is_available(backend, counted) {
            return Ok(backend);
        }
    }
    Err(Reason::NoBackend)
}

#[inline(always)]
fn place(detail: &ServiceDetail, subject: u32) -> u32 {
    if detail.method & Method::KIND == Method::SOURCE {
        hashing::source_bucket(subject)
    } else {
        hashing::maglev(subject, MAGLEV_OFFSET_KEY) % detail.ring_len.max(1)
    }
}

/// `sh` adds the offset to the hash, `mh` to what is hashed.
#[inline(always)]
fn other_place(detail: &ServiceDetail, subject: u32, offset: u32) -> u32 {
    if detail.method & Method::KIND == Method::SOURCE {
        place(detail, subject).wrapping_add(offset)
    } else {
        place(detail, subject.wrapping_add(offset))
    }
}
