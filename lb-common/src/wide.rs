//! Keys of flows that do not fit into one word: IPv6, and services of several ports. A keyed 64-bit
//! fingerprint stands in the slot where an IPv4 flow has its key; the whole key lies beside it.

use core::mem::size_of;

use crate::{Address, flow::Bucket, limits::BUCKET_WAYS};

/// Client, both ports and service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WideKey {
    /// Client.
    pub client: Address,
    /// Client port (network byte order) in bits 32-47, destination port (network byte order) in
    /// 16-31, service id in 0-15.
    pub rest: u64,
}

impl WideKey {
    /// Packs a key. Ports in network byte order.
    #[inline(always)]
    pub const fn new(client: Address, port_be: u16, vport_be: u16, service: u16) -> Self {
        Self {
            client,
            rest: (port_be as u64) << 32 | (vport_be as u64) << 16 | service as u64,
        }
    }

    /// Client port, network byte order.
    pub const fn port_be(&self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Destination port, network byte order.
    pub const fn vport_be(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// Service id.
    pub const fn service(&self) -> u16 {
        self.rest as u16
    }

    /// Multiply-xorshift over the three words with secret multipliers. Never 0, which is no key.
    #[inline(always)]
    pub const fn fingerprint(&self, secret: [u64; 2]) -> u64 {
        let odd = secret[1] | 1;
        let mut word = (self.client.0[0] ^ secret[0]).wrapping_mul(odd);
        word ^= word >> 32;
        word = (word ^ self.client.0[1]).wrapping_mul(odd);
        word ^= word >> 32;
        word = (word ^ self.rest).wrapping_mul(odd);
        word ^= word >> 32;
        word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
        (word ^ word >> 32) | 1 << 63
    }
}

/// What the chunk and bucket of a fingerprint are taken from, in place of [`hash`](crate::flow::hash): its topmost bit is always
/// the same.
#[inline(always)]
pub const fn hash(fingerprint: u64) -> u64 {
    fingerprint << 1
}

/// Eight slots, and the whole keys of what they hold.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WideBucket {
    /// Slots whose keys are fingerprints.
    pub slots: Bucket,
    /// Whole keys, by slot.
    pub keys: [WideKey; BUCKET_WAYS],
}

const _: () = {
    assert!(size_of::<WideKey>() == 24);
    assert!(size_of::<WideBucket>() == 320);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn key_parts_come_back() {
        let key = WideKey::new(Address([1, 2]), 0x1234, 0x5678, 0x9abc);
        assert_eq!(
            (key.port_be(), key.vport_be(), key.service()),
            (0x1234, 0x5678, 0x9abc)
        );
    }

    /// Neighbouring clients of one network, with neighbouring ports, fill buckets evenly.
    #[test]
    fn fingerprints_spread() {
        let secret = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3211];
        let mut fill = std::vec![0u8; 32_768];
        for host in 0..128u64 {
            for port in 0..256u16 {
                let key = WideKey::new(Address([0xb80d_0120, host << 56]), port.to_be(), 80, 1);
                fill[key.fingerprint(secret) as usize & 32_767] += 1;
            }
        }
        let empty = fill.iter().filter(|n| **n == 0).count();
        assert!((11_000..13_100).contains(&empty), "{empty} empty buckets");
        assert!(fill.iter().all(|n| *n <= 9));
    }
}
