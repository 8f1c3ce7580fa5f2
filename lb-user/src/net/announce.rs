//! Sends gratuitous ARP and unsolicited neighbour advertisements through a packet socket.

use std::{io, net::IpAddr};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{arp, ndisc};

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

    /// Announces that `address` is at `mac`, on one interface. `router`: whether this host forwards
    /// IPv6 there.
    pub fn announce(
        &self,
        ifindex: u32,
        mac: [u8; 6],
        address: IpAddr,
        router: bool,
    ) -> io::Result<()> {
        match address {
            IpAddr::V4(v4) => self.send(
                ifindex,
                libc::ETH_P_ARP as u16,
                [0xff; 6],
                &arp::announcement(mac, v4),
            ),
            IpAddr::V6(v6) => self.send(
                ifindex,
                libc::ETH_P_IPV6 as u16,
                ndisc::ALL_NODES_MAC,
                &ndisc::announcement(mac, v6, router),
            ),
        }
    }

    fn send(&self, ifindex: u32, protocol: u16, to: [u8; 6], frame: &[u8]) -> io::Result<()> {
        let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: `sockaddr_ll` fits into the storage and any zeroed value of it is valid.
        let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        link.sll_family = libc::AF_PACKET as libc::sa_family_t;
        link.sll_protocol = protocol.to_be();
        link.sll_ifindex = ifindex;
        link.sll_halen = 6;
        link.sll_addr[..6].copy_from_slice(&to);
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the storage holds a complete `sockaddr_ll` of this length.
        let to = unsafe { SockAddr::new(storage, length) };
        self.socket.send_to(frame, &to).map(|_| ())
    }
}
