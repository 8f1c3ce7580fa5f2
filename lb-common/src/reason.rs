//! Why a packet got its verdict. The program counts one of these per packet it does not forward;
//! forwarded packets are counted with their backend.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $label:literal, $verdict:ident;)*) => {
        /// The reason why a packet was not simply forwarded, roughly in the order of the pipeline.
        /// Numbered from 0 without gaps.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// Every reason, indexed by its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The name in counters, logs and JSON.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)* }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Reason::$name => Verdict::$verdict,)* }
            }
        }
    };
}

/// What becomes of a packet that is not forwarded to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The kernel's stack gets it, unchanged.
    Pass,
    /// Nobody gets it.
    Drop,
    /// The client gets an ICMP error, or a RST.
    Answer,
}

reasons! {
    /// Shorter than the headers or the length it announces, or a header that cannot be.
    Truncated = 0, "truncated", Pass;
    /// Neither IPv4 nor IPv6: ARP, LLDP, a third VLAN tag.
    NotIp = 1, "not_ip", Pass;
    /// Neither TCP, UDP, SCTP nor an ICMP error: echo, neighbour discovery, VRRP.
    NotTransport = 2, "not_transport", Pass;
    /// No virtual service has this address, port and protocol.
    NotAService = 3, "not_a_service", Pass;
    /// The service's VRRP instance is not MASTER here.
    NotMaster = 4, "not_master", Pass;
    /// Sent to a group or to everybody at Ethernet level.
    NotUnicast = 5, "not_unicast", Pass;
    /// Sent to another host's MAC address: a switch floods, and the kernel ignores the frame.
    ForeignMac = 6, "foreign_mac", Pass;
    /// Source and destination address are the same (a land attack).
    Land = 7, "land", Pass;
    /// The source is a VIP of this host: forged, or a real server that answers in the wrong place.
    SourceIsVip = 8, "source_is_vip", Pass;
    /// TTL or hop limit 0 or 1: it may not travel on.
    TtlExpired = 9, "ttl_expired", Pass;
    /// A later fragment whose first one was not seen: the kernel waits for it.
    FragmentEarly = 10, "fragment_early", Pass;
    /// More extension headers than the program follows, or one that it does not know.
    ExtensionHeaders = 11, "extension_headers", Pass;
    /// An ICMP error about no known flow.
    IcmpUnmatched = 12, "icmp_unmatched", Pass;
    /// The service has neither a live real server nor a sorry server.
    NoBackend = 13, "no_backend", Pass;
    /// The chosen real server's MAC address is not known yet.
    NeighbourUnknown = 14, "neighbour_unknown", Pass;
    /// The chosen backend is this host: a local sorry server or a director that is a real server.
    Local = 15, "local", Pass;
    /// The daemon has not filled the control element or a table the program needs.
    NotReady = 16, "not_ready", Pass;
    /// The source is on the blocklist.
    Blocked = 17, "blocked", Drop;
    /// The source opens more connections than it may.
    SourceRate = 18, "source_rate", Drop;
    /// The service gets more new connections than it may.
    ServiceRate = 19, "service_rate", Drop;
    /// The packet does not fit into the tunnel to its real server, or is larger than what the interface to it may
    /// send: the client is told the size.
    TooBig = 20, "too_big", Answer;
    /// The driver gave no room to write a header.
    NoRoom = 21, "no_room", Drop;
    /// The same as `too_big`, of a packet that must not be answered (RFC 1122 section 3.2.2): an ICMP
    /// error, or a later fragment.
    TooBigUnanswered = 22, "too_big_unanswered", Drop;
    /// Tagged for a VLAN in which this host has no interface: a trunk carries it past, and the kernel
    /// ignores the frame.
    ForeignVlan = 23, "foreign_vlan", Pass;
    /// A new connection from an address that no client can have: of this network or host, loopback,
    /// multicast or broadcast (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5 and 2.7). The kernel
    /// drops and logs it.
    MartianSource = 24, "martian_source", Pass;
    /// The interface to the real server has gone since the program was told of it.
    DeviceGone = 25, "device_gone", Drop;
    /// The real server is behind another interface than the packet came in by, whose driver cannot send what
    /// XDP redirects.
    NoRedirect = 26, "no_redirect", Pass;
    /// The flow's real server is down, and the service wants its clients to know: the client gets a RST.
    Reset = 27, "reset", Answer;
    /// A further packet of no known flow while connections come back from the kernel's IPVS: it may know it.
    Handover = 28, "handover", Pass;
}

/// Number of reasons.
pub const REASON_COUNT: u32 = 29;

/// Counters of one service, a power of two: the map's index is service id times this plus reason.
pub const REASON_SLOTS: u32 = 32;

const _: () = assert!(Reason::ALL.len() == REASON_COUNT as usize && REASON_COUNT <= REASON_SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_labels_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|r| r.label() == reason.label())
                    .count(),
                1
            );
        }
    }
}
