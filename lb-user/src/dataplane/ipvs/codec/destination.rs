//! Real servers in attributes. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    address::{family, ip, is_v6, octets},
    stats::Stats,
};
use crate::dataplane::genetlink::attribute::{CodecError, Writer, attributes};

/// IPVS_DEST_ATTR_*.
mod attr {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FORWARD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER: u16 = 5;
    pub const LOWER: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
    pub const PERSISTENT: u16 = 9;
    pub const STATS: u16 = 10;
    pub const FAMILY: u16 = 11;
    pub const STATS64: u16 = 12;
    pub const TUNNEL_TYPE: u16 = 13;
    pub const TUNNEL_PORT: u16 = 14;
    pub const TUNNEL_FLAGS: u16 = 15;
}

/// How packets reach a real server: IP_VS_CONN_F_FWD_MASK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Address and port are translated.
    Masquerade,
    /// To the director's own stack.
    Local,
    /// In a tunnel.
    Tunnel,
    /// Direct return.
    Route,
    /// Past the service, to where the client wanted.
    Bypass,
    /// One that this program does not know.
    Other(u8),
}

impl Forward {
    /// What a number of the kernel's means; it has three bits. A way that nobody has heard of is somebody else's, and no
    /// reason not to read the rest.
    fn of(number: u32) -> Result<Self, CodecError> {
        match number {
            0 => Ok(Forward::Masquerade),
            1 => Ok(Forward::Local),
            2 => Ok(Forward::Tunnel),
            3 => Ok(Forward::Route),
            4 => Ok(Forward::Bypass),
            5..=7 => Ok(Forward::Other(number as u8)),
            _ => Err(CodecError::Value {
                kind: attr::FORWARD,
                value: number,
            }),
        }
    }

    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            Forward::Masquerade => 0,
            Forward::Local => 1,
            Forward::Tunnel => 2,
            Forward::Route => 3,
            Forward::Bypass => 4,
            Forward::Other(number) => number as u32,
        }
    }

    /// The word that ipvsadm prints.
    pub const fn label(self) -> &'static str {
        match self {
            Forward::Masquerade => "Masq",
            Forward::Local => "Local",
            Forward::Tunnel => "Tunnel",
            Forward::Route => "Route",
            Forward::Bypass => "Bypass",
            Forward::Other(_) => "Other",
        }
    }
}

/// How packets to a real server are wrapped: IP_VS_CONN_F_TUNNEL_TYPE_*, kept also where they are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wrapping {
    /// 0 is IP in IP, 1 GUE, 2 GRE.
    pub kind: u8,
    /// UDP port of GUE; 0 with all else.
    pub port: u16,
    /// IP_VS_TUNNEL_ENCAP_FLAG_*: 1 is a checksum, 2 a remote one.
    pub flags: u16,
}

/// A real server's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// Its port; that of the service unless addresses are translated.
    pub port: u16,
    /// How packets reach it.
    pub forward: Forward,
    /// How they are wrapped on the way, in a tunnel.
    pub wrapping: Wrapping,
    /// Share of new connections; 0 gets none.
    pub weight: u32,
    /// From this many connections on it gets no new ones; 0 is no limit.
    pub upper: u32,
    /// Below this many it gets new ones again; 0 is three quarters of `upper`.
    pub lower: u32,
}

impl Destination {
    /// Writes the attributes in ipvsadm's order.
    pub fn write(&self, out: &mut Writer) {
        out.put_u16(attr::FAMILY, family(self.address.is_ipv6()));
        out.put(attr::ADDRESS, &octets(self.address));
        out.put_be16(attr::PORT, self.port);
        out.put_u32(attr::FORWARD, self.forward.number());
        out.put_u32(attr::WEIGHT, self.weight);
        out.put_u8(attr::TUNNEL_TYPE, self.wrapping.kind);
        out.put_be16(attr::TUNNEL_PORT, self.wrapping.port);
        out.put_u16(attr::TUNNEL_FLAGS, self.wrapping.flags);
        out.put_u32(attr::UPPER, self.upper);
        out.put_u32(attr::LOWER, self.lower);
    }
}

/// A real server as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationEntry {
    /// Settings.
    pub destination: Destination,
    /// Established connections.
    pub active: u32,
    /// Others.
    pub inactive: u32,
    /// Clients that stick to it.
    pub persistent: u32,
    /// Counters.
    pub stats: Stats,
}

impl DestinationEntry {
    /// Reads the attributes of a real server of a service of this family. Kernels before 3.18 do not
    /// tell its own.
    pub fn read(bytes: &[u8], service_v6: bool) -> Result<Self, CodecError> {
        let mut v6 = service_v6;
        let (mut address, mut port, mut forward) = (None, None, None);
        let mut entry = Self {
            destination: Destination {
                address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                port: 0,
                forward: Forward::Masquerade,
                wrapping: Wrapping::default(),
                weight: 0,
                upper: 0,
                lower: 0,
            },
            active: 0,
            inactive: 0,
            persistent: 0,
            stats: Stats::default(),
        };
        let mut wide = None;
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                attr::FAMILY => v6 = is_v6(&attribute)?,
                attr::ADDRESS => address = Some(attribute),
                attr::PORT => port = Some(attribute.be16()?),
                attr::FORWARD => forward = Some(attribute.u32()?),
                attr::WEIGHT => entry.destination.weight = attribute.u32()?,
                attr::UPPER => entry.destination.upper = attribute.u32()?,
                attr::LOWER => entry.destination.lower = attribute.u32()?,
                attr::ACTIVE => entry.active = attribute.u32()?,
                attr::INACTIVE => entry.inactive = attribute.u32()?,
                attr::PERSISTENT => entry.persistent = attribute.u32()?,
                attr::STATS => entry.stats = Stats::read(attribute.value)?,
                attr::STATS64 => wide = Some(Stats::read(attribute.value)?),
                attr::TUNNEL_TYPE => entry.destination.wrapping.kind = attribute.u8()?,
                attr::TUNNEL_PORT => entry.destination.wrapping.port = attribute.be16()?,
                attr::TUNNEL_FLAGS => entry.destination.wrapping.flags = attribute.u16()?,
                _ => {}
            }
        }
        let missing = CodecError::Missing;
        entry.destination.address = ip(&address.ok_or(missing(attr::ADDRESS))?, v6)?;
        entry.destination.port = port.ok_or(missing(attr::PORT))?;
        let number = forward.ok_or(missing(attr::FORWARD))?;
        entry.destination.forward = Forward::of(number)?;
        entry.stats = wide.unwrap_or(entry.stats);
        Ok(entry)
    }
}
