//! Sends gratuitous ARP through a packet socket.

use std::{io, net::Ipv4Addr};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::arp;

/// A packet socket that only sends.
pub struct Announcer {
    socket: Socket,
}

impl Announcer {
    /// Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        // Protocol 0: nothing is ever received.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Announces that `address` is at `mac`, on one interface.
    pub fn announce(&self, ifindex: u32, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
        let frame = arp::announcement(mac, address);
        let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: `sockaddr_ll` fits into the storage and any zeroed value of it is valid.
        let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        link.sll_family = libc::AF_PACKET as libc::sa_family_t;
        link.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
        link.sll_ifindex = ifindex;
        link.sll_halen = 6;
        link.sll_addr[..6].fill(0xff);
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the storage holds a complete `sockaddr_ll` of this length.
        let to = unsafe { SockAddr::new(storage, length) };
        self.socket.send_to(&frame, &to).map(|_| ())
    }
}
