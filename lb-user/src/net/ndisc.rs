//! Unsolicited neighbour advertisements (RFC 4861 sections 4.4 and 7.2.6, RFC 9568 section 6.4.2).
//! Pure.

use std::net::Ipv6Addr;

use lb_common::checksum;

/// Every host of the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The MAC address of [`ALL_NODES`].
pub const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Receivers demand it: the packet was not routed.
const HOP_LIMIT: u8 = 255;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const IP: usize = 14;
const ICMP: usize = IP + 40;

/// Length of the frame.
pub const LENGTH: usize = ICMP + 32;

/// The announcement that `address` is at `mac`, to every host. `router`: whether this host forwards
/// packets.
pub fn announcement(mac: [u8; 6], address: Ipv6Addr, router: bool) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[0..6].copy_from_slice(&ALL_NODES_MAC);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&0x86dd_u16.to_be_bytes());
    frame[IP] = 0x60;
    let length = (LENGTH - ICMP) as u16;
    frame[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
    frame[IP + 6..IP + 8].copy_from_slice(&[ICMPV6, HOP_LIMIT]);
    frame[IP + 8..IP + 24].copy_from_slice(&address.octets());
    frame[IP + 24..IP + 40].copy_from_slice(&ALL_NODES.octets());
    frame[ICMP] = NEIGHBOUR_ADVERTISEMENT;
    frame[ICMP + 4] = if router { ROUTER | OVERRIDE } else { OVERRIDE };
    frame[ICMP + 8..ICMP + 24].copy_from_slice(&address.octets());
    // In units of eight bytes.
    frame[ICMP + 24..ICMP + 26].copy_from_slice(&[TARGET_LINK_LAYER_ADDRESS, 1]);
    frame[ICMP + 26..ICMP + 32].copy_from_slice(&mac);
    let start = u32::from(length) + u32::from(ICMPV6);
    // Both addresses of the pseudo-header stand in front of the message.
    let sum = checksum::finish(checksum::sum(start, &frame[IP + 8..]));
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    /// Read by a crate that shares no code with this.
    #[test]
    fn an_independent_reader_agrees() {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
        let mac = [2, 0, 0, 0, 0, 0x43];
        for (router, flags) in [(false, 0x20), (true, 0xa0)] {
            let frame = announcement(mac, address, router);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
                (packet.net, packet.transport)
            else {
                panic!("not ICMPv6");
            };
            let header = ip.header();
            assert_eq!(header.hop_limit(), 255);
            assert_eq!(header.source_addr(), address);
            assert_eq!(header.destination_addr(), ALL_NODES);
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (136, 0));
            assert_eq!(icmp.bytes5to8(), [flags, 0, 0, 0]);
            assert_eq!(icmp.payload()[..16], address.octets());
            assert_eq!(icmp.payload()[16..], [2, 1, 2, 0, 0, 0, 0, 0x43]);
        }
    }
}
