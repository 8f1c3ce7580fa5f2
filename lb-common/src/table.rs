//! Keys and values of the BPF maps. Sizes and padding are asserted at compile time: hash keys are
//! compared byte by byte by the kernel, so a padding byte would make look-ups fail at random.

use core::mem::{align_of, size_of};

use crate::limits::RING_CHUNK_SLOTS;

/// Key of the service look-up. Address and port are in network byte order, as on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// VIP, network byte order.
    pub address_be: u32,
    /// Destination port, network byte order.
    pub port_be: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// Generation that the entry belongs to: 0 or 1.
    pub generation: u8,
}

/// A virtual service of one generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Stable over generations: part of the flow key. Never 0.
    pub id: u16,
    /// Index into [`Control::roles`](crate::Control).
    pub role: u16,
    /// First slot of the service's ring, counted over all chunks.
    pub ring_first: u32,
    /// Slots of the ring; 0 when there is nobody to send to.
    pub ring_len: u32,
    /// Always 0.
    pub reserved: u32,
}

/// [`RING_CHUNK_SLOTS`] scheduling slots, each a backend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingChunk {
    /// Backend ids.
    pub slots: [u16; RING_CHUNK_SLOTS as usize],
}

/// The next ring position of a service, alone on its cache line: only new connections touch it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cursor {
    /// Connections scheduled so far.
    pub next: u64,
    /// Keeps two services' cursors from sharing a line.
    pub reserved: [u64; 7],
}

/// The answer for a backend, precomputed by user space. Aligned words, each stored whole, so
/// a reader never sees half of a changed MAC address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Destination MAC in bytes 0-5, [`BackendFlags`] in byte 6, 0 in byte 7.
    pub destination: u64,
    /// Source MAC (of the outgoing interface) in bytes 0-5, 0 in bytes 6-7.
    pub source: u64,
    /// Interface that leads to the backend.
    pub ifindex: u64,
    /// Whose element this is: for dumps, and for a daemon that takes over pinned maps. IPv4 address
    /// (network byte order as a number) in bits 0-31, service id in 32-47, [`Self::SORRY`] and
    /// [`Self::HOST`] in 48 and 49. 0 when never used.
    pub identity: u64,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// Flows may use the backend. Cleared for down, deleted and never-used elements, whose flows
    /// move at their next packet.
    pub const ALIVE: u8 = 1;
    /// The destination MAC is known.
    pub const RESOLVED: u8 = 2;
    /// The backend is this host: packets pass to its stack.
    pub const LOCAL: u8 = 4;
}

impl Backend {
    /// Bit of [`Self::identity`]: the service's sorry server.
    pub const SORRY: u64 = 1 << 48;
    /// Bit of [`Self::identity`]: another host, as opposed to this one.
    pub const HOST: u64 = 1 << 49;

    /// Assembles an element.
    pub const fn new(
        destination: [u8; 6],
        source: [u8; 6],
        ifindex: u32,
        flags: u8,
        identity: u64,
    ) -> Self {
        let d = destination;
        let s = source;
        Self {
            destination: u64::from_ne_bytes([d[0], d[1], d[2], d[3], d[4], d[5], flags, 0]),
            source: u64::from_ne_bytes([s[0], s[1], s[2], s[3], s[4], s[5], 0, 0]),
            ifindex: ifindex as u64,
            identity,
        }
    }

    /// See [`BackendFlags`].
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.destination.to_ne_bytes()[6]
    }

    /// MAC address of the real server.
    pub const fn destination_mac(&self) -> [u8; 6] {
        let b = self.destination.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// MAC address of the outgoing interface.
    pub const fn source_mac(&self) -> [u8; 6] {
        let b = self.source.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }
}

/// Per-CPU counters of a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Flows that the scheduler gave to this backend.
    pub connections: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded, from the IP header on, as IPVS counts.
    pub bytes: u64,
    /// Pads the element to half a cache line.
    pub reserved: u64,
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 8);
    assert!(size_of::<Service>() == 16 && align_of::<Service>() == 4);
    assert!(size_of::<RingChunk>() == 64);
    assert!(size_of::<Cursor>() == 64);
    assert!(size_of::<Backend>() == 32 && align_of::<Backend>() == 8);
    assert!(size_of::<BackendCounters>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_words_keep_their_parts() {
        let backend = Backend::new(
            [1, 2, 3, 4, 5, 6],
            [7, 8, 9, 10, 11, 12],
            42,
            BackendFlags::ALIVE,
            99,
        );
        assert_eq!(backend.destination_mac(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(backend.source_mac(), [7, 8, 9, 10, 11, 12]);
        assert_eq!(backend.flags(), BackendFlags::ALIVE);
        assert_eq!(backend.ifindex, 42);
    }
}
