//! IP in IP (RFC 2003, RFC 2473, RFC 4213) to a backend beyond a router.

use lb_common::{Backend, Reason, table::Tunnel};

use super::{Job, direct, link};
use crate::{
    maps::TUNNELS,
    packet::Packet,
    parse::{
        ethernet,
        ipv4::Ipv4Header,
        ipv6::{self, Ipv6Header},
    },
};

/// Length of an IPv4 header without options.
const IPV4_LENGTH: usize = 20;
/// TTL and hop limit of the outer packet (RFC 1700's default).
const OUTER_TTL: u8 = 64;
const DO_NOT_FRAGMENT_BE: u16 = 0x4000_u16.to_be();
/// Protocol numbers of the inner packet.
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Puts the packet into another one for the backend. One that would not fit stays as it is.
#[inline(always)]
pub fn send(packet: &Packet<'_>, job: &Job, backend: &Backend) -> Result<(), Reason> {
    let tunnel = TUNNELS
        .get(u32::from(job.backend))
        .ok_or(Reason::NotReady)?;
    let ipv4 = job.place.is_v4();
    if job.length > tunnel.inner_mtu {
        return Err(Reason::TooBig);
    }
    let offset = job.place.network();
    direct::age(packet, offset, ipv4)?;
    let traffic_class = traffic_class(packet, offset, ipv4)?;
    let protocol = if ipv4 { IPV4_IN_IP } else { IPV6_IN_IP };
    if tunnel.destination.as_v4().is_some() {
        let offset = link::replace(packet, job, backend, ethernet::IPV4_BE, IPV4_LENGTH)?;
        write_v4(packet, offset, tunnel, protocol, traffic_class, job.length)
    } else {
        let offset = link::replace(packet, job, backend, ethernet::IPV6_BE, ipv6::LENGTH)?;
        write_v6(packet, offset, tunnel, protocol, traffic_class, job.length)
    }
}

/// The inner packet's, for the outer one (RFC 6040).
#[inline(always)]
fn traffic_class(packet: &Packet<'_>, offset: usize, ipv4: bool) -> Result<u8, Reason> {
    if ipv4 {
        let inner = packet.header::<Ipv4Header>(offset)?;
        // SAFETY: `header` checked the bounds; every bit pattern is a valid header.
        return Ok(unsafe { (*inner).tos });
    }
    let inner = packet.header::<Ipv6Header>(offset)?;
    // SAFETY: as above.
    let inner = unsafe { &*inner };
    Ok(inner.version_class << 4 | inner.class_label >> 4)
}

#[inline(always)]
fn write_v4(
    packet: &Packet<'_>,
    offset: usize,
    tunnel: &Tunnel,
    protocol: u8,
    traffic_class: u8,
    inner_length: u32,
) -> Result<(), Reason> {
    let (Some(source_be), Some(destination_be)) =
        (tunnel.source.as_v4(), tunnel.destination.as_v4())
    else {
        return Err(Reason::NotReady);
    };
    let total_length = inner_length as u16 + IPV4_LENGTH as u16;
    let outer = packet.header::<Ipv4Header>(offset)?;
    let (s, d) = (source_be.to_ne_bytes(), destination_be.to_ne_bytes());
    let word = |a, b| u32::from(u16::from_be_bytes([a, b]));
    let sum = word(0x45, traffic_class)
        + u32::from(total_length)
        + u32::from(u16::from_be(DO_NOT_FRAGMENT_BE))
        + word(OUTER_TTL, protocol)
        + word(s[0], s[1])
        + word(s[2], s[3])
        + word(d[0], d[1])
        + word(d[2], d[3]);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe {
        (*outer).version_ihl = 0x45;
        (*outer).tos = traffic_class;
        (*outer).total_length_be = total_length.to_be();
        (*outer).id_be = 0;
        (*outer).fragment_be = DO_NOT_FRAGMENT_BE;
        (*outer).ttl = OUTER_TTL;
        (*outer).protocol = protocol;
        (*outer).checksum = (!(sum as u16)).to_be();
        (*outer).source_be = source_be;
        (*outer).destination_be = destination_be;
    }
    Ok(())
}

#[inline(always)]
fn write_v6(
    packet: &Packet<'_>,
    offset: usize,
    tunnel: &Tunnel,
    protocol: u8,
    traffic_class: u8,
    inner_length: u32,
) -> Result<(), Reason> {
    let outer = packet.header::<Ipv6Header>(offset)?;
    // SAFETY: `header` checked the bounds; nothing else refers to the frame here.
    unsafe {
        (*outer).version_class = 0x60 | traffic_class >> 4;
        (*outer).class_label = traffic_class << 4;
        (*outer).label = 0;
        (*outer).payload_length_be = (inner_length as u16).to_be();
        (*outer).next_header = protocol;
        (*outer).hop_limit = OUTER_TTL;
        (*outer).source = tunnel.source.0;
        (*outer).destination = tunnel.destination.0;
    }
    Ok(())
}
