//! The control element: what user space changes while packets flow, read directly by the program.

use crate::limits::{LOCAL_MAC_SLOTS, MAX_ROLES};

/// One element, mapped into the daemon. Every field is written whole, by one aligned store.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Control {
    /// Which of the two generations is live: 0 or 1. Storing here switches the configuration.
    pub live: u32,
    /// [`Features`] that are turned on.
    pub features: u32,
    /// Secrets of the bucket hash, drawn when the maps are created.
    pub hash_secret: [u64; 2],
    /// [`TableWord`] of each [`FlowTable`](crate::flow::FlowTable); 0 for the half-open ones, which have
    /// maps of their own.
    pub tables: [u64; 8],
    /// Time-outs of flows.
    pub timeouts: Timeouts,
    /// What jiffies are multiplied with to make ticks: see [`tick_of`](crate::flow::tick_of).
    pub tick_scale: u64,
    /// Makes the slot of a MAC address in [`Control::macs`]; 0 turns the check of destination
    /// addresses off.
    pub mac_multiplier: u64,
    /// Pads to two cache lines.
    pub reserved: u64,
    /// What is particular to each generation.
    pub generations: [Generation; 2],
    /// [`TableWord`] of the table that is being moved out of, 0 when none is.
    pub previous: [u64; 8],
    /// Limit of new connections of one source; interval 0 is none.
    pub source_rate: Rate,
    /// The filter of a running capture.
    pub capture: crate::capture::Filter,
    /// MAC addresses by which this host is addressed, each with the low 16 bits of the interface
    /// index above: see [`mac_word`].
    pub macs: [u64; LOCAL_MAC_SLOTS],
    /// Mastership by role index: non-zero means that this node serves. Index 0 is always 1.
    pub roles: [u8; MAX_ROLES],
}

/// Bits of [`Control::features`].
pub struct Features;

impl Features {
    /// Sources are looked up in the prefix lists.
    pub const SOURCES: u32 = 1;
    /// New connections of a source are limited.
    pub const SOURCE_RATE: u32 = 2;
    /// Packets are shown to a capture.
    pub const CAPTURE: u32 = 4;
    /// Tagged frames are held against the VLANs of this host.
    pub const VLANS: u32 = 8;
    /// The kernel's IPVS still knows connections that the flow tables do not: packets that begin none and
    /// belong to no known flow are its.
    pub const HANDOVER: u32 = 16;
    /// The kernel's IPVS takes packets that the program leaves to it, for the backend that stands with them.
    pub const SLOW_PATH: u32 = 32;
    /// The daemon has filled the element; until then every packet passes.
    pub const READY: u32 = 64;
}

/// What the program must know to read one generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// Seed of the hash of services.
    pub service_seed: u64,
    /// Buckets of services - 1.
    pub service_mask: u32,
    /// Buckets of IPv6 addresses - 1.
    pub vip_mask: u32,
    /// Whether services exist that are not found by their port: of all ports, or of a range.
    pub wildcards: u32,
    /// Always 0.
    pub reserved: [u32; 3],
}

/// A limit by the generic cell rate algorithm (ITU-T I.371): one word of state per subject.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds per connection; 0 means no limit.
    pub interval_ns: u64,
    /// How far ahead of its time a connection may be: the burst, in nanoseconds.
    pub tolerance_ns: u64,
}

impl Rate {
    /// `per_second` connections, of which `burst` may come at once. 0 per second is no limit.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        if per_second == 0 {
            return Self {
                interval_ns: 0,
                tolerance_ns: 0,
            };
        }
        let interval_ns = 1_000_000_000 / per_second as u64;
        let extra = if burst == 0 { 0 } else { burst as u64 - 1 };
        Self {
            interval_ns,
            tolerance_ns: interval_ns * extra,
        }
    }

    /// The new state if a connection at `now` conforms, from the theoretical arrival time `state`.
    #[inline(always)]
    pub const fn admit(self, state: u64, now: u64) -> Option<u64> {
        // A state further ahead than this limit allows is another limit's, from before a change.
        let ahead = now + self.tolerance_ns + self.interval_ns;
        let due = if state > now && state <= ahead {
            state
        } else {
            now
        };
        if due - now > self.tolerance_ns {
            return None;
        }
        Some(due + self.interval_ns)
    }
}

/// Time-outs of a flow's states, in [ticks](crate::flow::tick_shift).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP after the second packet (IPVS: 900 s).
    pub tcp: u32,
    /// TCP after a FIN or RST from the client (IPVS: 120 s).
    pub tcp_closing: u32,
    /// TCP before the second packet (IPVS's SYN_RECV: 60 s).
    pub tcp_half_open: u32,
    /// UDP (IPVS: 300 s).
    pub udp: u32,
}

/// Where a flow table lies in its map of chunks: first chunk in bits 0-31, chunks - 1 in 32-63.
/// One word, so that a packet never mixes two sizes. 0 is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableWord(pub u64);

impl TableWord {
    /// A table of `chunks` chunks, a power of two, from `first` on. Chunk 0 is no table's.
    pub const fn new(first: u32, chunks: u32) -> Self {
        Self((chunks as u64 - 1) << 32 | first as u64)
    }

    /// Index of the chunk that a flow of this hash lies in.
    #[inline(always)]
    pub const fn chunk(self, hash: u64) -> u32 {
        (self.0 as u32)
            .wrapping_add((hash >> crate::flow::CHUNK_SHIFT) as u32 & (self.0 >> 32) as u32)
    }
}

/// A MAC address, given as three words of the wire, at an interface: what [`Control::macs`] holds.
#[inline(always)]
pub const fn mac_word(mac: [u16; 3], ifindex: u32) -> u64 {
    mac[0] as u64 | (mac[1] as u64) << 16 | (mac[2] as u64) << 32 | (ifindex as u64) << 48
}

/// The VLANs of a frame at an interface, as the map of this host's VLANs has them: ids of the outer and the inner
/// tag, 0 for none. A tag of VLAN 0 is none.
#[inline(always)]
pub const fn vlan_key(ifindex: u32, outer: u16, inner: u16) -> u64 {
    let (first, second) = match outer {
        0 => (inner, 0),
        _ => (outer, inner),
    };
    (ifindex as u64) << 32 | (first as u64) << 16 | second as u64
}

/// The VLANs of one tag that this host is in at an interface: the common case of the map by [`vlan_key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanSet {
    /// Index of the interface; 0 where the slot is nobody's. Of two that share a slot, one has it.
    pub ifindex: u64,
    /// A bit for each id.
    pub bits: [u64; 64],
}

impl VlanSet {
    /// A slot that is nobody's.
    pub const NONE: Self = Self {
        ifindex: 0,
        bits: [0; 64],
    };

    /// Whether an id is in the set.
    #[inline(always)]
    pub const fn has(&self, id: u16) -> bool {
        self.bits[(id >> 6) as usize & 63] >> (id & 63) & 1 != 0
    }

    /// Adds an id below 4096, or all with [`EVERY_VLAN`].
    pub fn add(&mut self, id: u16) {
        if id == EVERY_VLAN {
            self.bits = [u64::MAX; 64];
        } else {
            self.bits[(id >> 6) as usize & 63] |= 1 << (id & 63);
        }
    }
}

/// In place of the outer id: frames of every VLAN are this host's. A bridge decides by rules of its own.
pub const EVERY_VLAN: u16 = u16::MAX;

/// The only slot where a [`mac_word`] can be.
#[inline(always)]
pub const fn mac_slot(word: u64, multiplier: u64) -> usize {
    (word.wrapping_mul(multiplier) >> 56) as usize & (LOCAL_MAC_SLOTS - 1)
}

const _: () = {
    assert!(LOCAL_MAC_SLOTS == 256);
    assert!(core::mem::size_of::<Control>().is_multiple_of(8));
    assert!(core::mem::align_of::<Control>() == 8);
    assert!(core::mem::offset_of!(Control, hash_secret) == 8);
    assert!(core::mem::offset_of!(Control, generations) == 128);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_chunks() {
        let table = TableWord::new(16, 4);
        let chunk = 1 << crate::flow::CHUNK_SHIFT;
        let hashes = [0, chunk - 1, chunk, 3 * chunk, 4 * chunk, u64::MAX];
        assert_eq!(
            hashes.map(|hash| table.chunk(hash)),
            [16, 16, 17, 19, 16, 19]
        );
    }

    #[test]
    fn a_tag_of_vlan_0_is_none() {
        assert_eq!(vlan_key(3, 0, 7), vlan_key(3, 7, 0));
        assert_ne!(vlan_key(3, 7, 7), vlan_key(3, 7, 0));
        assert_ne!(vlan_key(4, 7, 0), vlan_key(3, 7, 0));
    }

    #[test]
    fn a_set_of_vlans() {
        let mut set = VlanSet::NONE;
        for id in [1, 63, 64, 4094] {
            assert!(!set.has(id));
            set.add(id);
        }
        let held = (0..4096).filter(|id| set.has(*id));
        assert!(held.eq([1, 63, 64, 4094]));
        set.add(EVERY_VLAN);
        assert!((0..4096).all(|id| set.has(id)));
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate::new(10, 3);
        let mut state = 0;
        let mut admitted = [0; 20];
        // A try every 10 ms for 200 ms, from second 5 on.
        for (turn, seen) in admitted.iter_mut().enumerate() {
            let now = 5_000_000_000 + turn as u64 * 10_000_000;
            if let Some(next) = rate.admit(state, now) {
                state = next;
                *seen = 1;
            }
        }
        assert_eq!(admitted[..3], [1, 1, 1], "the burst");
        let later: usize = admitted[3..].iter().sum();
        assert_eq!(
            later, 1,
            "then one in 100 ms, of which the burst took the first"
        );
        assert_eq!(Rate::new(0, 5).interval_ns, 0);
    }
}
