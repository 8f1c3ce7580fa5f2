//! An ICMP echo request and its reply: RFC 792 and RFC 4443, section 4.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use lb_common::checksum;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::UdpSocket;

use super::{Late, Place};

/// Packets that are looked at in one attempt. The socket hears everything that the target sends by ICMP,
/// replies to all other checks of it among them.
const MAX_PACKETS: usize = 4_096;
/// Longest IPv4 header, 60 bytes, and the eight of ours that count.
const BUFFER: usize = 128;
const PAYLOAD: [u8; 8] = *b"lbd echo";

/// Why there is no reply.
#[derive(Debug, Error)]
pub enum IcmpError {
    /// The socket does not work.
    #[error("no ICMP with {address}: {source}")]
    Socket {
        /// Address asked.
        address: IpAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// No reply in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// Too much else was heard.
    #[error("{address} sends so much by ICMP that its reply cannot be found")]
    Noise {
        /// Address asked.
        address: IpAddr,
    },
}

/// The echo requests of one check.
pub struct Echo {
    identifier: u16,
    sequence: u16,
}

impl Echo {
    /// `identifier` is a random number: other programs send echo requests, too.
    pub fn new(identifier: u16) -> Self {
        Self {
            identifier,
            sequence: 0,
        }
    }

    pub(super) async fn attempt(&mut self, place: &Place) -> Result<(), IcmpError> {
        let address = place.target.ip();
        let failed = |source| IcmpError::Socket { address, source };
        self.sequence = self.sequence.wrapping_add(1);
        let socket = open(place).map_err(failed)?;
        let request = self.request(address.is_ipv4());
        socket.send(&request).await.map_err(failed)?;
        let reply = async {
            let mut bytes = [0; BUFFER];
            for _ in 0..MAX_PACKETS {
                let length = socket.recv(&mut bytes).await.map_err(failed)?;
                if self.is_reply(address.is_ipv4(), &bytes[..length]) {
                    return Ok(());
                }
            }
            Err(IcmpError::Noise { address })
        };
        place
            .within(place.limits.answer, "reply to an echo request", reply)
            .await?
    }

    fn request(&self, is_v4: bool) -> [u8; 16] {
        let mut packet = [0; 16];
        packet[0] = if is_v4 { 8 } else { 128 };
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        packet[8..].copy_from_slice(&PAYLOAD);
        // With IPv6 the kernel computes it: it covers addresses that only the kernel knows.
        if is_v4 {
            let sum = checksum::of(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// Whether these bytes are the reply: with IPv4 the IP header comes first, with IPv6 it does not.
    pub fn is_reply(&self, is_v4: bool, bytes: &[u8]) -> bool {
        let header = match (is_v4, bytes.first()) {
            (true, Some(first)) => usize::from(first & 0x0f) * 4,
            (true, None) => return false,
            (false, _) => 0,
        };
        let Some(message) = bytes.get(header..) else {
            return false;
        };
        let expected = if is_v4 { 0 } else { 129 };
        message.len() >= 16
            && message[0] == expected
            && message[4..6] == self.identifier.to_be_bytes()
            && message[6..8] == self.sequence.to_be_bytes()
            && message[8..16] == PAYLOAD
    }
}

/// Raw, because the kernel lets nobody use its sockets for echo by default. Connected: it hears of the
/// target only. tokio has no type for raw sockets; its type for datagrams sends and receives just so.
fn open(place: &Place) -> io::Result<UdpSocket> {
    let (domain, protocol) = match place.target {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    if let Some(source) = place.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&place.target.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_from_other_packets() {
        let mut echo = Echo::new(0x1234);
        echo.sequence = 7;
        let mut reply = echo.request(true);
        reply[0] = 0;
        let with_header = |message: &[u8]| [&[0x45; 1][..], &[0; 19], message].concat();
        assert!(echo.is_reply(true, &with_header(&reply)));
        assert!(
            !echo.is_reply(true, &with_header(&echo.request(true))),
            "our own request"
        );
        let options = [&[0x46; 1][..], &[0; 23], &reply].concat();
        assert!(echo.is_reply(true, &options));
        for byte in [4, 5, 6, 7, 15] {
            let mut other = reply;
            other[byte] ^= 1;
            assert!(!echo.is_reply(true, &with_header(&other)), "byte {byte}");
        }
        let mut sixth = echo.request(false);
        sixth[0] = 129;
        assert!(echo.is_reply(false, &sixth));
        assert!(!echo.is_reply(true, &sixth));
        for length in 0..16 {
            assert!(!echo.is_reply(false, &sixth[..length]));
            assert!(!echo.is_reply(true, &with_header(&reply)[..length]));
        }
    }

    #[test]
    fn requests_have_a_checksum() {
        assert_eq!(checksum::of(&Echo::new(9).request(true)), 0);
    }
}
