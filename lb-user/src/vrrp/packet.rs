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
//! RFC 3768 section 5.1. The checksum covers all of it, without pseudo-header; the authentication
//! data is there even when nobody authenticates.

use std::net::Ipv4Addr;

use lb_common::checksum;
use thiserror::Error;

use crate::model::Instance;

/// IP protocol number of VRRP.
pub const PROTOCOL: u8 = 112;
/// Receivers demand it (RFC 3768 section 5.2.3): a packet with it was not routed.
pub const TTL: u8 = 255;
/// Internetwork control.
const TOS: u8 = 0xc0;
const IP_HEADER: usize = 20;
const FIXED: usize = 8;
const AUTH_DATA: usize = 8;
const ADVERTISEMENT: u8 = 1;
const AUTH_NONE: u8 = 0;
const AUTH_PASS: u8 = 1;

/// What an advert says, after every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Sender's primary address.
    pub source: Ipv4Addr,
    /// 0: the sender stops being master.
    pub priority: u8,
    /// Whether the address list is the same as ours. Worth a note, never a reason to discard:
    /// discarding makes two masters.
    pub same_addresses: bool,
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
    /// Not an IPv4 packet of protocol 112.
    #[error("not_vrrp")]
    NotVrrp,
    /// TTL below 255: it was routed.
    #[error("wrong_ttl")]
    WrongTtl,
    /// Not version 2.
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
    /// Sent to another group than the instance's.
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
    /// Another advertisement interval (RFC 3768 section 7.1 demands the discard).
    #[error("wrong_interval")]
    WrongInterval,
}

/// A packet whose own structure is sound, not yet held against an instance.
#[derive(Clone, Copy, Debug)]
pub struct Received<'p> {
    source: Ipv4Addr,
    group: Ipv4Addr,
    /// Virtual router id.
    pub vrid: u8,
    priority: u8,
    auth_type: u8,
    interval_s: u8,
    addresses: &'p [u8],
    auth_data: &'p [u8],
}

/// Checks a packet as a raw socket delivers it, IP header first (RFC 3768 section 7.1).
pub fn decode(packet: &[u8]) -> Result<Received<'_>, Rejection> {
    let ip = packet.get(..IP_HEADER).ok_or(Rejection::Truncated)?;
    let ip_length = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || ip_length < IP_HEADER || ip[9] != PROTOCOL {
        return Err(Rejection::NotVrrp);
    }
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    // Ethernet padding after the message is legal; what the IP header counts is the message.
    let message = packet.get(ip_length..total).ok_or(Rejection::Truncated)?;
    let fixed = message.get(..FIXED).ok_or(Rejection::Truncated)?;
    let body = &message[FIXED..];
    if ip[8] != TTL {
        return Err(Rejection::WrongTtl);
    }
    if fixed[0] >> 4 != 2 {
        return Err(Rejection::WrongVersion);
    }
    if fixed[0] & 0x0f != ADVERTISEMENT {
        return Err(Rejection::WrongType);
    }
    let address_bytes = usize::from(fixed[3]) * 4;
    match body.len().cmp(&(address_bytes + AUTH_DATA)) {
        std::cmp::Ordering::Less => return Err(Rejection::Truncated),
        std::cmp::Ordering::Greater => return Err(Rejection::Oversized),
        std::cmp::Ordering::Equal => {}
    }
    if checksum::of(message) != 0 {
        return Err(Rejection::WrongChecksum);
    }
    if address_bytes == 0 {
        return Err(Rejection::NoAddress);
    }
    let (addresses, auth_data) = body.split_at(address_bytes);
    Ok(Received {
        source: Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
        group: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
        vrid: fixed[1],
        priority: fixed[2],
        auth_type: fixed[4],
        interval_s: fixed[5],
        addresses,
        auth_data,
    })
}

impl Received<'_> {
    /// Holds the packet against the instance of its VRID.
    pub fn check(&self, instance: &Instance) -> Result<Advert, Rejection> {
        if self.group != instance.group {
            return Err(Rejection::WrongGroup);
        }
        match instance.password {
            None if self.auth_type != AUTH_NONE => return Err(Rejection::WrongAuthType),
            Some(_) if self.auth_type != AUTH_PASS => return Err(Rejection::WrongAuthType),
            Some(password) if self.auth_data != password => return Err(Rejection::WrongPassword),
            None | Some(_) => {}
        }
        if u64::from(self.interval_s) != instance.advert_interval.as_secs() {
            return Err(Rejection::WrongInterval);
        }
        Ok(Advert {
            source: self.source,
            priority: self.priority,
            same_addresses: self.lists_exactly(instance),
        })
    }

    fn lists_exactly(&self, instance: &Instance) -> bool {
        let listed = |octets: &[u8; 4]| {
            self.addresses
                .chunks_exact(4)
                .any(|listed| listed == octets)
        };
        self.addresses.len() == instance.addresses.len() * 4
            && instance
                .addresses
                .iter()
                .all(|prefix| listed(&prefix.address.octets()))
    }
}

/// A complete advert, IP header included, ready for a socket with IP_HDRINCL. Built once per
/// instance; [`AdvertPacket::bytes`] patches what changes and allocates nothing.
#[derive(Clone, Debug)]
pub struct AdvertPacket {
    bytes: Vec<u8>,
    ip_id: u16,
}

impl AdvertPacket {
    /// The packet of `instance` from `source`.
    pub fn new(instance: &Instance, source: Ipv4Addr) -> Self {
        let length = IP_HEADER + FIXED + instance.addresses.len() * 4 + AUTH_DATA;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&[0x45, TOS]);
        bytes.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, TTL, PROTOCOL, 0, 0]);
        bytes.extend_from_slice(&source.octets());
        bytes.extend_from_slice(&instance.group.octets());
        let interval_s = u8::try_from(instance.advert_interval.as_secs()).unwrap_or(u8::MAX);
        let count = u8::try_from(instance.addresses.len()).unwrap_or(u8::MAX);
        let auth_type = if instance.password.is_some() {
            AUTH_PASS
        } else {
            AUTH_NONE
        };
        bytes.extend_from_slice(&[2 << 4 | ADVERTISEMENT, instance.vrid, 0, count]);
        bytes.extend_from_slice(&[auth_type, interval_s, 0, 0]);
        for prefix in &instance.addresses {
            bytes.extend_from_slice(&prefix.address.octets());
        }
        bytes.extend_from_slice(&instance.password.unwrap_or_default());
        Self { bytes, ip_id: 0 }
    }

    /// The next packet, with this priority. The IP identification counts from 1 and skips 0,
    /// which the kernel would replace.
    pub fn bytes(&mut self, priority: u8) -> &[u8] {
        self.ip_id = self.ip_id.checked_add(1).unwrap_or(1);
        self.bytes[4..6].copy_from_slice(&self.ip_id.to_be_bytes());
        self.bytes[10..12].fill(0);
        let ip_checksum = checksum::of(&self.bytes[..IP_HEADER]);
        self.bytes[10..12].copy_from_slice(&ip_checksum.to_be_bytes());
        self.bytes[IP_HEADER + 2] = priority;
        self.bytes[IP_HEADER + 6..IP_HEADER + 8].fill(0);
        let checksum = checksum::of(&self.bytes[IP_HEADER..]);
        self.bytes[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&checksum.to_be_bytes());
        &self.bytes
    }
}

#[cfg(test)]
mod tests;
