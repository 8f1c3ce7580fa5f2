//! Addresses as the XDP program has them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::Address;

/// The form of the BPF maps.
pub fn wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let bytes = address.octets();
            let word = |at: usize| {
                u64::from_ne_bytes([
                    bytes[at],
                    bytes[at + 1],
                    bytes[at + 2],
                    bytes[at + 3],
                    bytes[at + 4],
                    bytes[at + 5],
                    bytes[at + 6],
                    bytes[at + 7],
                ])
            };
            Address([word(0), word(8)])
        }
    }
}

/// The reverse of [`wire`].
pub fn from_wire(address: Address) -> IpAddr {
    match address.as_v4() {
        Some(be) => Ipv4Addr::from(be.to_ne_bytes()).into(),
        None => {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.0[0].to_ne_bytes());
            bytes[8..].copy_from_slice(&address.0[1].to_ne_bytes());
            Ipv6Addr::from(bytes).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        for text in [
            "10.1.15.50",
            "255.255.255.255",
            "2001:db8::1:2:3",
            "::1",
            "fe80::1",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_wire(wire(address)), address);
        }
    }
}
