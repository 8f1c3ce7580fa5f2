//! Adverts in: structure first, then what an instance demands.

use std::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::checksum;

use super::{
    ADVERTISEMENT, AUTH_AH, AUTH_DATA, AUTH_NONE, AUTH_PASS, Advert, FIXED, GROUP_V4, IP_HEADER,
    PROTOCOL, PROTOCOL_AH, Rejection, Stamp, TTL, ah, pseudo_header,
    trailer::{self, Sender, Trailer},
};
use crate::model::{Auth, ChecksumForm, HmacAuth, Instance, VrrpVersion};

/// A packet whose own structure is sound, not yet held against an instance.
#[derive(Clone, Copy, Debug)]
pub struct Received<'p> {
    /// Sender.
    pub source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    version: VrrpVersion,
    /// Virtual router id.
    pub vrid: u8,
    priority: u8,
    interval: Duration,
    auth_type: u8,
    addresses: &'p [u8],
    auth_data: &'p [u8],
    checksum: ChecksumForm,
    /// The whole packet and the sequence number, where there is an authentication header.
    authenticated: Option<(&'p [u8], u32)>,
    /// The message with its trailer, where there is one.
    signed: Option<(&'p [u8], Trailer)>,
}

/// Checks a packet as a raw IPv4 socket delivers it, IP header first (RFC 3768 section 7.1).
pub fn decode(packet: &[u8]) -> Result<Received<'_>, Rejection> {
    let ip = packet.get(..IP_HEADER).ok_or(Rejection::Truncated)?;
    let ip_length = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || ip_length < IP_HEADER {
        return Err(Rejection::NotVrrp);
    }
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    // Ethernet padding after the message is legal; what the IP header counts is the message.
    let packet = packet.get(..total).ok_or(Rejection::Truncated)?;
    let body = packet.get(ip_length..).ok_or(Rejection::Truncated)?;
    let source = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let envelope = Envelope {
        source: source.into(),
        destination: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]).into(),
        ttl: ip[8],
    };
    match ip[9] {
        PROTOCOL => read(envelope, body, None),
        PROTOCOL_AH => {
            let (header, message) = body
                .split_first_chunk::<{ ah::LENGTH }>()
                .ok_or(Rejection::Truncated)?;
            if header[..2] != [PROTOCOL, 4] || ip_length != IP_HEADER {
                return Err(Rejection::NotVrrp);
            }
            let (spi, sequence) = ah::read(header);
            if spi != source.octets() {
                return Err(Rejection::WrongIcv);
            }
            read(envelope, message, Some((packet, sequence)))
        }
        _ => Err(Rejection::NotVrrp),
    }
}

/// Checks a message as a raw IPv6 socket delivers it, without IP header.
pub fn decode_v6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    message: &[u8],
) -> Result<Received<'_>, Rejection> {
    let envelope = Envelope {
        source: source.into(),
        destination: destination.into(),
        ttl: hop_limit,
    };
    read(envelope, message, None)
}

#[derive(Clone, Copy)]
struct Envelope {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
}

fn read<'p>(
    envelope: Envelope,
    message: &'p [u8],
    authenticated: Option<(&'p [u8], u32)>,
) -> Result<Received<'p>, Rejection> {
    let (fixed, body) = message
        .split_first_chunk::<FIXED>()
        .ok_or(Rejection::Truncated)?;
    let is_v6 = envelope.source.is_ipv6();
    let version = match (fixed[0] >> 4, is_v6) {
        (2, false) => VrrpVersion::V2,
        (3, _) => VrrpVersion::V3,
        _ => return Err(Rejection::WrongVersion),
    };
    if fixed[0] & 0x0f != ADVERTISEMENT {
        return Err(Rejection::WrongType);
    }
    let address_bytes = usize::from(fixed[3]) * if is_v6 { 16 } else { 4 };
    let auth_bytes = match version {
        VrrpVersion::V2 => AUTH_DATA,
        VrrpVersion::V3 => 0,
    };
    let expected = address_bytes + auth_bytes;
    let signed = match body.len().cmp(&expected) {
        Ordering::Less => return Err(Rejection::Truncated),
        Ordering::Equal => None,
        Ordering::Greater => {
            let behind = body.get(expected..).and_then(|rest| rest.try_into().ok());
            let bytes: &[u8; trailer::LENGTH] = behind.ok_or(Rejection::Oversized)?;
            Some((message, Trailer::read(bytes)))
        }
    };
    let summed = match (&signed, is_v6) {
        (Some(_), false) => &message[..FIXED + expected],
        (Some(_), true) | (None, _) => message,
    };
    let checksum = checksum_form(&envelope, version, summed).ok_or(Rejection::WrongChecksum)?;
    if address_bytes == 0 {
        return Err(Rejection::NoAddress);
    }
    let (addresses, rest) = body.split_at(address_bytes);
    let auth_data = &rest[..auth_bytes];
    let (auth_type, interval) = match version {
        VrrpVersion::V2 => (fixed[4], Duration::from_secs(fixed[5].into())),
        VrrpVersion::V3 => {
            let hundredths = u16::from_be_bytes([fixed[4], fixed[5]]) & 0x0fff;
            (AUTH_NONE, Duration::from_millis(10) * hundredths.into())
        }
    };
    Ok(Received {
        source: envelope.source,
        destination: envelope.destination,
        ttl: envelope.ttl,
        version,
        vrid: fixed[1],
        priority: fixed[2],
        interval,
        auth_type,
        addresses,
        auth_data,
        checksum,
        authenticated,
        signed,
    })
}

/// How the checksum fits, if it does. Over IPv4, version 3 is spoken in three dialects: RFC 9568's
/// without pseudo-header, keepalived's with one, and FRR's with one of VRRP's own group wherever the
/// packet goes.
fn checksum_form(
    envelope: &Envelope,
    version: VrrpVersion,
    message: &[u8],
) -> Option<ChecksumForm> {
    let with = |destination| {
        let start = pseudo_header(envelope.source, destination, message.len());
        checksum::finish(checksum::sum(start, message)) == 0
    };
    let plain = checksum::of(message) == 0;
    if envelope.source.is_ipv6() {
        return with(envelope.destination).then_some(ChecksumForm::PseudoHeader);
    }
    if plain {
        return Some(ChecksumForm::Message);
    }
    let pseudo =
        version == VrrpVersion::V3 && (with(envelope.destination) || with(IpAddr::V4(GROUP_V4)));
    pseudo.then_some(ChecksumForm::PseudoHeader)
}

impl Received<'_> {
    /// The stamp of the trailer, whose HMAC nobody has checked yet: good for throwing a packet away
    /// before that is computed, and for nothing else.
    pub fn claimed_stamp(&self) -> Option<Stamp> {
        self.signed.as_ref().map(|(_, trailer)| trailer.stamp)
    }

    /// Holds the packet against the instance of its VRID. Whether a sequence number or stamp was heard
    /// before only the caller knows.
    pub fn check(&self, instance: &Instance) -> Result<Advert, Rejection> {
        if self.version != instance.version {
            return Err(Rejection::WrongVersion);
        }
        if instance.peers.is_empty() {
            if self.destination != instance.group {
                return Err(Rejection::WrongGroup);
            }
            if self.ttl != TTL {
                return Err(Rejection::WrongTtl);
            }
        } else {
            if self.destination.is_multicast() {
                return Err(Rejection::WrongGroup);
            }
            if !instance.peers.contains(&self.source) {
                return Err(Rejection::UnknownPeer);
            }
            if !instance.unicast_ttl.accepted.contains(&self.ttl) {
                return Err(Rejection::WrongTtl);
            }
        }
        let stamp = self.authenticate(instance)?;
        let wrong = match self.version {
            VrrpVersion::V2 => self.interval != instance.advert_interval,
            VrrpVersion::V3 => self.interval.is_zero(),
        };
        if wrong {
            return Err(Rejection::WrongInterval);
        }
        Ok(Advert {
            source: self.source,
            priority: self.priority,
            interval: self.interval,
            same_addresses: self.lists_exactly(instance),
            checksum: self.checksum,
            sequence: self.authenticated.map(|(_, sequence)| sequence),
            stamp,
        })
    }

    /// The stamp of a trailer that proves the origin; none where something else does, or nothing.
    fn authenticate(&self, instance: &Instance) -> Result<Option<Stamp>, Rejection> {
        match (&instance.auth, self.authenticated, &self.signed) {
            (Auth::None, None, None) if self.auth_type == AUTH_NONE => Ok(None),
            (Auth::Pass(password), None, None) if self.auth_type == AUTH_PASS => {
                match self.auth_data == password {
                    true => Ok(None),
                    false => Err(Rejection::WrongPassword),
                }
            }
            (Auth::Ah(key), Some((packet, _)), None) if self.auth_type == AUTH_AH => {
                match ah::is_right(packet, key) {
                    true => Ok(None),
                    false => Err(Rejection::WrongIcv),
                }
            }
            (Auth::Hmac(hmac), None, Some((message, trailer))) if self.auth_type == AUTH_NONE => {
                self.verify(instance, hmac, message, trailer).map(Some)
            }
            (Auth::Hmac(hmac), None, None) if self.auth_type == AUTH_NONE => {
                match hmac.mode.believes_unsigned() {
                    true => Ok(None),
                    false => Err(Rejection::Unsigned),
                }
            }
            (Auth::None | Auth::Pass(_) | Auth::Ah(_) | Auth::Hmac(_), ..) => {
                Err(Rejection::WrongAuthType)
            }
        }
    }

    fn verify(
        &self,
        instance: &Instance,
        hmac: &HmacAuth,
        message: &[u8],
        trailer: &Trailer,
    ) -> Result<Stamp, Rejection> {
        if !trailer.is_well_formed() {
            return Err(Rejection::MalformedTrailer);
        }
        let key = hmac.key(trailer.key_id).ok_or(Rejection::UnknownKey)?;
        let sender = Sender::new(self.source, self.version, instance.vrid);
        match trailer::is_right(message, key, &sender) {
            true => Ok(trailer.stamp),
            false => Err(Rejection::WrongHmac),
        }
    }

    fn lists_exactly(&self, instance: &Instance) -> bool {
        let listed = |address: &IpAddr| match address {
            IpAddr::V4(v4) => self.lists(&v4.octets()),
            IpAddr::V6(v6) => self.lists(&v6.octets()),
        };
        let each = if instance.is_v6() { 16 } else { 4 };
        self.addresses.len() == instance.addresses.len() * each
            && instance
                .addresses
                .iter()
                .all(|prefix| listed(&prefix.address))
    }

    fn lists(&self, octets: &[u8]) -> bool {
        self.addresses
            .chunks_exact(octets.len())
            .any(|listed| listed == octets)
    }
}
