//! Why a packet got its verdict. The program counts one of these per packet it does not forward;
//! forwarded packets are counted with their backend.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $label:literal;)*) => {
        /// The reason of an `XDP_PASS` verdict, in the order of the pipeline.
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
        }
    };
}

reasons! {
    /// Shorter than the headers it announces.
    Truncated = 0, "truncated";
    /// Not IPv4: ARP, IPv6, VLAN-tagged and everything else at Ethernet level.
    NotIpv4 = 1, "not_ipv4";
    /// IPv4, but neither TCP nor UDP: ICMP, VRRP and the like.
    NotTcpUdp = 2, "not_tcp_udp";
    /// No virtual service has this address, port and protocol.
    NotAService = 3, "not_a_service";
    /// The service's VRRP instance is not MASTER here.
    NotMaster = 4, "not_master";
    /// A fragment of a packet for a service, or of any TCP or UDP packet where the ports are missing:
    /// the director's own stack gets it.
    Fragment = 5, "fragment";
    /// TTL 0 or 1: the kernel answers with time exceeded.
    TtlExpired = 6, "ttl_expired";
    /// The service has neither a live real server nor a sorry server.
    NoBackend = 7, "no_backend";
    /// The chosen real server's MAC address is not known yet.
    NeighbourUnknown = 8, "neighbour_unknown";
    /// The chosen backend is this host: a local sorry server or a director that is a real server.
    Local = 9, "local";
    /// The daemon has not filled the control element or a table the program needs.
    NotReady = 10, "not_ready";
}

/// Number of reasons: the size of the counter map.
pub const REASON_COUNT: u32 = 11;

const _: () = assert!(Reason::ALL.len() == REASON_COUNT as usize);

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
