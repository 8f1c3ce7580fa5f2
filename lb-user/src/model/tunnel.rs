//! Tunnels to real servers.

/// How a packet is wrapped on its way through routers. The outer header is of the real server's version of
/// IP, the inner one of the service's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tunnel {
    /// IP in IP (RFC 2003, and RFC 2473 with IPv6).
    #[default]
    Ipip,
    /// In UDP (draft-ietf-intarea-gue), which the kernel's `fou` unwraps. IPVS alone has it.
    Gue {
        /// Where the real server waits for it; 1 to 65535.
        port: u16,
        /// How its UDP checksum is made.
        checksum: GueChecksum,
    },
    /// Generic routing encapsulation (RFC 2784). IPVS alone has it.
    Gre {
        /// Whether the packet has a checksum of its own.
        checksum: bool,
    },
}

/// The UDP checksum of [`Tunnel::Gue`]: IP_VS_TUNNEL_ENCAP_FLAG_* of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GueChecksum {
    /// None.
    #[default]
    None,
    /// Over the whole datagram.
    Full,
    /// Over the outer headers, the inner one being told where it is (remote checksum offload).
    Remote,
}

impl Tunnel {
    /// The word of `tunnel_type`, which is ipvsadm's too.
    pub const fn name(self) -> &'static str {
        match self {
            Tunnel::Ipip => "ipip",
            Tunnel::Gue { .. } => "gue",
            Tunnel::Gre { .. } => "gre",
        }
    }
}
