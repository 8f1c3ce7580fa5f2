//! Adverts on the wire, both ways. Pure.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-------+---------------+---------------+---------------+
//! |Version| Type  | Virtual Rtr ID|   Priority    | Count IP Addrs|
//! +-------+-------+---------------+---------------+---------------+
//! |   Auth Type   |   Adver Int   |          Checksum             |
//! +---------------+---------------+-------------------------------+
//! |                  IP Address (1) ... (n)                       |
//! +---------------------------------------------------------------+
//! |                  Authentication Data, 8 bytes                 |
//! +---------------------------------------------------------------+
//! ```
//! Version 2, RFC 3768 section 5.1. The checksum covers all of it, without pseudo-header; the
//! authentication data is there even when nobody authenticates. In version 3 (RFC 9568 section 5.1)
//! four reserved bits and twelve bits of interval, in hundredths of a second, take the place of
//! authentication type and interval, addresses may be IPv6's, and there is no authentication data.
//! Behind either may come keepalived's trailer of 28 bytes (`trailer`).

mod ah;
mod decode;
mod encode;
pub mod trailer;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_common::checksum;
use thiserror::Error;

pub use self::{
    decode::{Received, decode, decode_v6},
    encode::AdvertPacket,
    trailer::Stamp,
};
use crate::model::ChecksumForm;

/// IP protocol number of VRRP.
pub const PROTOCOL: u8 = 112;
/// IP protocol number of the authentication header (RFC 4302).
pub const PROTOCOL_AH: u8 = 51;
/// Receivers demand it (RFC 3768 section 5.2.3): a packet with it was not routed.
pub const TTL: u8 = 255;
/// Internetwork control: type of service and traffic class of an advert.
pub const TOS: u8 = 0xc0;
/// VRRP's own group (RFC 3768 section 5.2.2), which FRR puts into every checksum.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const IP_HEADER: usize = 20;
const FIXED: usize = 8;
const AUTH_DATA: usize = 8;
const ADVERTISEMENT: u8 = 1;
const AUTH_NONE: u8 = 0;
const AUTH_PASS: u8 = 1;
const AUTH_AH: u8 = 2;

/// What an advert says, after every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Sender's primary address.
    pub source: IpAddr,
    /// 0: the sender stops being master.
    pub priority: u8,
    /// The sender's advertisement interval.
    pub interval: Duration,
    /// Whether the address list is the same as ours. Worth a note, never a reason to discard:
    /// discarding makes two masters.
    pub same_addresses: bool,
    /// How the checksum was computed, where there is a choice.
    pub checksum: ChecksumForm,
    /// Sequence number of the authentication header.
    pub sequence: Option<u32>,
    /// Stamp of the trailer, whose HMAC is right.
    pub stamp: Option<Stamp>,
}

/// Why an advert was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum Rejection {
    /// Shorter than its headers or its address count announce.
    #[error("truncated")]
    Truncated,
    /// Longer than its address count announces.
    #[error("oversized")]
    Oversized,
    /// Not an IPv4 packet of protocol 112, or of 51 with 112 inside.
    #[error("not_vrrp")]
    NotVrrp,
    /// TTL below 255: it was routed. For a unicast peer: outside the configured bounds.
    #[error("wrong_ttl")]
    WrongTtl,
    /// Another version than the instance's.
    #[error("wrong_version")]
    WrongVersion,
    /// Not an advertisement.
    #[error("wrong_type")]
    WrongType,
    /// The checksum does not fit.
    #[error("wrong_checksum")]
    WrongChecksum,
    /// No instance on this interface has the VRID.
    #[error("wrong_vrid")]
    WrongVrid,
    /// Sent to another group than the instance's, or to a group while it speaks to peers.
    #[error("wrong_group")]
    WrongGroup,
    /// No address in the list.
    #[error("no_address")]
    NoAddress,
    /// Authenticated in another way, or not at all.
    #[error("wrong_auth_type")]
    WrongAuthType,
    /// PASS with another password.
    #[error("wrong_password")]
    WrongPassword,
    /// An authentication header of another key, or for another packet.
    #[error("wrong_icv")]
    WrongIcv,
    /// An authentication header or a trailer that was heard before.
    #[error("replayed")]
    Replayed,
    /// No trailer, where one is demanded.
    #[error("unsigned")]
    Unsigned,
    /// A trailer of another scheme, or with reserved bits set.
    #[error("malformed_trailer")]
    MalformedTrailer,
    /// A trailer of a key that is not configured.
    #[error("unknown_key")]
    UnknownKey,
    /// A trailer of another key, or for another message or sender.
    #[error("wrong_hmac")]
    WrongHmac,
    /// A trailer whose time is outside the window: an old advert, or clocks that disagree.
    #[error("stale")]
    Stale,
    /// From an address that is not among the unicast peers.
    #[error("unknown_peer")]
    UnknownPeer,
    /// Version 2: another advertisement interval (RFC 3768 section 7.1 demands the discard).
    /// Version 3: none.
    #[error("wrong_interval")]
    WrongInterval,
}

/// The sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) of VRRP.
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u32 {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::sum(checksum::sum(0, &source.octets()), &destination.octets())
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            checksum::sum(checksum::sum(0, &octets(source)), &octets(destination))
        }
    };
    sum + u32::from(PROTOCOL) + length as u32
}

#[cfg(test)]
mod tests;
