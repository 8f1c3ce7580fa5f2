//! The authentication header as keepalived computes it, which is not quite RFC 2402: HMAC-MD5-96
//! with the key padded to eight bytes, over the IP header (type of service, fragment field and
//! checksum zero; the TTL too, but for multicast), this header with a zero check value, and the
//! message.

use hmac::{Hmac, Mac};
use md5::Md5;

use super::{IP_HEADER, PROTOCOL};

/// Next header, length, reserved, SPI, sequence number, check value.
pub const LENGTH: usize = 24;
const VALUE: std::ops::Range<usize> = 12..24;

/// Writes the header for a packet whose IP header is complete. `spi` is the source address.
pub fn write(packet: &mut [u8], key: &[u8; 8], spi: [u8; 4], sequence: u32) {
    let header = &mut packet[IP_HEADER..IP_HEADER + LENGTH];
    // In words of four bytes, minus two.
    header[..4].copy_from_slice(&[PROTOCOL, 4, 0, 0]);
    header[4..8].copy_from_slice(&spi);
    header[8..12].copy_from_slice(&sequence.to_be_bytes());
    header[VALUE].fill(0);
    let value = value(packet, key);
    packet[IP_HEADER..][VALUE].copy_from_slice(&value);
}

/// Whether the check value of a packet without IP options is right.
pub fn is_right(packet: &[u8], key: &[u8; 8]) -> bool {
    let Some(header) = packet.get(IP_HEADER..IP_HEADER + LENGTH) else {
        return false;
    };
    // In constant time it need not be: every packet has a value of its own.
    value(packet, key) == header[VALUE]
}

/// The SPI and the sequence number of a header.
pub fn read(header: &[u8; LENGTH]) -> ([u8; 4], u32) {
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    (word(4), u32::from_be_bytes(word(8)))
}

fn value(packet: &[u8], key: &[u8; 8]) -> [u8; 12] {
    let mut ip = [0; IP_HEADER];
    ip.copy_from_slice(&packet[..IP_HEADER]);
    ip[1] = 0;
    ip[6..8].fill(0);
    ip[10..12].fill(0);
    let is_multicast = ip[16] >> 4 == 0xe;
    if !is_multicast {
        ip[8] = 0;
    }
    let body = &packet[IP_HEADER..];
    let mut value = [0; 12];
    // A key of any length will do.
    if let Ok(mut mac) = Hmac::<Md5>::new_from_slice(key) {
        mac.update(&ip);
        mac.update(&body[..VALUE.start]);
        mac.update(&[0; 12]);
        mac.update(&body[LENGTH..]);
        value.copy_from_slice(&mac.finalize().into_bytes()[..12]);
    }
    value
}
