//! The slow path: packets that the XDP program leaves to the kernel's IPVS, and its decision with them.
//!
//! The program writes the backend's id in front of the packet (XDP metadata). A classifier behind it gives the packet
//! the firewall mark of that backend, and IPVS has a service of that mark whose only real server it is.

use core::mem::size_of;

/// The upper half of a mark of the slow path: the letters `ls`. The lower half says which service of IPVS is meant; user
/// space gives each a number that it has not used for long.
pub const MARK: u32 = 0x6c73_0000;

/// The bits of a mark that must be [`MARK`]'s.
pub const MARK_MASK: u32 = 0xffff_0000;

/// Begins a [`Note`]: the letters `lbslow`, in three words as loaded.
pub const MAGIC: [u16; 3] = [
    u16::from_ne_bytes(*b"lb"),
    u16::from_ne_bytes(*b"sl"),
    u16::from_ne_bytes(*b"ow"),
];

/// What stands in front of a packet. In words of two bytes, because frames are aligned to no more. The kernel takes
/// multiples of four bytes, up to 32.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// [`MAGIC`]: another program's metadata is something else.
    pub magic: [u16; 3],
    /// Id of the backend that the packet is for.
    pub backend: u16,
}

/// A backend's way through IPVS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowWay {
    /// Packets that were given its mark.
    pub packets: u64,
    /// Its mark; 0 where IPVS has no service for it, and packets pass as they are.
    pub mark: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<Note>() == 8);
    assert!(size_of::<SlowWay>() == 16);
    assert!(MARK & !MARK_MASK == 0 && MARK != crate::probe::MARK);
};
