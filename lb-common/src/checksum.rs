//! Internet checksum arithmetic (RFC 1071) and its incremental update (RFC 1624).

/// The IPv4 header checksum after the TTL went down by one.
///
/// RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`, for the 16-bit word that holds TTL and protocol.
/// Both the argument and the result are in the byte order of the wire as loaded on this machine.
#[inline(always)]
pub const fn after_ttl_decrement(checksum: u16) -> u16 {
    // The word changes by 0x0100 in network order; one's complement sums do not depend on the byte
    // order, so adding the delta as the machine sees it is exact. A sum of 0xffff carries too: unlike that of
    // RFC 1141, RFC 1624's form never yields 0xffff where the recomputed checksum would be 0.
    let sum = checksum as u32 + u16::from_be(0x0100) as u32;
    (sum + ((sum + 1) >> 16)) as u16
}

/// TTL, protocol and checksum of an IPv4 header, as loaded in one word, after the TTL went down by one: see
/// [`after_ttl_decrement`].
#[inline(always)]
pub const fn aged(word: u32) -> u32 {
    // One less in the lowest byte and one more in the upper half, whose carry comes round.
    let sum = u32::from_le(word) as u64 + 0xffff;
    ((sum + ((sum + 0x1_0000) >> 32 << 16)) as u32).to_le()
}

/// The one's complement sum of `bytes` added to `start`, not folded. Odd lengths are padded with a
/// zero byte (RFC 1071 section 4.1). At most 128 KiB, or the accumulator could overflow.
pub fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |acc, pair| {
        let low = if pair.len() == 2 { pair[1] } else { 0 };
        acc + u32::from(u16::from_be_bytes([pair[0], low]))
    })
}

/// Folds a [`sum`] to the checksum that goes on the wire, as a host-order number.
pub const fn finish(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of `bytes` alone.
pub fn of(bytes: &[u8]) -> u16 {
    finish(sum(0, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The header of RFC 1071's own spirit: an example computed by hand many times over, from the
    /// IPv4 article everybody learns from.
    #[test]
    fn known_header() {
        let header: [u8; 20] = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(of(&header), 0xb861);
    }

    /// The form as it is printed in the RFC.
    #[test]
    fn every_checksum_as_in_the_rfc() {
        for old in 0..=u16::MAX {
            let sum = u32::from(!old) + u32::from(u16::from_be(0xfeff));
            let printed = !((sum & 0xffff) + (sum >> 16)) as u16;
            assert_eq!(after_ttl_decrement(old), printed, "{old:#x}");
        }
    }

    #[test]
    fn ttl_and_checksum_in_one_word() {
        for checksum in 0..=u16::MAX {
            for ttl in [1, 2, 64, 255] {
                let [low, high] = checksum.to_ne_bytes();
                let word = aged(u32::from_ne_bytes([ttl, 6, low, high])).to_ne_bytes();
                let [low, high] = after_ttl_decrement(checksum).to_ne_bytes();
                assert_eq!(word, [ttl - 1, 6, low, high], "{ttl} {checksum:#x}");
            }
        }
    }

    proptest! {
        /// Against etherparse, which shares no code with this.
        #[test]
        fn agrees_with_an_independent_implementation(
            bytes in prop::collection::vec(any::<u8>(), 0..200), ttl in 1u8..,
            source: [u8; 4], destination: [u8; 4], id: u16,
        ) {
            let theirs = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement();
            prop_assert_eq!(of(&bytes), u16::from_be(theirs));
            let mut header = etherparse::Ipv4Header::new(100, ttl, etherparse::IpNumber::TCP, source, destination).unwrap();
            header.identification = id;
            let before = header.calc_header_checksum();
            header.time_to_live -= 1;
            let after = header.calc_header_checksum();
            prop_assert_eq!(u16::from_be(after_ttl_decrement(before.to_be())), after);
        }

        #[test]
        fn incremental_equals_recomputed(mut header in prop::array::uniform20(any::<u8>()), ttl in 1u8..) {
            header[8] = ttl;
            header[10..12].fill(0);
            let before = of(&header);
            header[8] = ttl - 1;
            let after = of(&header);
            // A header's sum is never zero on the wire (the version nibble is set), which is where
            // the two representations of zero could differ.
            prop_assume!(header.iter().any(|b| *b != 0));
            let updated = u16::from_be(after_ttl_decrement(before.to_be()));
            prop_assert_eq!(updated, after);
        }
    }
}
