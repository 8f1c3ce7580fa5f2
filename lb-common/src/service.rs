//! The service table: from address, protocol and port to a service, in one cache line.
//!
//! User space lays out one generation at a time and never changes the live one. Beside each service
//! stand two entries that answer cheaper questions: the address alone (is it a VIP?), and address
//! and protocol without a port, which leads to the ranges of ports.

use core::mem::size_of;

use crate::{
    control::Rate,
    limits::{SERVICE_BUCKETS, SERVICE_PROBES, SERVICE_WAYS},
};

/// Address, port and protocol in one word. 0 is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey(pub u64);

impl ServiceKey {
    /// A service of an IPv4 address. Address and port in network byte order; port 0 stands for the
    /// ranges of ports, and protocol 0 with port 0 for the address alone.
    #[inline(always)]
    pub const fn v4(address_be: u32, port_be: u16, protocol: u8) -> Self {
        Self((address_be as u64) << 32 | (port_be as u64) << 16 | (protocol as u64) << 8)
    }

    /// A service of the IPv6 address with this [`VipBucket`] handle.
    #[inline(always)]
    pub const fn v6(handle: u32, port_be: u16, protocol: u8) -> Self {
        Self((handle as u64) << 32 | (port_be as u64) << 16 | (protocol as u64) << 8 | 1)
    }

    /// First bucket to look in.
    #[inline(always)]
    pub const fn bucket(self, seed: u64, mask: u32) -> u32 {
        // The last bytes of addresses and ports come to the front: multiplication carries differences upwards only.
        let front = (self.0 ^ seed).swap_bytes();
        (front.wrapping_mul(MULTIPLIER) >> (64 - SERVICE_BUCKETS.ilog2())) as u32 & mask
    }
}

/// What the program knows of a service at first sight, in one word: id in bits 0-15, role in 16-29,
/// [`ServiceFlags`] in 32-47; for ranges of ports their number in 48-63 and the first in 0-29. Bit 30 is set for everything but
/// a service of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceInfo(pub u64);

/// Bits of [`ServiceInfo::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// Flows are keyed by the destination port too: the service has several.
    pub const WIDE: u16 = 1;
    /// Connections of each backend are counted as they come: `lc`, `wlc` and thresholds need it.
    pub const COUNTED: u16 = 2;
    /// The entry only says that the address is a VIP.
    pub const VIP: u16 = 4;
    /// The entry leads to ranges of ports.
    pub const RANGES: u16 = 8;
    /// The protocol is SCTP.
    pub const SCTP: u16 = 16;
}

impl ServiceInfo {
    const SPECIAL: u64 = 1 << 30;

    /// A service, or with [`ServiceFlags::VIP`] none.
    pub const fn new(id: u16, role: u16, flags: u16) -> Self {
        let special = if flags & (ServiceFlags::WIDE | ServiceFlags::VIP) == 0 {
            0
        } else {
            Self::SPECIAL
        };
        Self(special | (flags as u64) << 32 | (role as u64) << 16 | id as u64)
    }

    /// Whether it is anything but a service of one port.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.0 & Self::SPECIAL != 0
    }

    /// `count` ranges of ports from `first` on.
    pub const fn ranges(first: u32, count: u16) -> Self {
        let flags = (ServiceFlags::RANGES as u64) << 32 | Self::SPECIAL;
        Self((count as u64) << 48 | flags | first as u64)
    }

    /// Service id: part of the flow key. Never 0.
    #[inline(always)]
    pub const fn id(self) -> u16 {
        self.0 as u16
    }

    /// Index into [`Control::roles`](crate::Control).
    #[inline(always)]
    pub const fn role(self) -> u16 {
        (self.0 >> 16) as u16 & 0x3fff
    }

    /// See [`ServiceFlags`].
    #[inline(always)]
    pub const fn flags(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// First range of ports.
    #[inline(always)]
    pub const fn first_range(self) -> u32 {
        self.0 as u32 & 0x3fff_ffff
    }

    /// Number of ranges of ports.
    #[inline(always)]
    pub const fn range_count(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// One cache line of services, filled from the front.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceBucket {
    /// Entries; key 0 ends them.
    pub entries: [ServiceEntry; SERVICE_WAYS],
}

/// One service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// See [`ServiceKey`].
    pub key: u64,
    /// See [`ServiceInfo`].
    pub info: u64,
}

/// One cache line of IPv6 addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipBucket {
    /// The addresses, in the byte order of the wire.
    pub addresses: [[u64; 2]; 2],
    /// What stands for each in service keys; 0 ends them.
    pub handles: [u32; 2],
    /// Pads to a cache line.
    pub reserved: [u64; 3],
}

/// First bucket to look for an IPv6 address in.
#[inline(always)]
pub const fn vip_bucket(address: [u64; 2], seed: u64, mask: u32) -> u32 {
    scattered(address[0].rotate_left(29) ^ address[1] ^ seed) & mask
}

/// Multiplication only carries differences upwards: the upper half, where the last bytes of
/// addresses stand, is folded into the lower one before.
#[inline(always)]
const fn scattered(word: u64) -> u32 {
    ((word ^ word >> 32).wrapping_mul(MULTIPLIER) >> 40) as u32
}

/// The golden ratio of 2^64, odd.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A service of ports `first` to `last`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// See [`ServiceInfo`].
    pub info: u64,
    /// First port, as a number.
    pub first: u16,
    /// Last port, as a number.
    pub last: u16,
    /// Always 0.
    pub reserved: u32,
}

/// What only new connections need, one per service id and generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceDetail {
    /// First slot of the service's ring, counted over all chunks.
    pub ring_first: u32,
    /// Slots of the ring; 0 when there is nobody to send to.
    pub ring_len: u32,
    /// See [`Method`].
    pub method: u32,
    /// Index into [`Control::roles`](crate::Control).
    pub role: u32,
    /// Persistence: how many bits of the client's address (counted as IPv6) choose its real server.
    pub sticky_bits: u32,
    /// How long a client sticks to its real server, in ticks; 0 turns persistence off.
    pub sticky_ticks: u32,
    /// Limit of new connections.
    pub rate: Rate,
    /// Where connections are counted: first slot of a list that names every backend of the ring once,
    /// for when the ring's next ones are over their thresholds.
    pub members_first: u32,
    /// Length of that list, up to [`MAX_COMPARED`](crate::limits::MAX_COMPARED) of which are tried.
    pub members_len: u32,
    /// Always 0.
    pub reserved: [u64; 2],
}

/// How a real server is chosen: the low byte, with options above.
pub struct Method;

impl Method {
    /// Round the ring, weighted or not.
    pub const RING: u32 = 0;
    /// `lc`: fewest connections.
    pub const LEAST: u32 = 1;
    /// `wlc`: fewest connections for the weight.
    pub const WEIGHTED_LEAST: u32 = 2;
    /// `sh`: the ring is indexed by [`source_bucket`](crate::hashing::source_bucket).
    pub const SOURCE: u32 = 3;
    /// `mh`: the ring is indexed by [`maglev`](crate::hashing::maglev).
    pub const MAGLEV: u32 = 4;
    /// `fo`: the first of the ring that takes connections.
    pub const FIRST: u32 = 5;
    /// Mask of the above.
    pub const KIND: u32 = 0xff;
    /// `sh-port`, `mh-port`: the client's port counts too.
    pub const PORT: u32 = 0x100;
    /// `sh-fallback`, `mh-fallback`: another real server when the chosen one takes nobody.
    pub const FALLBACK: u32 = 0x200;
}

const _: () = {
    assert!(size_of::<ServiceBucket>() == 64);
    assert!(size_of::<VipBucket>() == 64);
    assert!(size_of::<PortRange>() == 16);
    assert!(size_of::<ServiceDetail>() == 64);
    assert!(SERVICE_PROBES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_keeps_its_parts() {
        let info = ServiceInfo::new(0xabcd, 0x3ff, ServiceFlags::WIDE | ServiceFlags::COUNTED);
        assert_eq!((info.id(), info.role(), info.flags()), (0xabcd, 0x3ff, 3));
        let ranges = ServiceInfo::ranges(70_000, 32);
        assert_eq!((ranges.first_range(), ranges.range_count()), (70_000, 32));
        assert_eq!(ranges.flags(), ServiceFlags::RANGES);
        assert!(info.is_special() && ranges.is_special());
        assert!(ServiceInfo::new(0, 0, ServiceFlags::VIP).is_special());
        let single = ServiceInfo::new(u16::MAX, 0x3ff, ServiceFlags::COUNTED | ServiceFlags::SCTP);
        assert!(!single.is_special());
    }

    #[test]
    fn families_do_not_collide() {
        let v4 = ServiceKey::v4(1, 80, 6);
        let v6 = ServiceKey::v6(1, 80, 6);
        assert_ne!(v4, v6);
        assert_ne!(v4, ServiceKey::v4(1, 80, 17));
        assert_ne!(v4, ServiceKey::v4(1, 0, 6));
    }
}
