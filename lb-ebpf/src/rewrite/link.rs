//! The link-layer header: addresses and VLAN tags.

use lb_common::{Backend, Reason};

use super::Job;
use crate::{
    packet::Packet,
    parse::ethernet::{CUSTOMER_TAG_BE, Ethernet, LENGTH, SERVICE_TAG_BE, TAG_LENGTH, Tag},
};

/// A MAC address as two stores.
#[repr(C, packed(2))]
struct Mac {
    first: u32,
    last: u16,
}

impl Mac {
    /// From the low six bytes of a word.
    #[inline(always)]
    fn of(word: u64) -> Self {
        let b = word.to_ne_bytes();
        Self {
            first: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            last: u16::from_ne_bytes([b[4], b[5]]),
        }
    }
}

/// Writes both addresses to a frame whose tags stay.
#[inline(always)]
pub fn readdress(packet: &Packet<'_>, backend: &Backend) -> Result<(), Reason> {
    let ethernet = packet.header::<Ethernet>(0)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe { write(ethernet, backend) };
    Ok(())
}

/// Writes both addresses.
///
/// # Safety
///
/// The header lies in the packet, and nothing else refers to it.
#[inline(always)]
pub unsafe fn write(ethernet: *mut Ethernet, backend: &Backend) {
    // SAFETY: by the caller.
    unsafe {
        let [destination, source] = [
            &raw mut (*ethernet).destination,
            &raw mut (*ethernet).source,
        ];
        destination
            .cast::<Mac>()
            .write(Mac::of(backend.destination));
        source.cast::<Mac>().write(Mac::of(backend.source));
    }
}

/// Gives the frame the addresses and the tags of the backend's VLAN. `growth` bytes between the
/// link-layer header and what follows are made in the same step. The priority of the outer tag is
/// kept. Returns where the network header starts.
#[inline(always)]
pub fn replace(
    packet: &Packet<'_>,
    job: &Job,
    backend: &Backend,
    ethertype_be: u16,
    growth: usize,
) -> Result<usize, Reason> {
    let priority_be = priority(packet, job)?;
    let tags = match (backend.vlan(), backend.inner_vlan) {
        (0, _) => 0,
        (_, 0) => 1,
        _ => 2,
    };
    let length = LENGTH + tags * TAG_LENGTH;
    let difference = job.place.network() as i32 - (length + growth) as i32;
    if difference != 0 {
        packet.move_start(difference)?;
    }
    readdress(packet, backend)?;
    if tags == 0 {
        write_type(packet, LENGTH, ethertype_be)?;
        return Ok(LENGTH);
    }
    if tags == 1 {
        write_type(packet, LENGTH, CUSTOMER_TAG_BE)?;
        write_tag(
            packet,
            LENGTH,
            priority_be | number_be(backend.vlan()),
            ethertype_be,
        )?;
        return Ok(LENGTH + TAG_LENGTH);
    }
    write_type(packet, LENGTH, SERVICE_TAG_BE)?;
    write_tag(
        packet,
        LENGTH,
        priority_be | number_be(backend.vlan()),
        CUSTOMER_TAG_BE,
    )?;
    let inner = number_be(backend.inner_vlan as u16);
    write_tag(
        packet,
        LENGTH + TAG_LENGTH,
        priority_be | inner,
        ethertype_be,
    )?;
    Ok(LENGTH + 2 * TAG_LENGTH)
}

/// The VLAN id of an element's word, as on the wire.
#[inline(always)]
fn number_be(vlan: u16) -> u16 {
    (vlan & 0x0fff).to_be()
}

/// Writes the type field that ends the `length` bytes of a header.
#[inline(always)]
fn write_type(packet: &Packet<'_>, length: usize, ethertype_be: u16) -> Result<(), Reason> {
    let field = packet.header::<u16>(length - 2)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe { *field = ethertype_be };
    Ok(())
}

#[inline(always)]
fn write_tag(
    packet: &Packet<'_>,
    offset: usize,
    control_be: u16,
    ethertype_be: u16,
) -> Result<(), Reason> {
    let tag = packet.header::<Tag>(offset)?;
    // SAFETY: as above.
    unsafe {
        *tag = Tag {
            control_be,
            ethertype_be,
        };
    }
    Ok(())
}

/// Priority and drop eligibility of the outer tag.
#[inline(always)]
fn priority(packet: &Packet<'_>, job: &Job) -> Result<u16, Reason> {
    if job.place.network() == LENGTH {
        return Ok(0);
    }
    let tag = packet.header::<Tag>(LENGTH)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid tag.
    Ok(unsafe { (*tag).control_be } & 0xf000_u16.to_be())
}
