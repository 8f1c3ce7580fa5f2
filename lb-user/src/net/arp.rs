//! ARP (RFC 826): announcements (RFC 5227 section 3, RFC 3768 section 6.4.1), questions and answers. Pure.

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

/// The question of `address` at `mac` who has `target`, to everybody.
pub fn request(mac: [u8; 6], address: Ipv4Addr, target: Ipv4Addr) -> [u8; LENGTH] {
    let mut frame = announcement(mac, address);
    frame[32..38].fill(0);
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// Whose address a reply says is where. `None` for anything else than an ARP reply over Ethernet.
pub fn answer(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let head = frame.get(12..22)?;
    if head != [8, 6, 0, 1, 8, 0, 6, 4, 0, 2] {
        return None;
    }
    let mac: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
    let address: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    Some((address.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let (own, other) = ([2, 0, 0, 0, 0, 0x43], [2, 0, 0, 0, 0, 0x45]);
        let vip = Ipv4Addr::new(10, 1, 15, 50);
        let question = request(own, Ipv4Addr::new(10, 1, 15, 43), vip);
        assert_eq!(question[38..], [10, 1, 15, 50]);
        assert_eq!(question[28..32], [10, 1, 15, 43]);
        assert_eq!(answer(&question), None, "a question is no answer");
        let mut reply = request(other, vip, Ipv4Addr::new(10, 1, 15, 43)).to_vec();
        reply[21] = 2;
        assert_eq!(answer(&reply), Some((vip, other)));
        for cut in 0..32 {
            assert_eq!(answer(&reply[..cut]), None, "{cut} bytes");
        }
    }

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
