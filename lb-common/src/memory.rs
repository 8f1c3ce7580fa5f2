//! Maps that are one piece of memory each: the program looks nothing up in them, because it has their addresses.
//!
//! A compiled program cannot know them. It loads the mark of a map instead, and user space makes each such
//! instruction load the map's address (`BPF_PSEUDO_MAP_VALUE`) before it gives the program to the kernel.
//! A look-up in an array costs eleven to sixteen instructions of x86-64, and this costs one to four.

use core::mem::size_of;

use crate::{
    Backend, Control,
    limits::{GENERATIONS, MAX_BACKENDS, SERVICE_BUCKETS, VIP_BUCKETS},
    service::{ServiceBucket, VipBucket},
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of the map.
    pub name: &'static str,
    /// What the compiled program loads in place of the address: a number that nothing else is.
    pub mark: u64,
    /// Size of what it holds.
    pub bytes: u32,
    /// Size of one element.
    pub element: u32,
}

impl Memory {
    const fn of<T>(name: &'static str, mark: u64, length: u32) -> Self {
        let element = size_of::<T>() as u32;
        assert!(element * length <= LARGEST);
        Self {
            name,
            mark,
            bytes: element * length,
            element,
        }
    }
}

/// The kernel's KMALLOC_MAX_SIZE on x86-64: no element of a map is larger.
const LARGEST: u32 = 4 << 20;

/// [`Control`].
pub const CONTROL: Memory = Memory::of::<Control>("control", 0x4c42_445f_6374_726c, 1);
/// Buckets of services, one generation after the other.
pub const SERVICES: Memory = Memory::of::<ServiceBucket>(
    "services",
    0x4c42_445f_7365_7276,
    SERVICE_BUCKETS * GENERATIONS,
);
/// Buckets of IPv6 addresses of services, likewise.
pub const VIPS: Memory =
    Memory::of::<VipBucket>("vips", 0x4c42_445f_7669_7073, VIP_BUCKETS * GENERATIONS);
/// Elements of backends by id.
pub const BACKENDS: Memory = Memory::of::<Backend>("backends", 0x4c42_445f_626b_6e64, MAX_BACKENDS);

/// All of them.
pub const ALL: [Memory; 4] = [CONTROL, SERVICES, VIPS, BACKENDS];
