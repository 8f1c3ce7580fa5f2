//! Health checks of the VIP on a real server.

use std::net::IpAddr;

use super::{Ports, Tunnel};

/// What becomes of the packets of sockets with a mark: they reach one real server with the VIP for their
/// destination, and its answers come back to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbePath {
    /// Which path it is: the lower half of the sockets' mark.
    pub index: u16,
    /// The virtual address.
    pub vip: IpAddr,
    /// The real server's own address, of the same family.
    pub host: IpAddr,
    /// The tunnel in which the real server is reached, if it is.
    pub tunnel: Option<Tunnel>,
}

/// How a data plane brings the packets of a marked socket to a VIP on one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeStyle {
    /// The socket is connected to the real server's own address, and the packets get the VIP instead.
    Rewritten,
    /// The socket is connected to the VIP, and a virtual service of that mark has no other real server.
    /// It has a source address and ports that no other path has.
    Scheduled,
}

/// Those that Linux gives to clients.
const CLIENTS: Ports = Ports {
    first: 32_768,
    last: 60_999,
};
/// Ports of one path: several checks of a real server may be under way at once.
const PORTS_OF_PATH: u16 = 16;

impl ProbePath {
    /// What `SO_MARK` must say.
    pub fn mark(&self) -> u32 {
        lb_common::probe::MARK | u32::from(self.index)
    }

    /// The path's ports with [`ProbeStyle::Scheduled`]. IPVS knows a connection by its addresses and
    /// ports alone and for as long as a minute after its last packet: another path's packets from the
    /// same port would still go to this one's real server. From the 1,765th path on they are shared.
    pub const fn ports(&self) -> Ports {
        let places = (CLIENTS.last - CLIENTS.first + 1) / PORTS_OF_PATH;
        let first = CLIENTS.first + self.index % places * PORTS_OF_PATH;
        Ports {
            first,
            last: first + PORTS_OF_PATH - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_ports_of_their_own() {
        let path = |index| ProbePath {
            index,
            vip: [192, 0, 2, 1].into(),
            host: [10, 0, 0, 1].into(),
            tunnel: None,
        };
        let ports = |first, last| Ports { first, last };
        assert_eq!(path(0).ports(), ports(32_768, 32_783));
        assert_eq!(path(1).ports(), ports(32_784, 32_799));
        assert_eq!(path(1_763).ports(), ports(60_976, 60_991));
        assert_eq!(path(1_764).ports(), path(0).ports());
    }
}
