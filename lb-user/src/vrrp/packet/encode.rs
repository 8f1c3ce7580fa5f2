//! Adverts out.

use std::{net::IpAddr, time::Duration};

use lb_common::checksum;

use super::{
    ADVERTISEMENT, AUTH_AH, AUTH_DATA, AUTH_NONE, AUTH_PASS, FIXED, IP_HEADER, PROTOCOL,
    PROTOCOL_AH, TOS, TTL, ah, pseudo_header,
    trailer::{self, Sender, Stamp},
};
use crate::model::{Auth, ChecksumForm, HmacKey, Instance, VrrpVersion};

/// More adverts than another master sends before its silence makes this one master, and than both send until they
/// have heard each other again.
const LEAD: u32 = 16;

/// A complete advert, for IPv4 with IP header, ready for a socket with IP_HDRINCL. Built once per
/// instance; [`AdvertPacket::next`] and [`AdvertPacket::to`] patch what changes and allocate
/// nothing.
#[derive(Clone, Debug)]
pub struct AdvertPacket {
    bytes: Vec<u8>,
    /// Where the message begins.
    message: usize,
    source: IpAddr,
    version: VrrpVersion,
    key: Option<[u8; 8]>,
    ip_id: u16,
    sequence: u32,
    /// How far it is to the next sequence number.
    step: u32,
    signed: Option<Signed>,
    /// Of the last advert with a trailer, whether the present ones have one or not.
    stamp: Option<Stamp>,
}

/// What an advert with a trailer needs.
#[derive(Clone, Debug)]
struct Signed {
    key: HmacKey,
    sender: Sender,
    /// How far the stamp may run ahead of the clock.
    window: Option<Duration>,
}

impl AdvertPacket {
    /// The packet of `instance` from `source`, which is of the same family.
    pub fn new(instance: &Instance, source: IpAddr) -> Self {
        let (key, signed) = match &instance.auth {
            Auth::Ah(key) => (Some(*key), None),
            Auth::Hmac(hmac) => {
                let signed = hmac.sending().map(|key| Signed {
                    key: key.clone(),
                    sender: Sender::new(source, instance.version, instance.vrid),
                    window: hmac.window,
                });
                (None, signed)
            }
            Auth::None | Auth::Pass(_) => (None, None),
        };
        let message = match (source, key) {
            (IpAddr::V6(_), _) => 0,
            (IpAddr::V4(_), None) => IP_HEADER,
            (IpAddr::V4(_), Some(_)) => IP_HEADER + ah::LENGTH,
        };
        let mut bytes = vec![0; message];
        push_message(&mut bytes, instance);
        if signed.is_some() {
            bytes.extend_from_slice(&[0; trailer::LENGTH]);
        }
        if let IpAddr::V4(source) = source {
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let protocol = if key.is_some() { PROTOCOL_AH } else { PROTOCOL };
            let ttl = match instance.peers.is_empty() {
                true => TTL,
                false => instance.unicast_ttl.sent,
            };
            bytes[..2].copy_from_slice(&[0x45, TOS]);
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[8..10].copy_from_slice(&[ttl, protocol]);
            bytes[12..16].copy_from_slice(&source.octets());
        }
        Self {
            bytes,
            message,
            source,
            version: instance.version,
            key,
            ip_id: 0,
            sequence: 0,
            step: 1,
            signed,
            stamp: None,
        }
    }

    /// Goes on where the packet before this one stopped: peers discard sequence numbers that they
    /// have seen.
    pub fn continuing(mut self, before: &Self) -> Self {
        self.ip_id = before.ip_id;
        self.sequence = before.sequence;
        self.step = before.step;
        self.stamp = before.stamp;
        self
    }

    /// Makes the next sequence number larger than this one.
    pub fn count_on_from(&mut self, sequence: u32) {
        self.sequence = self.sequence.max(sequence);
    }

    /// Leaves sequence numbers out, as one does who becomes master. keepalived has one number for all routers of
    /// an instance and believes only what is above it, its own adverts included. One that went on as master, or began
    /// to be one, while this one did the same without hearing it, has counted by one for each advert since: who
    /// begins [`LEAD`] further, and counts by two, stays ahead of it however long that takes.
    pub fn leap(&mut self) {
        self.sequence = self.sequence.wrapping_add(LEAD);
        self.step = 2;
    }

    /// Begins the next advert, with this priority, at this time since 1970. All its copies have one
    /// sequence number, and one trailer.
    pub fn next(&mut self, priority: u8, wall: Duration) {
        self.sequence = self.sequence.wrapping_add(self.step);
        self.bytes[self.message + 2] = priority;
        if let Some(signed) = &self.signed {
            let stamp = match self.stamp {
                Some(last) => last.next(wall, signed.window),
                None => Stamp::of(wall),
            };
            self.stamp = Some(stamp);
            trailer::sign(
                &mut self.bytes[self.message..],
                &signed.key,
                &signed.sender,
                stamp,
            );
        }
    }

    /// The advert as it goes to `destination`. The IP identification counts from 1 and skips 0,
    /// which the kernel would replace.
    pub fn to(&mut self, destination: IpAddr, form: ChecksumForm) -> &[u8] {
        self.seal(destination, form);
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, destination) {
            self.ip_id = self.ip_id.checked_add(1).unwrap_or(1);
            self.bytes[4..6].copy_from_slice(&self.ip_id.to_be_bytes());
            self.bytes[16..20].copy_from_slice(&destination.octets());
            self.bytes[10..12].fill(0);
            let ip_checksum = checksum::of(&self.bytes[..IP_HEADER]);
            self.bytes[10..12].copy_from_slice(&ip_checksum.to_be_bytes());
            if let Some(key) = self.key {
                ah::write(&mut self.bytes, &key, source.octets(), self.sequence);
            }
        }
        &self.bytes
    }

    /// The message's own checksum. The trailer counts with IPv6, where it is part of the payload that
    /// the checksum of RFC 8200 is over, and not with IPv4: the HMAC does not cover the checksum, so
    /// the order of both does not matter.
    fn seal(&mut self, destination: IpAddr, form: ChecksumForm) {
        let end = match (&self.signed, self.source) {
            (Some(_), IpAddr::V4(_)) => self.bytes.len() - trailer::LENGTH,
            (Some(_), IpAddr::V6(_)) | (None, _) => self.bytes.len(),
        };
        let message = &mut self.bytes[self.message..end];
        message[6..8].fill(0);
        let with_pseudo_header = match (self.source, self.version) {
            (IpAddr::V6(_), _) => true,
            (IpAddr::V4(_), VrrpVersion::V2) => false,
            (IpAddr::V4(_), VrrpVersion::V3) => form == ChecksumForm::PseudoHeader,
        };
        let start = match with_pseudo_header {
            true => pseudo_header(self.source, destination, message.len()),
            false => 0,
        };
        let checksum = checksum::finish(checksum::sum(start, message));
        message[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn push_message(bytes: &mut Vec<u8>, instance: &Instance) {
    let count = u8::try_from(instance.addresses.len()).unwrap_or(u8::MAX);
    let version = match instance.version {
        VrrpVersion::V2 => 2,
        VrrpVersion::V3 => 3,
    };
    bytes.extend_from_slice(&[version << 4 | ADVERTISEMENT, instance.vrid, 0, count]);
    let fields = match instance.version {
        VrrpVersion::V2 => {
            let auth_type = match instance.auth {
                Auth::None | Auth::Hmac(_) => AUTH_NONE,
                Auth::Pass(_) => AUTH_PASS,
                Auth::Ah(_) => AUTH_AH,
            };
            let seconds = u8::try_from(instance.advert_interval.as_secs()).unwrap_or(u8::MAX);
            [auth_type, seconds]
        }
        VrrpVersion::V3 => {
            let hundredths = instance.advert_interval.as_millis() / 10;
            u16::try_from(hundredths)
                .unwrap_or(0x0fff)
                .min(0x0fff)
                .to_be_bytes()
        }
    };
    bytes.extend_from_slice(&fields);
    bytes.extend_from_slice(&[0; FIXED - 6]);
    for prefix in &instance.addresses {
        match prefix.address {
            IpAddr::V4(v4) => bytes.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes.extend_from_slice(&v6.octets()),
        }
    }
    if instance.version == VrrpVersion::V2 {
        let data = match instance.auth {
            Auth::Pass(password) => password,
            Auth::None | Auth::Ah(_) | Auth::Hmac(_) => [0; AUTH_DATA],
        };
        bytes.extend_from_slice(&data);
    }
}
