//! Elements of the BPF arrays. Sizes and padding are asserted at compile time.

use core::mem::{align_of, size_of};

use crate::{Address, limits::RING_CHUNK_SLOTS};

/// [`RING_CHUNK_SLOTS`] scheduling slots, each a backend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingChunk {
    /// Backend ids; 0 is nobody.
    pub slots: [u16; RING_CHUNK_SLOTS as usize],
}

/// What changes with every new connection of a service, alone on its cache line.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cursor {
    /// Connections scheduled so far: the ring's next position.
    pub next: u64,
    /// State of the service's [`Rate`](crate::control::Rate).
    pub arrival: u64,
    /// Keeps two services' cursors from sharing a line.
    pub reserved: [u64; 6],
}

/// The answer for a backend, precomputed by user space. Aligned words, each stored whole, so
/// a reader never sees half of a changed MAC address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Destination MAC in bytes 0-5, [`BackendFlags`] in byte 6. The topmost bit is [`Self::is_plain`].
    pub destination: u64,
    /// Source MAC (of the outgoing interface) in bytes 0-5; VLAN id in bytes 6-7 as a number, with
    /// [`Self::TAGGED`], or 0 for an untagged frame.
    pub source: u64,
    /// Interface that the frame leaves by in bits 0-31. In 32-63 the largest IP packet that may be redirected to it,
    /// in bytes; 0 where every one that comes in may.
    pub ifindex: u64,
    /// VLAN id of a second, inner tag with [`Self::TAGGED`], or 0.
    pub inner_vlan: u64,
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
    /// The backend is behind a router: packets travel in a [`Tunnel`].
    pub const TUNNEL: u8 = 8;
    /// The backend takes no new connections.
    pub const DRAINING: u8 = 16;
    /// Nobody sticks to the backend: it is a sorry server, or cannot be reached.
    pub const PASSING: u8 = 32;
    /// Only frames that came in by its interface can leave by it: the driver cannot send redirected ones.
    pub const NO_REDIRECT: u8 = 64;
    /// The backend is down, and its TCP flows are answered with RST. Goes with [`Self::ALIVE`], because flows
    /// must be known, and with [`Self::RESOLVED`], though nothing is sent there.
    pub const RESET: u8 = 128;
}

impl Backend {
    /// The flags that decide whether packets of a flow only get other addresses, and how they stand then.
    const PLAIN: (u8, u8) = {
        let wanted = BackendFlags::ALIVE | BackendFlags::RESOLVED;
        let unwanted = BackendFlags::LOCAL | BackendFlags::TUNNEL | BackendFlags::RESET;
        (wanted | unwanted, wanted)
    };

    const PLAIN_MARK: u64 = 1 << 63;

    /// Whether packets of a flow in frames without tags only get other addresses, from the word of the destination: one test of a
    /// sign. An element that was not [`Self::marked`] says no.
    #[inline(always)]
    pub const fn is_plain(destination: u64) -> bool {
        destination.cast_signed() < 0
    }

    /// With the mark of [`Self::is_plain`], or without it, as flags and VLANs are.
    #[must_use]
    pub const fn marked(self) -> Self {
        let (mask, plain) = Self::PLAIN;
        let is_plain = self.flags() & mask == plain && self.vlan() as u64 | self.inner_vlan == 0;
        Self {
            destination: self.destination & !Self::PLAIN_MARK
                | if is_plain { Self::PLAIN_MARK } else { 0 },
            ..self
        }
    }

    /// Bit of the VLAN word that tells a tag with VLAN id 0 from none.
    pub const TAGGED: u16 = 0x1000;

    /// Assembles an element without an inner tag. `vlan` is a VLAN id with [`Self::TAGGED`], or 0.
    pub const fn new(
        destination: [u8; 6],
        source: [u8; 6],
        vlan: u16,
        ifindex: u32,
        flags: u8,
    ) -> Self {
        let d = destination;
        let s = source;
        let v = vlan.to_ne_bytes();
        Self {
            destination: u64::from_ne_bytes([d[0], d[1], d[2], d[3], d[4], d[5], flags, 0]),
            source: u64::from_ne_bytes([s[0], s[1], s[2], s[3], s[4], s[5], v[0], v[1]]),
            ifindex: ifindex as u64,
            inner_vlan: 0,
        }
    }

    /// See [`BackendFlags`].
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.destination.to_ne_bytes()[6]
    }

    /// VLAN id with [`Self::TAGGED`], or 0.
    #[inline(always)]
    pub const fn vlan(&self) -> u16 {
        let b = self.source.to_ne_bytes();
        u16::from_ne_bytes([b[6], b[7]])
    }

    /// MAC address of the real server, or of the router to it.
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

/// The way to a backend beyond a router.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source: an address of this host.
    pub source: Address,
    /// Outer destination: the real server. Mapped when the outer packet is IPv4.
    pub destination: Address,
    /// The largest inner packet, in bytes from its IP header on.
    pub inner_mtu: u32,
    /// Always 0.
    pub reserved: [u32; 3],
}

/// Connections of a backend, kept where a scheduler or a threshold needs them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// TCP connections from the first SYN until one side closes.
    pub active: u64,
    /// All others.
    pub inactive: u64,
    /// For `wlc`.
    pub weight: u32,
    /// From this many connections on the backend takes no new ones; 0 is no limit.
    pub upper: u32,
    /// Below this many it takes new ones again; 0 means three quarters of `upper`.
    pub lower: u32,
    /// Non-zero while the backend is over its limit.
    pub overloaded: u32,
}

impl Load {
    /// Active and inactive connections. The daemon's corrections may take one below zero for a moment.
    pub const fn connections(&self) -> (u64, u64) {
        const fn at_least_zero(count: u64) -> u64 {
            if count >> 63 == 0 { count } else { 0 }
        }
        (at_least_zero(self.active), at_least_zero(self.inactive))
    }
}

/// Whose element an id is: for dumps, and for a daemon that takes over pinned maps. The program does
/// not read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Address of the backend, or of the service.
    pub address: Address,
    /// Service id of a backend; of a service, 1 when the identity is in use.
    pub service: u16,
    /// First port of a service.
    pub first_port: u16,
    /// Last port of a service.
    pub last_port: u16,
    /// IP protocol of a service.
    pub protocol: u8,
    /// [`Self::SORRY`] and [`Self::LOCAL`].
    pub kind: u8,
}

impl Identity {
    /// The service's sorry server.
    pub const SORRY: u8 = 1;
    /// This host, without an address.
    pub const LOCAL: u8 = 2;
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

/// A datagram in pieces. The kernel compares keys byte by byte: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Identification, as loaded from the wire.
    pub id: u32,
    /// IP protocol of an IPv4 datagram; 0 for IPv6.
    pub protocol: u32,
}

/// Who sticks to a real server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StickyKey {
    /// The client's network.
    pub client: Address,
    /// Service id.
    pub service: u64,
}

const _: () = {
    assert!(size_of::<RingChunk>() == 64);
    assert!(size_of::<Cursor>() == 64);
    assert!(size_of::<Backend>() == 32 && align_of::<Backend>() == 8);
    assert!(size_of::<Tunnel>() == 48);
    assert!(size_of::<Load>() == 32);
    assert!(size_of::<Identity>() == 24);
    assert!(size_of::<BackendCounters>() == 32);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<StickyKey>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_words_keep_their_parts() {
        let backend = Backend::new(
            [1, 2, 3, 4, 5, 6],
            [7, 8, 9, 10, 11, 12],
            Backend::TAGGED | 4094,
            42,
            BackendFlags::ALIVE,
        );
        assert_eq!(backend.destination_mac(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(backend.source_mac(), [7, 8, 9, 10, 11, 12]);
        assert_eq!(backend.flags(), BackendFlags::ALIVE);
        assert_eq!(backend.vlan(), Backend::TAGGED | 4094);
        assert_eq!(backend.ifindex, 42);
        let marked = backend.marked();
        assert_eq!(marked.flags(), backend.flags());
        assert_eq!(marked.destination_mac(), backend.destination_mac());
    }

    #[test]
    fn only_what_gets_other_addresses_alone_is_plain() {
        use BackendFlags as Flags;
        let usable = Flags::ALIVE | Flags::RESOLVED;
        for (flags, vlan, inner_vlan, plain) in [
            (usable, 0, 0, true),
            (
                usable | Flags::DRAINING | Flags::PASSING | Flags::NO_REDIRECT,
                0,
                0,
                true,
            ),
            (Flags::ALIVE, 0, 0, false),
            (Flags::RESOLVED, 0, 0, false),
            (usable | Flags::LOCAL, 0, 0, false),
            (usable | Flags::TUNNEL, 0, 0, false),
            (usable | Flags::RESET, 0, 0, false),
            (usable, Backend::TAGGED, 0, false),
            (usable, 0, u64::from(Backend::TAGGED | 7), false),
        ] {
            let backend = Backend {
                inner_vlan,
                ..Backend::new([0xff; 6], [0xff; 6], vlan, 42, flags)
            };
            let marked = backend.marked();
            assert_eq!(
                Backend::is_plain(marked.destination),
                plain,
                "{flags:#x} {vlan:#x}"
            );
            let down = Backend {
                destination: Backend::new([0xff; 6], [0; 6], 0, 0, 0).destination,
                ..marked
            };
            assert!(!Backend::is_plain(down.marked().destination));
            assert!(!Backend::is_plain(down.destination));
        }
    }
}
