//! Adverts that come from the virtual MAC address (RFC 9568 section 7.3): whole frames, sent on the
//! interface itself. So a router needs nothing else to be ready when it becomes master.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{MsgFlags, SockaddrLike, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    packet::{PROTOCOL, TOS, TTL},
    socket::PRIORITY_CONTROL,
};

const ETHERNET: usize = 14;
const IPV6: usize = 40;
const IPV4_TYPE: u16 = 0x0800;
const IPV6_TYPE: u16 = 0x86dd;

/// A packet socket that only sends.
pub struct FrameSocket {
    socket: Socket,
    to: SockaddrStorage,
}

impl FrameSocket {
    /// Sends on this interface. Needs CAP_NET_RAW.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        // Protocol 0: nothing is ever received.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_priority(PRIORITY_CONTROL)?;
        socket.set_nonblocking(true)?;
        // SAFETY: every field of `sockaddr_ll` is a number.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as libc::sa_family_t;
        to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        to.sll_halen = 6;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to a complete `sockaddr_ll` of this length and family.
        let to = unsafe { SockaddrStorage::from_raw((&raw const to).cast(), Some(length)) };
        let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { socket, to })
    }

    /// Sends a complete IPv4 packet, or an IPv6 message from `source`, to a group.
    pub fn send(
        &self,
        mac: [u8; 6],
        packet: &[u8],
        source: IpAddr,
        group: IpAddr,
    ) -> io::Result<()> {
        let mut header = [0; ETHERNET + IPV6];
        let length = write_headers(&mut header, mac, packet.len(), source, group);
        let parts = [IoSlice::new(&header[..length]), IoSlice::new(packet)];
        sendmsg(
            self.socket.as_raw_fd(),
            &parts,
            &[],
            MsgFlags::empty(),
            Some(&self.to),
        )?;
        Ok(())
    }
}

/// Ethernet header, and for IPv6 the IP header, whose message is `length` bytes long. Returns how
/// long they are.
fn write_headers(
    header: &mut [u8; ETHERNET + IPV6],
    mac: [u8; 6],
    length: usize,
    source: IpAddr,
    group: IpAddr,
) -> usize {
    header[..6].copy_from_slice(&group_mac(group));
    header[6..12].copy_from_slice(&mac);
    let (IpAddr::V6(source), IpAddr::V6(group)) = (source, group) else {
        header[12..14].copy_from_slice(&IPV4_TYPE.to_be_bytes());
        return ETHERNET;
    };
    header[12..14].copy_from_slice(&IPV6_TYPE.to_be_bytes());
    write_ipv6(&mut header[ETHERNET..], length, source, group);
    ETHERNET + IPV6
}

/// RFC 8200 section 3.
fn write_ipv6(header: &mut [u8], length: usize, source: Ipv6Addr, group: Ipv6Addr) {
    let first = 6 << 28 | u32::from(TOS) << 20;
    header[..4].copy_from_slice(&first.to_be_bytes());
    // An advert of 255 addresses has 4,088 bytes.
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&[PROTOCOL, TTL]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&group.octets());
}

/// The MAC address of a group (RFC 1112 section 6.4, RFC 2464 section 7).
fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    /// Read by a crate that shares no code with this.
    #[test]
    fn an_independent_reader_agrees() {
        let mac = [0, 0, 0x5e, 0, 2, 16];
        let (source, group) = ("fe80::43".parse().unwrap(), "ff02::12".parse().unwrap());
        let mut header = [0; ETHERNET + IPV6];
        let length = write_headers(&mut header, mac, 24, source, group);
        let frame = [&header[..length], &[0; 24]].concat();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let etherparse::LinkSlice::Ethernet2(link) = packet.link.unwrap() else {
            panic!("not Ethernet");
        };
        assert_eq!(link.source(), mac);
        assert_eq!(link.destination(), [0x33, 0x33, 0, 0, 0, 0x12]);
        let etherparse::NetSlice::Ipv6(ip) = packet.net.unwrap() else {
            panic!("not IPv6");
        };
        let header = ip.header();
        assert_eq!((header.hop_limit(), header.next_header().0), (255, 112));
        assert_eq!(header.traffic_class(), 0xc0);
        assert_eq!(IpAddr::V6(header.source_addr()), source);
        assert_eq!(IpAddr::V6(header.destination_addr()), group);
        assert_eq!(header.payload_length(), 24);
    }

    #[test]
    fn macs_of_groups() {
        let rows = [
            ("224.0.0.18", [1, 0, 0x5e, 0, 0, 0x12]),
            ("224.143.15.15", [1, 0, 0x5e, 0x0f, 0x0f, 0x0f]),
            ("ff02::12", [0x33, 0x33, 0, 0, 0, 0x12]),
        ];
        for (group, mac) in rows {
            assert_eq!(group_mac(group.parse().unwrap()), mac, "{group}");
        }
    }
}
