//! Virtual services in attributes. Those that are not known here are passed over: later kernels have
//! more of them. Pure.

use std::{fmt, net::IpAddr};

use super::{
    address::{exact, family, ip, is_v6, octets},
    stats::Stats,
};
use crate::dataplane::genetlink::attribute::{Attribute, CodecError, Writer, attributes};

/// IPVS_SVC_ATTR_*.
mod attr {
    pub const FAMILY: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 4;
    pub const MARK: u16 = 5;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
    pub const STATS: u16 = 10;
    pub const ENGINE: u16 = 11;
    pub const STATS64: u16 = 12;
}

/// Flags of services: IP_VS_SVC_F_*.
pub mod flags {
    /// Clients stick to their real server.
    pub const PERSISTENT: u32 = 0x01;
    /// The kernel's own: the service is in its table.
    pub const HASHED: u32 = 0x02;
    /// Each packet is scheduled for itself.
    pub const ONE_PACKET: u32 = 0x04;
    /// `sh-fallback`, `mh-fallback`.
    pub const FALLBACK: u32 = 0x08;
    /// `sh-port`, `mh-port`.
    pub const PORT: u32 = 0x10;
}

/// What identifies a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// By protocol number, address and port; port 0 is any.
    Address(u8, IpAddr, u16),
    /// By the mark that packets get from a firewall.
    Mark {
        /// The mark.
        mark: u32,
        /// Packets of IPv6 rather than IPv4.
        v6: bool,
    },
}

impl Key {
    /// Whether its packets are IPv6.
    pub const fn is_v6(&self) -> bool {
        match self {
            Key::Address(_, address, _) => address.is_ipv6(),
            Key::Mark { v6, .. } => *v6,
        }
    }
}

/// As `ipvsadm -Ln` names services.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(protocol, address, port) => {
                match protocol {
                    6 => f.write_str("TCP ")?,
                    17 => f.write_str("UDP ")?,
                    132 => f.write_str("SCTP ")?,
                    other => write!(f, "{other} ")?,
                }
                match address {
                    IpAddr::V4(address) => write!(f, "{address}:{port}"),
                    IpAddr::V6(address) => write!(f, "[{address}]:{port}"),
                }
            }
            Key::Mark { mark, v6: false } => write!(f, "FWM {mark}"),
            Key::Mark { mark, v6: true } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// A service's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which one.
    pub key: Key,
    /// Name of the kernel's scheduler, at most 15 bytes.
    pub scheduler: String,
    /// See [`flags`].
    pub flags: u32,
    /// How long clients stick, in seconds; 0 unless the flag is set.
    pub timeout_s: u32,
    /// How much of a client's address counts: a netmask for IPv4 (the first byte of the address in the
    /// highest bits), a prefix length for IPv6.
    pub netmask: u32,
    /// The engine that reads the calls of `sip`, if any.
    pub engine: Option<String>,
}

impl Service {
    /// What names a service where its settings do not count.
    pub fn bare(key: Key) -> Self {
        Self {
            key,
            scheduler: String::new(),
            flags: 0,
            timeout_s: 0,
            netmask: whole(key.is_v6()),
            engine: None,
        }
    }

    /// Writes the attributes in ipvsadm's order.
    pub fn write(&self, out: &mut Writer) {
        out.put_u16(attr::FAMILY, family(self.key.is_v6()));
        match self.key {
            Key::Address(protocol, address, port) => {
                out.put_u16(attr::PROTOCOL, u16::from(protocol));
                out.put(attr::ADDRESS, &octets(address));
                out.put_be16(attr::PORT, port);
            }
            Key::Mark { mark, .. } => out.put_u32(attr::MARK, mark),
        }
        out.put_text(attr::SCHEDULER, &self.scheduler);
        if let Some(engine) = &self.engine {
            out.put_text(attr::ENGINE, engine);
        }
        // Every bit is given, also those that are 0.
        let words = [self.flags.to_ne_bytes(), u32::MAX.to_ne_bytes()];
        out.put(attr::FLAGS, &words.concat());
        out.put_u32(attr::TIMEOUT, self.timeout_s);
        match self.key.is_v6() {
            true => out.put_u32(attr::NETMASK, self.netmask),
            false => out.put(attr::NETMASK, &self.netmask.to_be_bytes()),
        }
    }
}

/// A netmask that lets all of an address count.
pub const fn whole(v6: bool) -> u32 {
    if v6 { 128 } else { u32::MAX }
}

/// A service as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Settings.
    pub service: Service,
    /// Counters over all its real servers, also those that are gone.
    pub stats: Stats,
}

impl ServiceEntry {
    /// Reads the attributes of a service.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let (mut family, mut protocol, mut address, mut port, mut mark) =
            (None, None, None, None, None);
        let mut entry = Self {
            service: Service::bare(Key::Mark { mark: 0, v6: false }),
            stats: Stats::default(),
        };
        let mut netmask = None;
        let mut narrow = Stats::default();
        let mut wide = None;
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                attr::FAMILY => family = Some(is_v6(&attribute)?),
                attr::PROTOCOL => protocol = Some(byte(&attribute)?),
                attr::ADDRESS => address = Some(attribute),
                attr::PORT => port = Some(attribute.be16()?),
                attr::MARK => mark = Some(attribute.u32()?),
                attr::SCHEDULER => entry.service.scheduler = attribute.text(),
                attr::ENGINE => entry.service.engine = Some(attribute.text()),
                attr::FLAGS => entry.service.flags = first_word(&attribute)?,
                attr::TIMEOUT => entry.service.timeout_s = attribute.u32()?,
                attr::NETMASK => netmask = Some(attribute),
                attr::STATS => narrow = Stats::read(attribute.value)?,
                attr::STATS64 => wide = Some(Stats::read(attribute.value)?),
                _ => {}
            }
        }
        let v6 = family.ok_or(CodecError::Missing(attr::FAMILY))?;
        entry.service.key = match mark {
            Some(mark) => Key::Mark { mark, v6 },
            None => Key::Address(
                protocol.ok_or(CodecError::Missing(attr::PROTOCOL))?,
                ip(&address.ok_or(CodecError::Missing(attr::ADDRESS))?, v6)?,
                port.ok_or(CodecError::Missing(attr::PORT))?,
            ),
        };
        entry.service.netmask = match (netmask, v6) {
            (None, _) => whole(v6),
            (Some(mask), true) => mask.u32()?,
            (Some(mask), false) => mask.u32()?.to_be(),
        };
        entry.stats = wide.unwrap_or(narrow);
        Ok(entry)
    }
}

/// Protocol numbers come in two bytes.
fn byte(attribute: &Attribute<'_>) -> Result<u8, CodecError> {
    let value = attribute.u16()?;
    u8::try_from(value).map_err(|_| CodecError::Value {
        kind: attribute.kind,
        value: u32::from(value),
    })
}

/// Flags come with a mask behind them.
fn first_word(attribute: &Attribute<'_>) -> Result<u32, CodecError> {
    let octets: [u8; 8] = exact(attribute)?;
    Ok(u32::from_ne_bytes([
        octets[0], octets[1], octets[2], octets[3],
    ]))
}
