//! Raw sockets for VRRP: one per interface, multicast in, complete IP packets out.

use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::packet;

/// Linux's TC_PRIO_CONTROL: adverts overtake bulk traffic in the queue.
const PRIORITY_CONTROL: u32 = 7;
/// Longer than any advert; what does not fit is judged truncated.
const BUFFER: usize = 2048;

/// The socket of one interface.
pub struct VrrpSocket {
    socket: Socket,
    ifindex: u32,
    groups: Vec<Ipv4Addr>,
}

impl VrrpSocket {
    /// Opens a socket that hears and speaks only on this interface. Needs CAP_NET_RAW.
    pub fn open(interface: &str, ifindex: u32) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(packet::PROTOCOL));
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_header_included_v4(true)?;
        // A router that hears itself would believe in a second master.
        socket.set_multicast_loop_v4(false)?;
        socket.set_priority(PRIORITY_CONTROL)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            ifindex,
            groups: Vec::new(),
        })
    }

    /// Joins a group unless it is joined already.
    pub fn join(&mut self, group: Ipv4Addr) -> io::Result<()> {
        if !self.groups.contains(&group) {
            let interface = InterfaceIndexOrAddress::Index(self.ifindex);
            self.socket.join_multicast_v4_n(&group, &interface)?;
            self.groups.push(group);
        }
        Ok(())
    }

    /// Interface index the socket was opened for.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Sends a complete IP packet.
    pub fn send(&self, packet: &[u8], group: Ipv4Addr) -> io::Result<()> {
        self.socket
            .send_to(packet, &SocketAddrV4::new(group, 0).into())
            .map(|_| ())
    }

    /// The next packet, IP header first, or `None` when there is none.
    pub fn receive<'b>(&self, buffer: &'b mut Buffer) -> io::Result<Option<&'b [u8]>> {
        match self.socket.recv(&mut buffer.0) {
            Ok(length) => {
                // SAFETY: the kernel wrote the first `length` bytes.
                let bytes = unsafe { buffer.0[..length].assume_init_ref() };
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for one packet.
pub struct Buffer([MaybeUninit<u8>; BUFFER]);

impl Buffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); BUFFER])
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}
