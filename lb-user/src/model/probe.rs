//! Health checks of the VIP on a real server.

use std::net::IpAddr;

/// What becomes of the packets of marked sockets that are connected to `host`: they reach that host with
/// the VIP for their destination, and its answers come back to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbePath {
    /// Which path it is: the lower half of the sockets' mark.
    pub index: u16,
    /// The virtual address.
    pub vip: IpAddr,
    /// The real server's own address, of the same family.
    pub host: IpAddr,
    /// Whether the real server is reached in a tunnel.
    pub tunnel: bool,
}

impl ProbePath {
    /// What `SO_MARK` must say.
    pub fn mark(&self) -> u32 {
        lb_common::probe::MARK | u32::from(self.index)
    }
}
