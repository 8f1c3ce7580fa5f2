//! Asks by ARP who has an address, and hears everybody who says so: only one host should.

use std::{
    io::{self, Read},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::arp;

/// Answers that are heard at most: a segment has not more directors and real servers.
const MOST: usize = 1_024;
/// The longest Ethernet frame; ARP's are shorter.
const FRAME: usize = 1_514;

/// Who asks, and where.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Interface index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// An address of ours on that network.
    pub address: Ipv4Addr,
}

/// Everybody on the interface's segment who says within `wait` that he has one of `targets`, once.
/// Blocks. Needs CAP_NET_RAW.
pub fn who_has(
    asker: Asker,
    targets: &[Ipv4Addr],
    wait: Duration,
) -> io::Result<Vec<(Ipv4Addr, [u8; 6])>> {
    let protocol = (libc::ETH_P_ARP as u16).to_be();
    let kind = Some(Protocol::from(i32::from(protocol)));
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, kind)?;
    socket.bind(&link_address(asker.ifindex, protocol)?)?;
    for target in targets {
        socket.send(&arp::request(asker.mac, asker.address, *target))?;
    }
    let until = Instant::now() + wait;
    let mut heard = Vec::new();
    let mut frame = [0; FRAME];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || heard.len() >= MOST {
            return Ok(heard);
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.read(&mut frame) {
            Ok(length) => length,
            Err(error) if is_late(&error) => return Ok(heard),
            Err(error) => return Err(error),
        };
        if let Some(answer) = frame.get(..length).and_then(arp::answer)
            && targets.contains(&answer.0)
            && !heard.contains(&answer)
        {
            heard.push(answer);
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind())
}

fn link_address(ifindex: u32, protocol_be: u16) -> io::Result<SockAddr> {
    let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` fits into the storage and any zeroed value of it is valid.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as libc::sa_family_t;
    link.sll_protocol = protocol_be;
    link.sll_ifindex = ifindex;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a complete `sockaddr_ll` of this length.
    Ok(unsafe { SockAddr::new(storage, length) })
}
