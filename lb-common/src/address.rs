//! One form for IPv4 and IPv6 addresses.

/// An IPv6 address, or an IPv4 address mapped into it (RFC 4291 section 2.5.5.2), as two words in
/// the byte order of the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub [u64; 2]);

/// Second word of every mapped IPv4 address, without the address.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl Address {
    /// The IPv4 address `be`, network byte order.
    #[inline(always)]
    pub const fn v4(be: u32) -> Self {
        let b = be.to_ne_bytes();
        let low = u64::from_ne_bytes([0, 0, 0, 0, b[0], b[1], b[2], b[3]]);
        Self([0, MAPPED | low])
    }

    /// The IPv4 address, network byte order, of a mapped one.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<u32> {
        let b = self.0[1].to_ne_bytes();
        if self.0[0] == 0 && b[0] == 0 && b[1] == 0 && b[2] == 0xff && b[3] == 0xff {
            Some(u32::from_ne_bytes([b[4], b[5], b[6], b[7]]))
        } else {
            None
        }
    }

    /// The exclusive or of the address's 32-bit words, as a number: what `sh` and `mh` of IPVS hash.
    /// Of an IPv4 address it is the address itself.
    #[inline(always)]
    pub const fn folded(self) -> u32 {
        match self.as_v4() {
            Some(be) => u32::from_be(be),
            None => {
                let word = self.0[0] ^ self.0[1];
                // Both halves in the byte order of the wire, folded, then read as a number.
                let b = word.to_ne_bytes();
                let first = u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
                let second = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
                first ^ second
            }
        }
    }

    /// Whether no host can have sent from it: IPv4's this network, loopback, multicast and limited broadcast
    /// (RFC 1122 section 3.2.1.3), IPv6's unspecified, loopback and multicast (RFC 4291 sections 2.5.2, 2.5.3,
    /// 2.7). What the kernel's `ip_route_input_slow` and `ip6_rcv_core` call martian.
    #[inline(always)]
    pub const fn is_martian(self) -> bool {
        match self.as_v4() {
            Some(be) => {
                let first = be.to_ne_bytes()[0];
                first == 0 || first == 127 || first & 0xf0 == 224 || be == u32::MAX
            }
            None => {
                let high = self.0[0].to_ne_bytes();
                high[0] == 0xff || self.0[0] == 0 && u64::from_be(self.0[1]) <= 1
            }
        }
    }

    /// The address with all but its first `bits` bits cleared, counted as IPv6 (IPv4 prefixes are 96
    /// longer).
    #[inline(always)]
    pub const fn network(self, bits: u8) -> Self {
        Self([
            self.0[0] & word_mask(bits),
            self.0[1] & word_mask(bits.saturating_sub(64)),
        ])
    }
}

/// The first `bits` bits, at most 64, of a word in the byte order of the wire.
#[inline(always)]
const fn word_mask(bits: u8) -> u64 {
    if bits == 0 {
        0
    } else if bits >= 64 {
        u64::MAX
    } else {
        (u64::MAX << (64 - bits)).to_be()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn of(text: &str) -> Address {
        let bytes = text.parse::<Ipv6Addr>().unwrap().octets();
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        Address([word(0), word(8)])
    }

    #[test]
    fn ipv4_addresses_are_mapped_and_come_back() {
        let be = u32::from_ne_bytes(Ipv4Addr::new(10, 1, 15, 50).octets());
        assert_eq!(Address::v4(be), of("::ffff:10.1.15.50"));
        assert_eq!(Address::v4(be).as_v4(), Some(be));
        for other in ["::10.1.15.50", "2001:db8::ffff:10.1.15.50", "1::ffff:1:2"] {
            assert_eq!(of(other).as_v4(), None, "{other}");
        }
    }

    #[test]
    fn folding_is_the_exclusive_or_of_the_words() {
        assert_eq!(of("::ffff:192.0.2.1").folded(), 0xc000_0201);
        let expected = 0x2001_0db8 ^ 0x0001_0002 ^ 0x0003_0004 ^ 0x0005_0006;
        assert_eq!(of("2001:db8:1:2:3:4:5:6").folded(), expected);
    }

    #[test]
    fn networks() {
        let address = of("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff");
        for (bits, expected) in [
            (0, "::"),
            (33, "2001:db8:8000::"),
            (64, "2001:db8:ffff:ffff::"),
            (65, "2001:db8:ffff:ffff:8000::"),
            (128, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(address.network(bits), of(expected), "{bits}");
        }
        assert_eq!(
            of("::ffff:10.1.15.50").network(96 + 24),
            of("::ffff:10.1.15.0")
        );
    }

    #[test]
    fn martians() {
        let v4 = |bytes: [u8; 4]| Address::v4(u32::from_ne_bytes(bytes));
        for bytes in [
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 255, 255, 255],
            [255; 4],
        ] {
            assert!(v4(bytes).is_martian(), "{bytes:?}");
        }
        // Linux takes class E for unicast.
        for bytes in [
            [1, 0, 0, 0],
            [126, 0, 0, 1],
            [128, 0, 0, 1],
            [223, 1, 1, 1],
            [240, 0, 0, 1],
        ] {
            assert!(!v4(bytes).is_martian(), "{bytes:?}");
        }
        let v6 = |first: u8, last: u8| {
            let high = u64::from_ne_bytes([first, 0, 0, 0, 0, 0, 0, 0]);
            Address([high, u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, last])])
        };
        assert!(
            [v6(0, 0), v6(0, 1), v6(0xff, 1)]
                .iter()
                .all(|a| a.is_martian())
        );
        assert!(
            ![v6(0, 2), v6(0x20, 0), v6(0xfe, 1)]
                .iter()
                .any(|a| a.is_martian())
        );
    }
}
