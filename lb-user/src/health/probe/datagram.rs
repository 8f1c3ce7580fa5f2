//! A UDP socket that talks to one address and hears of its errors.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::UdpSocket;

use super::Place;

/// Opens and connects. The kernel then reports what ICMP says of the target, which it otherwise keeps
/// to itself where it may be passing: no such host, no such network.
pub(super) fn open(place: &Place) -> io::Result<UdpSocket> {
    let any: IpAddr = match place.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = SocketAddr::new(place.source.unwrap_or(any), 0);
    let socket = std::net::UdpSocket::bind(source)?;
    if let Some(via) = place.via {
        SockRef::from(&socket).set_mark(via.mark)?;
    }
    socket.set_nonblocking(true)?;
    match place.target {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    socket.connect(place.peer())?;
    UdpSocket::from_std(socket)
}
