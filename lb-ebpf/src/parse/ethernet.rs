//! Ethernet II with none, one or two VLAN tags (IEEE 802.1Q and 802.1ad).

use lb_common::{Backend, Control, Reason, control};

use crate::{answer, packet::Packet};

/// Ethernet header, in the three words per address that two-byte alignment allows.
#[repr(C)]
pub struct Ethernet {
    pub destination: [u16; 3],
    pub source: [u16; 3],
    pub ethertype_be: u16,
}

/// What a tag adds behind its type field.
#[repr(C)]
pub struct Tag {
    pub control_be: u16,
    pub ethertype_be: u16,
}

/// Length of the header without tags.
pub const LENGTH: usize = 14;
/// Length of one tag.
pub const TAG_LENGTH: usize = 4;

pub const IPV4_BE: u16 = 0x0800_u16.to_be();
pub const IPV6_BE: u16 = 0x86dd_u16.to_be();
pub const CUSTOMER_TAG_BE: u16 = 0x8100_u16.to_be();
pub const SERVICE_TAG_BE: u16 = 0x88a8_u16.to_be();
const VLAN_ID: u16 = 0x0fff;

/// What later steps need of the header.
pub struct Link {
    /// Whom the frame was sent to.
    pub addressee: Addressee,
    /// Type of what lies inside.
    pub ethertype_be: u16,
    /// Tags: 0 to 2.
    pub tags: usize,
    /// VLAN id of the outer tag as [`Backend::vlan`] has it.
    pub outer: u16,
    /// VLAN id of the inner tag, likewise.
    pub inner: u16,
}

/// Whom a frame was sent to at Ethernet level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// This host.
    Us,
    /// Another host: a switch floods.
    Other,
    /// A group, or everybody.
    Group,
}

impl Link {
    /// Where the network header starts.
    #[inline(always)]
    pub fn network_offset(&self) -> usize {
        LENGTH + self.tags * TAG_LENGTH
    }
}

/// Reads the header. A tag of VLAN 0 carries only a priority: the frame belongs to no VLAN.
#[inline(always)]
pub fn parse(packet: &Packet<'_>, control: &Control) -> Result<Link, Reason> {
    let header = packet.header::<Ethernet>(0)?;
    // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
    let header = unsafe { &*header };
    let mut link = Link {
        addressee: addressee(packet, control, header.destination),
        ethertype_be: header.ethertype_be,
        tags: 0,
        outer: 0,
        inner: 0,
    };
    if is_tag(link.ethertype_be) {
        let tag = packet.header::<Tag>(LENGTH)?;
        // SAFETY: as above.
        let tag = unsafe { &*tag };
        link.tags = 1;
        link.outer = vlan(tag.control_be);
        link.ethertype_be = tag.ethertype_be;
        if is_tag(link.ethertype_be) {
            let tag = packet.header::<Tag>(LENGTH + TAG_LENGTH)?;
            // SAFETY: as above.
            let tag = unsafe { &*tag };
            link.tags = 2;
            link.inner = vlan(tag.control_be);
            link.ethertype_be = tag.ethertype_be;
        }
    }
    Ok(link)
}

/// Whether a frame was sent to the address in bytes 0-5 of a word.
#[inline(always)]
pub fn is_to(header: &Ethernet, address: u64) -> bool {
    // SAFETY: the header is longer than a word.
    let word = unsafe { (&raw const *header).cast::<u64>().read_unaligned() };
    answer::low_six_bytes_differ(word, address) == 0
}

/// Whom a frame was sent to.
#[inline(always)]
pub fn addressee(packet: &Packet<'_>, control: &Control, destination: [u16; 3]) -> Addressee {
    /// The lowest bit of the first byte: a group address, broadcast included.
    const GROUP: u16 = u16::from_ne_bytes([1, 0]);
    let word = control::mac_word(destination, packet.ingress_ifindex());
    let slot = control::mac_slot(word, control.mac_multiplier);
    if control.macs[slot] == word {
        Addressee::Us
    } else if destination[0] & GROUP != 0 {
        Addressee::Group
    } else if control.mac_multiplier == 0 {
        Addressee::Us
    } else {
        Addressee::Other
    }
}

#[inline(always)]
fn is_tag(ethertype_be: u16) -> bool {
    ethertype_be == CUSTOMER_TAG_BE || ethertype_be == SERVICE_TAG_BE
}

#[inline(always)]
fn vlan(control_be: u16) -> u16 {
    match u16::from_be(control_be) & VLAN_ID {
        0 => 0,
        id => Backend::TAGGED | id,
    }
}
