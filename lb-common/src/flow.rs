//! Flow keys, flow values, buckets and the bucket hash: all that both sides of the flow table
//! must agree on, and no access to the table itself.

use crate::limits::{BUCKET_WAYS, CHUNK_BITS, CHUNK_SLOTS, HALF_OPEN_BUCKETS, MAX_FLOW_SLOTS};

/// The clock of expiry counts ticks of about 64 ms: a power of two of kernel jiffies, so that the
/// program gets one from a single load. A 32-bit count wraps after eight years, and comparisons are
/// made modulo that. This is the length aimed at; see [`tick_shift`].
const TICK_NS: u64 = 1 << 26;

/// How far jiffies of `jiffy_ns` nanoseconds are shifted right to make ticks: the longest tick that
/// is not above 67 ms.
pub const fn tick_shift(jiffy_ns: u64) -> u32 {
    let mut shift = 0;
    while jiffy_ns << (shift + 1) <= TICK_NS {
        shift += 1;
    }
    shift
}

/// What jiffies are multiplied with for a [`tick_of`] them, where they are shifted so far.
pub const fn tick_scale(shift: u32) -> u64 {
    1 << (32 - shift)
}

/// The tick of a time in jiffies: these shifted right by [`tick_shift`], modulo 2^32. Shifts by a number that is not known
/// beforehand cost seven instructions on x86-64 (Linux 6.1), and this costs three.
#[inline(always)]
pub const fn tick_of(jiffies: u64, scale: u64) -> u32 {
    (jiffies.wrapping_mul(scale) >> 32) as u32
}

/// A hit renews its slot only when that moves the expiry by at least this much: 16 ticks, a second.
/// A busy flow dirties its cache line about once a second.
pub const REFRESH_TICKS: u32 = 16;

/// Ticks of `tick_ns` nanoseconds in `seconds`, rounded up.
pub const fn ticks(seconds: u32, tick_ns: u64) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(tick_ns) as u32
}

/// A flow table: index into [`Control::tables`](crate::Control).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// TCP and SCTP flows that showed a second packet. Nothing live is ever evicted.
    Tcp = 0,
    /// UDP flows that showed a second packet.
    Udp = 1,
    /// TCP and SCTP flows of which only first packets were seen; evicts freely.
    TcpHalfOpen = 2,
    /// UDP flows of one packet; evicts freely.
    UdpHalfOpen = 3,
    /// As `Tcp`, for [wide](crate::wide) keys.
    WideTcp = 4,
    /// As `Udp`, for wide keys.
    WideUdp = 5,
    /// As `TcpHalfOpen`, for wide keys.
    WideTcpHalfOpen = 6,
    /// As `UdpHalfOpen`, for wide keys.
    WideUdpHalfOpen = 7,
}

impl FlowTable {
    /// Every table, indexed by its number.
    pub const ALL: [FlowTable; 8] = [
        FlowTable::Tcp,
        FlowTable::Udp,
        FlowTable::TcpHalfOpen,
        FlowTable::UdpHalfOpen,
        FlowTable::WideTcp,
        FlowTable::WideUdp,
        FlowTable::WideTcpHalfOpen,
        FlowTable::WideUdpHalfOpen,
    ];

    /// The name in dumps.
    pub const fn label(self) -> &'static str {
        match self {
            FlowTable::Tcp => "tcp",
            FlowTable::Udp => "udp",
            FlowTable::TcpHalfOpen => "tcp-half-open",
            FlowTable::UdpHalfOpen => "udp-half-open",
            FlowTable::WideTcp => "wide-tcp",
            FlowTable::WideUdp => "wide-udp",
            FlowTable::WideTcpHalfOpen => "wide-tcp-half-open",
            FlowTable::WideUdpHalfOpen => "wide-udp-half-open",
        }
    }

    /// The table of flows that showed a second packet.
    pub const fn promoted(wide: bool, udp: bool) -> Self {
        match (wide, udp) {
            (false, false) => FlowTable::Tcp,
            (false, true) => FlowTable::Udp,
            (true, false) => FlowTable::WideTcp,
            (true, true) => FlowTable::WideUdp,
        }
    }

    /// The one of the same keys and protocol whose flows showed only one packet.
    pub const fn half_open(self) -> Self {
        match self {
            FlowTable::Tcp | FlowTable::TcpHalfOpen => FlowTable::TcpHalfOpen,
            FlowTable::Udp | FlowTable::UdpHalfOpen => FlowTable::UdpHalfOpen,
            FlowTable::WideTcp | FlowTable::WideTcpHalfOpen => FlowTable::WideTcpHalfOpen,
            FlowTable::WideUdp | FlowTable::WideUdpHalfOpen => FlowTable::WideUdpHalfOpen,
        }
    }

    /// Whether the keys are [wide](crate::wide).
    pub const fn is_wide(self) -> bool {
        self as u32 >= 4
    }

    /// Whether the flows are of UDP.
    pub const fn is_udp(self) -> bool {
        self as u32 & 1 != 0
    }

    /// Whether the flows showed only one packet.
    pub const fn is_half_open(self) -> bool {
        self as u32 & 2 != 0
    }
}

/// One bucket: eight slots of sixteen bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bucket {
    /// The slots, searched in this order by every CPU.
    pub slots: [Slot; BUCKET_WAYS],
}

/// One flow, or a free place: key 0 (client 0.0.0.0:0 of no service) is never a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// See [`FlowKey`].
    pub key: u64,
    /// See [`FlowValue`].
    pub value: u64,
}

const _: () = {
    assert!(core::mem::size_of::<Slot>() == 16);
    assert!(core::mem::size_of::<Bucket>() == 128);
};

/// Client address, client port and service id in one word. The protocol is the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey(pub u64);

impl FlowKey {
    /// Packs a key. Address and port in network byte order.
    #[inline(always)]
    pub const fn new(client_be: u32, port_be: u16, service: u16) -> Self {
        Self((client_be as u64) << 32 | (port_be as u64) << 16 | service as u64)
    }

    /// Client address, network byte order.
    pub const fn client_be(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Client port, network byte order.
    pub const fn port_be(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Service id.
    pub const fn service(self) -> u16 {
        self.0 as u16
    }
}

/// Backend id in bits 0-15, flags in 16-30 and 63, expiry tick in 31-62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue(pub u64);

impl FlowValue {
    /// A writer owns the slot; its key and value are not to be believed.
    const BUSY: u64 = 1 << 16;
    /// The client sent FIN or RST: a new SYN is a new connection.
    const CLOSING: u64 = 1 << 17;
    /// Goes with both: there is more to do than to continue the flow.
    const SPECIAL: u64 = 1 << 63;
    const EXPIRY_SHIFT: u32 = 31;

    /// A flow of `backend` until `expires`.
    #[inline(always)]
    pub const fn new(backend: u16, expires: u32, closing: bool) -> Self {
        let flag = if closing {
            Self::CLOSING | Self::SPECIAL
        } else {
            0
        };
        Self((expires as u64) << Self::EXPIRY_SHIFT | flag | backend as u64)
    }

    /// The mark of a writer who claimed the slot at tick `now`.
    #[inline(always)]
    pub const fn busy(now: u32) -> Self {
        Self((now as u64) << Self::EXPIRY_SHIFT | Self::BUSY | Self::SPECIAL)
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// Expiry tick.
    #[inline(always)]
    pub const fn expires(self) -> u32 {
        (self.0 >> Self::EXPIRY_SHIFT) as u32
    }

    /// Whether a writer owns the slot.
    #[inline(always)]
    pub const fn is_busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }

    /// Whether a writer owns the slot or the client began to close: one test of a sign.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.0.cast_signed() < 0
    }

    /// Whether the client began to close.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.0 & Self::CLOSING != 0
    }

    /// Whether the slot may be claimed for another flow at tick `now`.
    #[inline(always)]
    pub const fn is_free(self, now: u32) -> bool {
        self.0 == 0 || (!self.is_busy() && now.wrapping_sub(self.expires()) < 1 << 31)
    }
}

/// The word that chunk and bucket of an IPv4 flow are taken from. Multiply-xorshift with secret
/// multipliers: an attacker who knows the code but not the secrets cannot aim at one bucket. The upper bits
/// of a product depend on all of its factors; only they are used.
#[inline(always)]
pub const fn hash(secret: [u64; 2], key: FlowKey) -> u64 {
    let mut word = (key.0 ^ secret[0]).wrapping_mul(secret[1] | 1);
    word ^= word >> 32;
    word.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Bucket of a [`hash`] within its chunk: the topmost bits.
#[inline(always)]
pub const fn bucket(hash: u64) -> u32 {
    (hash >> (64 - CHUNK_BITS)) as u32
}

/// How far a [`hash`] is shifted for the number of its chunk: the bits below those of [`bucket`], as many as the
/// largest table needs.
pub const CHUNK_SHIFT: u32 = 64 - CHUNK_BITS - (MAX_FLOW_SLOTS / CHUNK_SLOTS).ilog2();

/// Bucket of a [`hash`] in a half-open table.
#[inline(always)]
pub const fn half_open_bucket(hash: u64) -> u32 {
    (hash >> (64 - HALF_OPEN_BUCKETS.ilog2())) as u32
}

/// Which way of its full bucket a new half-open flow takes. Other bits than those of buckets and chunks.
#[inline(always)]
pub const fn victim(hash: u64) -> usize {
    (hash >> (CHUNK_SHIFT - BUCKET_WAYS.ilog2())) as usize & (BUCKET_WAYS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BUCKETS;
    use proptest::prelude::*;

    #[test]
    fn tables_are_found_by_what_they_hold() {
        for (wide, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let promoted = FlowTable::promoted(wide, udp);
            let half_open = promoted.half_open();
            assert_eq!(half_open.half_open(), half_open);
            for (table, is_half_open) in [(promoted, false), (half_open, true)] {
                assert_eq!(
                    (table.is_wide(), table.is_udp(), table.is_half_open()),
                    (wide, udp, is_half_open),
                    "{}",
                    table.label()
                );
            }
        }
    }

    #[test]
    fn ticks_round_up() {
        // HZ 1000, 300, 250 and 100.
        for (jiffy_ns, shift, quarter_hour) in [
            (1_000_000, 6, 14_063),
            (3_333_333, 4, 16_876),
            (4_000_000, 4, 14_063),
            (10_000_000, 2, 22_500),
        ] {
            assert_eq!(tick_shift(jiffy_ns), shift);
            assert_eq!(ticks(900, jiffy_ns << shift), quarter_hour);
            assert_eq!(ticks(0, jiffy_ns << shift), 0);
        }
    }

    #[test]
    fn ticks_are_jiffies_shifted() {
        // Jiffies begin five minutes before 32 bits overflow.
        for jiffies in [0, 63, 64, 0xfffe_db08, 0x1_0000_0000, u64::MAX >> 7] {
            for shift in [2, 4, 6] {
                let tick = tick_of(jiffies, tick_scale(shift));
                assert_eq!(tick, (jiffies >> shift) as u32, "{jiffies} {shift}");
            }
        }
    }

    #[test]
    fn what_is_busy_or_closing_is_special() {
        assert!(!FlowValue::new(u16::MAX, u32::MAX, false).is_special());
        assert!(FlowValue::new(0, 0, true).is_special());
        assert!(FlowValue::busy(0).is_special());
    }

    #[test]
    fn expiry_survives_the_wrap_of_the_clock() {
        let value = FlowValue::new(7, 5, false);
        assert!(
            !value.is_free(u32::MAX - 10),
            "16 ticks to go, over the wrap"
        );
        assert!(value.is_free(5));
        assert!(value.is_free(100));
    }

    #[test]
    fn a_busy_slot_is_never_free() {
        assert!(!FlowValue::busy(100).is_free(100));
        assert!(!FlowValue::busy(100).is_free(1000));
        assert!(FlowValue(0).is_free(0));
    }

    proptest! {
        #[test]
        fn key_parts_come_back(client: u32, port: u16, service: u16) {
            let key = FlowKey::new(client, port, service);
            prop_assert_eq!((key.client_be(), key.port_be(), key.service()), (client, port, service));
        }

        #[test]
        fn value_parts_come_back(backend: u16, expires: u32, closing: bool) {
            let value = FlowValue::new(backend, expires, closing);
            prop_assert_eq!(
                (value.backend(), value.expires(), value.is_closing(), value.is_busy()),
                (backend, expires, closing, false)
            );
        }
    }

    /// Consecutive ports of one client, the commonest input, must fill buckets as a random function
    /// would: 32,768 flows in 32,768 buckets leave 1/e of them empty, and none overfull.
    #[test]
    fn consecutive_ports_spread() {
        extern crate std;
        let secret = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3211];
        let table = crate::control::TableWord::new(0, 4);
        let mut fill = std::vec![0u8; 32_768];
        for port in 0..32_768u16 {
            let word = hash(secret, FlowKey::new(0x0a01_0f01, port.to_be(), 1));
            let place = table.chunk(word) * CHUNK_BUCKETS + bucket(word);
            fill[place as usize] += 1;
        }
        let empty = fill.iter().filter(|n| **n == 0).count();
        assert!((10_000..14_000).contains(&empty), "{empty} empty buckets");
        assert!(fill.iter().all(|n| *n <= 9));
    }
}
