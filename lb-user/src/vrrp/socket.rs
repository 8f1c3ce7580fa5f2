//! Raw sockets for VRRP: one per interface, family and protocol. Over IPv4 complete packets go in
//! and out; over IPv6 the kernel keeps the header, and tells of it beside the message.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::OnceLock,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{
    control,
    frame::FrameSocket,
    packet::{self, Received, Rejection},
};
use crate::model::{Auth, Instance};

/// Linux's TC_PRIO_CONTROL: adverts overtake bulk traffic in the queue.
pub(super) const PRIORITY_CONTROL: u32 = 7;
/// Room for the adverts of 255 instances that all speak at the same moment, as after a start: about 1300
/// bytes each, as the kernel counts. Its default holds 160.
pub(super) const RECEIVE_BUFFER: usize = 1 << 20;
/// What the kernel counts for the smallest packet in a queue, with its own share.
pub(super) const SMALLEST_PACKET: usize = 768;
/// Longer than any advert over Ethernet; what does not fit is judged truncated.
const BUFFER: usize = 8192;

/// A packet's sender, if that is known, and what it says.
pub type Heard<'b> = (Option<IpAddr>, Result<Received<'b>, Rejection>);

/// Which packets a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// VRRP over IPv4.
    V4,
    /// VRRP behind an authentication header, over IPv4.
    Ah,
    /// VRRP over IPv6.
    V6,
}

impl Kind {
    /// What an instance needs.
    pub fn of(instance: &Instance) -> Self {
        match (instance.is_v6(), &instance.auth) {
            (true, _) => Kind::V6,
            (false, Auth::Ah(_)) => Kind::Ah,
            (false, Auth::None | Auth::Pass(_) | Auth::Hmac(_)) => Kind::V4,
        }
    }

    fn protocol(self) -> Protocol {
        let number = match self {
            Kind::V4 | Kind::V6 => packet::PROTOCOL,
            Kind::Ah => packet::PROTOCOL_AH,
        };
        Protocol::from(i32::from(number))
    }
}

/// A socket of one interface.
pub struct VrrpSocket {
    socket: Socket,
    kind: Kind,
    ifindex: u32,
    /// For adverts from a virtual MAC address.
    frames: OnceLock<FrameSocket>,
}

impl VrrpSocket {
    /// Opens a socket that hears and speaks only on this interface. Needs CAP_NET_RAW.
    pub fn open(interface: &str, ifindex: u32, kind: Kind) -> io::Result<Self> {
        let domain = match kind {
            Kind::V4 | Kind::Ah => Domain::IPV4,
            Kind::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(kind.protocol()))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        // A router that hears itself would believe in a second master.
        match kind {
            Kind::V4 | Kind::Ah => {
                socket.set_header_included_v4(true)?;
                socket.set_multicast_loop_v4(false)?;
            }
            Kind::V6 => {
                socket.set_multicast_loop_v6(false)?;
                socket.set_multicast_if_v6(ifindex)?;
                socket.set_tclass_v6(u32::from(packet::TOS))?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            }
        }
        // Without the right to force it, as much as anybody may have.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.set_priority(PRIORITY_CONTROL)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            kind,
            ifindex,
            frames: OnceLock::new(),
        })
    }

    /// Makes it able to send from virtual MAC addresses. Needs CAP_NET_RAW.
    pub fn open_frames(&self) -> io::Result<()> {
        if self.frames.get().is_none() {
            // Nobody else opens one at the same time.
            let _ = self.frames.set(FrameSocket::open(self.ifindex)?);
        }
        Ok(())
    }

    /// As [`VrrpSocket::send`], to a group, from a virtual MAC address.
    pub fn send_from_mac(
        &self,
        mac: [u8; 6],
        packet: &[u8],
        source: IpAddr,
        group: IpAddr,
    ) -> io::Result<()> {
        match self.frames.get() {
            Some(frames) => frames.send(mac, packet, source, group),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Joins a group. Waits for the kernel's network lock.
    pub fn join(&self, group: IpAddr) -> io::Result<()> {
        match group {
            IpAddr::V4(v4) => {
                let interface = InterfaceIndexOrAddress::Index(self.ifindex);
                self.socket.join_multicast_v4_n(&v4, &interface)
            }
            IpAddr::V6(v6) => self.socket.join_multicast_v6(&v6, self.ifindex),
        }
    }

    /// Leaves a group. An interface that is gone has left it already.
    pub fn leave(&self, group: IpAddr) {
        let _ = match group {
            IpAddr::V4(v4) => {
                let interface = InterfaceIndexOrAddress::Index(self.ifindex);
                self.socket.leave_multicast_v4_n(&v4, &interface)
            }
            IpAddr::V6(v6) => self.socket.leave_multicast_v6(&v6, self.ifindex),
        };
    }

    /// Interface index the socket was opened for.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Sends a complete IPv4 packet, or an IPv6 message from `source` with this hop limit.
    pub fn send(
        &self,
        packet: &[u8],
        source: IpAddr,
        destination: IpAddr,
        hop_limit: u8,
    ) -> io::Result<()> {
        match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let to = SocketAddrV6::new(destination, 0, 0, self.ifindex);
                control::send(&self.socket, packet, source, to, hop_limit)
            }
            (_, IpAddr::V4(destination)) => self
                .socket
                .send_to(packet, &SocketAddrV4::new(destination, 0).into())
                .map(|_| ()),
            (IpAddr::V4(_), IpAddr::V6(_)) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The next packet, or `None` when there is none.
    pub fn receive<'b>(&self, buffer: &'b mut Buffer) -> io::Result<Option<Heard<'b>>> {
        let result = match self.kind {
            Kind::V4 | Kind::Ah => self.receive_v4(buffer).map(|bytes| {
                let source = bytes
                    .get(12..16)
                    .map(|b| IpAddr::from([b[0], b[1], b[2], b[3]]));
                (source, packet::decode(bytes))
            }),
            Kind::V6 => self.receive_v6(buffer),
        };
        match result {
            Ok(heard) => Ok(Some(heard)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive_v4<'b>(&self, buffer: &'b mut Buffer) -> io::Result<&'b [u8]> {
        let length = rustix::io::read(&self.socket, &mut buffer.message[..])?;
        Ok(&buffer.message[..length])
    }

    fn receive_v6<'b>(&self, buffer: &'b mut Buffer) -> io::Result<Heard<'b>> {
        let mut parts = [IoSliceMut::new(&mut buffer.message[..])];
        let got = recvmsg::<SockaddrIn6>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut buffer.control),
            MsgFlags::empty(),
        )?;
        let (mut destination, mut hop_limit) = (None, None);
        for message in got.cmsgs()? {
            match message {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        let (source, length) = (got.address.map(|address| address.ip()), got.bytes);
        let message = &buffer.message[..length];
        let received = match (source, destination, hop_limit) {
            (Some(source), Some(destination), Some(hop_limit)) => {
                packet::decode_v6(source, destination, hop_limit, message)
            }
            _ => Err(Rejection::NotVrrp),
        };
        Ok((source.map(IpAddr::V6), received))
    }
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for one packet.
pub struct Buffer {
    message: Box<[u8; BUFFER]>,
    control: Vec<u8>,
}

impl Buffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self {
            message: Box::new([0; BUFFER]),
            control: nix::cmsg_space!(libc::in6_pktinfo, libc::c_int),
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}
