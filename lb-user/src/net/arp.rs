//! Gratuitous ARP (RFC 5227 section 3, RFC 3768 section 6.4.1). Pure.

use std::net::Ipv4Addr;

const BROADCAST: [u8; 6] = [0xff; 6];

/// Length of the frame without padding.
pub const LENGTH: usize = 42;

/// The announcement that `address` is at `mac`: an ARP request whose sender and target are the
/// address, to everybody. The target MAC is broadcast as well, as keepalived sends it.
pub fn announcement(mac: [u8; 6], address: Ipv4Addr) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[0..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&0x0806_u16.to_be_bytes());
    // Ethernet, IPv4, their address lengths, request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[32..38].copy_from_slice(&BROADCAST);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let frame = announcement([2, 0, 0, 0, 0, 0x43], Ipv4Addr::new(10, 1, 15, 50));
        let expected: [u8; LENGTH] = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x43, 0x08, 0x06, 0, 1, 8, 0, 6,
            4, 0, 1, 0x02, 0, 0, 0, 0, 0x43, 10, 1, 15, 50, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10,
            1, 15, 50,
        ];
        assert_eq!(frame, expected);
    }
}
