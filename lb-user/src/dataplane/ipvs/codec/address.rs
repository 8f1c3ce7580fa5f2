//! Addresses and their families in attributes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dataplane::genetlink::attribute::{Attribute, CodecError};

/// AF_INET and AF_INET6.
const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;

/// The kernel's number of a family.
pub const fn family(v6: bool) -> u16 {
    if v6 { FAMILY_V6 } else { FAMILY_V4 }
}

/// The union that the kernel has for addresses: 16 bytes, of which IPv4 uses the first four.
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address of this family.
pub fn ip(attribute: &Attribute<'_>, v6: bool) -> Result<IpAddr, CodecError> {
    if v6 {
        let octets: [u8; 16] = exact(attribute)?;
        return Ok(Ipv6Addr::from(octets).into());
    }
    let first = attribute.value.first_chunk::<4>();
    let octets = first.ok_or(CodecError::Size(attribute.kind))?;
    Ok(Ipv4Addr::from(*octets).into())
}

/// A value of exactly this size.
pub fn exact<const N: usize>(attribute: &Attribute<'_>) -> Result<[u8; N], CodecError> {
    <[u8; N]>::try_from(attribute.value).map_err(|_| CodecError::Size(attribute.kind))
}

/// Whether a family is that of IPv6.
pub fn is_v6(attribute: &Attribute<'_>) -> Result<bool, CodecError> {
    match attribute.u16()? {
        FAMILY_V4 => Ok(false),
        FAMILY_V6 => Ok(true),
        other => Err(CodecError::Value {
            kind: attribute.kind,
            value: u32::from(other),
        }),
    }
}
