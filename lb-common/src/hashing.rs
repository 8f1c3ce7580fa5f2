//! The hashes by which the schedulers `sh` and `mh` of IPVS place clients and real servers. Both
//! sides and the kernel must agree on them to the bit.

use crate::Address;

/// Buckets of `sh` (the kernel's IP_VS_SH_TAB_SIZE).
pub const SOURCE_BUCKETS: u32 = 256;

/// Places of the `mh` table: the prime of the kernel's default, CONFIG_IP_VS_MH_TAB_INDEX = 12.
pub const MAGLEV_PLACES: u32 = 4_093;

/// Key of the first Maglev hash: where a server's permutation begins, and where a client falls.
pub const MAGLEV_OFFSET_KEY: u64 = 2_654_435_761;

/// Key of the second Maglev hash: the step of a server's permutation.
pub const MAGLEV_SKIP_KEY: u64 = 2_654_446_892;

/// What both schedulers hash: the folded address plus the port (0 unless asked for).
#[inline(always)]
pub const fn subject(address: Address, port: u16) -> u32 {
    address.folded().wrapping_add(port as u32)
}

/// Bucket of `sh` for a [`subject`]: the kernel's `hash_32()` to eight bits.
#[inline(always)]
pub const fn source_bucket(subject: u32) -> u32 {
    /// The kernel's GOLDEN_RATIO_32.
    const GOLDEN_RATIO: u32 = 0x61c8_8647;
    subject.wrapping_mul(GOLDEN_RATIO) >> 24
}

/// SipHash-1-3 (Aumasson and Bernstein) of the four bytes of `subject`, little-endian, both halves of
/// the key being `key`, cut to 32 bits: the kernel's `hsiphash()` on 64-bit machines.
#[inline(always)]
pub const fn maglev(subject: u32, key: u64) -> u32 {
    let mut v = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key,
    ];
    // The last block: the length in the top byte, the bytes below.
    let block = 4 << 56 | subject as u64;
    v[3] ^= block;
    v = round(v);
    v[0] ^= block;
    v[2] ^= 0xff;
    v = round(round(round(v)));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut v0, mut v1, mut v2, mut v3] = v;
    v0 = v0.wrapping_add(v1);
    v1 = v1.rotate_left(13) ^ v0;
    v0 = v0.rotate_left(32);
    v2 = v2.wrapping_add(v3);
    v3 = v3.rotate_left(16) ^ v2;
    v0 = v0.wrapping_add(v3);
    v3 = v3.rotate_left(21) ^ v0;
    v2 = v2.wrapping_add(v1);
    v1 = v1.rotate_left(17) ^ v2;
    v2 = v2.rotate_left(32);
    [v0, v1, v2, v3]
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a crate that shares no code with this.
        #[test]
        fn maglev_is_siphash_1_3(subject: u32, key: u64) {
            let mut theirs = siphasher::sip::SipHasher13::new_with_keys(key, key);
            theirs.write(&subject.to_le_bytes());
            prop_assert_eq!(maglev(subject, key), theirs.finish() as u32);
        }

        #[test]
        fn source_buckets_are_in_range(subject: u32) {
            prop_assert!(source_bucket(subject) < SOURCE_BUCKETS);
        }
    }

    #[test]
    fn the_port_moves_the_subject() {
        let address = Address::v4(u32::from_ne_bytes([10, 0, 0, 1]));
        assert_eq!(subject(address, 0), 0x0a00_0001);
        assert_eq!(subject(address, 80), 0x0a00_0051);
        let last = Address::v4(u32::MAX);
        assert_eq!(subject(last, 1), 0, "the sum wraps as the kernel's does");
    }
}
