//! keepalived's authentication trailer (`auth_hmac`, version 2.4; draft-cassen-vrrp-auth-hmac-00), the same
//! for both versions of VRRP and of IP, for groups and peers. It stands behind the message.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |  Scheme (1)   |    Key Id     |         Reserved (0)          |
//! +---------------+---------------+-------------------------------+
//! |                    Seconds since 1970, UTC                    |
//! +-------------------------------+-------------------------------+
//! |   Fraction of a second / 2^16 |            Counter            |
//! +-------------------------------+-------------------------------+
//! |      HMAC-SHA256 (RFC 2104), its first 16 bytes               |
//! |                              ...                              |
//! +---------------------------------------------------------------+
//! ```
//! The HMAC is over twenty bytes that name the sender (version of IP, version of VRRP, VRID, a zero, the
//! source address, padded with zeros to sixteen bytes), the message with a zero checksum, and the trailer with
//! a zero HMAC. The IP header is not in it, nor is the destination: all copies of an advert are the same.

use std::{net::IpAddr, time::Duration};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::model::{HmacKey, VrrpVersion};

/// Bytes of the trailer.
pub const LENGTH: usize = 28;
/// HMAC-SHA256, cut to 128 bits. The only scheme there is.
const SCHEME: u8 = 1;
const HMAC_LENGTH: usize = 16;
/// Where the HMAC stands in the trailer.
const HMAC_AT: usize = LENGTH - HMAC_LENGTH;
/// Where the message's checksum stands in it.
const CHECKSUM: std::ops::Range<usize> = 6..8;

/// When an advert was made, and which of that moment it is: grows with every advert of a sender, also over
/// its restarts as long as its clock does not go back. Nothing is stored for that. Compared as serial
/// numbers (RFC 1982), because the seconds wrap in 2106.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// The first stamp of a moment, given as the time since 1970.
    pub fn of(wall: Duration) -> Self {
        // Only the low 32 bits of the seconds are sent.
        let seconds = wall.as_secs() & 0xffff_ffff;
        let fraction = (u64::from(wall.subsec_nanos()) << 16) / 1_000_000_000;
        Self(seconds << 32 | fraction << 16)
    }

    /// The stamp after this one: the clock's, or one more where the clock has not gone on. With a
    /// `window`, a stamp that is farther ahead of the clock than receivers tolerate (the clock was
    /// corrected) begins again at the clock.
    #[must_use]
    pub fn next(self, wall: Duration, window: Option<Duration>) -> Self {
        let clock = Self::of(wall);
        let is_stranded = window.is_some_and(|window| !self.is_within(window, wall));
        if clock.is_after(self) || is_stranded {
            return clock;
        }
        Self(self.0.wrapping_add(1))
    }

    /// Whether it is later than another.
    pub fn is_after(self, other: Self) -> bool {
        let ahead = self.0.wrapping_sub(other.0);
        ahead != 0 && ahead >> 63 == 0
    }

    /// Whether its second is at most `window` away from the clock's, either way.
    pub fn is_within(self, window: Duration, wall: Duration) -> bool {
        let distance = self.seconds().wrapping_sub(Self::of(wall).seconds());
        let distance = distance.min(distance.wrapping_neg());
        u64::from(distance) <= window.as_secs()
    }

    fn seconds(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A trailer as it came.
#[derive(Clone, Copy, Debug)]
pub struct Trailer {
    scheme: u8,
    /// Which key it claims.
    pub key_id: u8,
    reserved: u16,
    /// Its stamp.
    pub stamp: Stamp,
}

impl Trailer {
    /// What stands in it, but for the HMAC.
    pub fn read(bytes: &[u8; LENGTH]) -> Self {
        let mut stamp = [0; 8];
        stamp.copy_from_slice(&bytes[4..HMAC_AT]);
        Self {
            scheme: bytes[0],
            key_id: bytes[1],
            reserved: u16::from_be_bytes([bytes[2], bytes[3]]),
            stamp: Stamp(u64::from_be_bytes(stamp)),
        }
    }

    /// Whether it can be judged at all.
    pub fn is_well_formed(&self) -> bool {
        self.scheme == SCHEME && self.reserved == 0
    }
}

/// Who an advert is from, as the HMAC covers it: so a trailer fits no other instance that has the same key,
/// and no other sender.
#[derive(Clone, Debug)]
pub struct Sender([u8; 20]);

impl Sender {
    /// The sender with this address, for a virtual router.
    pub fn new(source: IpAddr, version: VrrpVersion, vrid: u8) -> Self {
        let mut bytes = [0; 20];
        bytes[1] = match version {
            VrrpVersion::V2 => 2,
            VrrpVersion::V3 => 3,
        };
        bytes[2] = vrid;
        match source {
            IpAddr::V4(v4) => {
                bytes[0] = 4;
                bytes[4..8].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes[0] = 6;
                bytes[4..].copy_from_slice(&v6.octets());
            }
        }
        Self(bytes)
    }
}

/// Writes the trailer into the last bytes of a message, which is complete but for its checksum.
pub fn sign(message: &mut [u8], key: &HmacKey, sender: &Sender, stamp: Stamp) {
    let Some(at) = message.len().checked_sub(LENGTH) else {
        return;
    };
    let trailer = &mut message[at..];
    trailer[..4].copy_from_slice(&[SCHEME, key.id, 0, 0]);
    trailer[4..HMAC_AT].copy_from_slice(&stamp.0.to_be_bytes());
    if let Some(mac) = mac(message, key, sender) {
        let whole = mac.finalize().into_bytes();
        message[at + HMAC_AT..].copy_from_slice(&whole[..HMAC_LENGTH]);
    }
}

/// Whether the HMAC at the end of a message is right. Takes as long for a wrong one.
pub fn is_right(message: &[u8], key: &HmacKey, sender: &Sender) -> bool {
    let Some(given) = message.last_chunk::<HMAC_LENGTH>() else {
        return false;
    };
    mac(message, key, sender).is_some_and(|mac| mac.verify_truncated_left(given).is_ok())
}

/// Of a message with its trailer, whose checksum and HMAC count as zero.
fn mac(message: &[u8], key: &HmacKey, sender: &Sender) -> Option<Hmac<Sha256>> {
    let covered = message.get(..message.len().checked_sub(HMAC_LENGTH)?)?;
    let behind_checksum = covered.get(CHECKSUM.end..)?;
    // A key of any length will do.
    let mut mac = Hmac::<Sha256>::new_from_slice(key.secret.bytes()).ok()?;
    mac.update(&sender.0);
    mac.update(&covered[..CHECKSUM.start]);
    mac.update(&[0; 2]);
    mac.update(behind_checksum);
    mac.update(&[0; HMAC_LENGTH]);
    Some(mac)
}
