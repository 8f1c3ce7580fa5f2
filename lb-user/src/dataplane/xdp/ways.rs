//! By which interfaces frames can leave that came in by another one: their drivers must send what XDP redirects
//! (`ndo_xdp_xmit`). Bridges, macvlans and some cards do not, and the kernel loses such frames silently.
//!
//! The kernel tells by generic netlink's family "netdev" (Linux 6.3, Documentation/netlink/specs/netdev.yaml). A
//! kernel that cannot tell is believed to send them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::dataplane::genetlink::{
    ERROR, FAMILY_ID, GENERIC_HEADER, HEADER, REQUEST,
    attribute::{Writer, attributes},
    family_question, message,
};

/// NETDEV_CMD_DEV_GET.
const GET: u8 = 1;
/// NETDEV_A_DEV_IFINDEX.
const IFINDEX: u16 = 1;
/// NETDEV_A_DEV_XDP_FEATURES.
const FEATURES: u16 = 3;
/// NETDEV_XDP_ACT_NDO_XMIT, and the same for frames in several buffers (NETDEV_XDP_ACT_NDO_XMIT_SG).
const SENDS_REDIRECTED: u64 = 4;
const SENDS_SEVERAL_BUFFERS: u64 = 64;
/// Drivers put packets of this size into one buffer; larger ones perhaps not.
const ONE_BUFFER: u32 = 1_500;
/// The kernel answers within the request.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for an answer of a few attributes.
const DATAGRAM: usize = 8_192;

/// What is known of the interfaces that frames leave by.
#[derive(Default)]
pub struct Ways {
    netdev: Option<Netdev>,
    /// Bits of NETDEV_XDP_ACT of each; all where the kernel cannot tell, or need not.
    features: BTreeMap<u32, u64>,
    /// The largest packet that comes in, in bytes.
    receive_mtu: u32,
    /// An answer is another one than before.
    changed: bool,
}

impl Ways {
    /// Begins to ask the kernel, where it can tell.
    pub fn open() -> Self {
        Self {
            netdev: Netdev::open(),
            ..Self::default()
        }
    }

    /// Whether redirected frames leave by an interface, as far as is known.
    pub fn sends(&self, ifindex: u32) -> bool {
        let features = self.features.get(&ifindex);
        features.is_none_or(|features| features & SENDS_REDIRECTED != 0)
    }

    /// Whether it was asked about.
    pub fn knows(&self, ifindex: u32) -> bool {
        self.features.contains_key(&ifindex)
    }

    /// Asks anew about these, of which only some need it.
    pub fn look(&mut self, interfaces: &BTreeSet<u32>, needs: impl Fn(u32) -> bool) {
        let ask = |ifindex: &u32| {
            let netdev = self.netdev.as_mut().filter(|_| needs(*ifindex));
            let features = netdev.and_then(|netdev| netdev.features(*ifindex));
            (*ifindex, features.unwrap_or(u64::MAX))
        };
        let features: BTreeMap<u32, u64> = interfaces.iter().map(ask).collect();
        self.changed |= features != self.features;
        self.features = features;
    }

    /// Follows the largest packet that comes in, in bytes.
    pub fn follow_receive_mtu(&mut self, mtu: u32) {
        self.changed |= self.receive_mtu != mtu;
        self.receive_mtu = mtu;
    }

    /// The largest packet that may be redirected to an interface of this MTU; 0 where every one may.
    pub fn limit(&self, ifindex: u32, mtu: u32) -> u32 {
        let features = self.features.get(&ifindex).copied().unwrap_or(u64::MAX);
        let limit = match features & SENDS_SEVERAL_BUFFERS {
            0 => mtu.min(ONE_BUFFER),
            _ => mtu,
        };
        if limit < self.receive_mtu { limit } else { 0 }
    }

    /// Whether an answer has changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Those that do not send redirected frames.
    pub fn deaf(&self) -> impl Iterator<Item = u32> + '_ {
        let interfaces = self.features.keys().copied();
        interfaces.filter(|ifindex| !self.sends(*ifindex))
    }
}

/// What an interface is called.
pub fn name(ifindex: u32) -> String {
    match nix::net::if_::if_indextoname(ifindex) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("interface {ifindex}"),
    }
}

struct Netdev {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Netdev {
    fn open() -> Option<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
            Ok(socket)
        };
        let mut netdev = Self {
            socket: open().ok()?,
            family: 0,
            sequence: 1,
        };
        let answer = netdev.ask(&family_question("netdev", netdev.sequence))?;
        let mut list = attributes(&answer).flatten();
        netdev.family = list.find(|a| a.kind == FAMILY_ID)?.u16().ok()?;
        Some(netdev)
    }

    /// Bits of NETDEV_XDP_ACT; `None` where the kernel says nothing.
    fn features(&mut self, ifindex: u32) -> Option<u64> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut which = Writer::default();
        which.put_u32(IFINDEX, ifindex);
        let request = message(self.family, REQUEST, self.sequence, GET, &which.finish());
        let answer = self.ask(&request)?;
        let mut list = attributes(&answer).flatten();
        list.find(|a| a.kind == FEATURES)?.u64().ok()
    }

    /// The attributes of the answer to a request.
    fn ask(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(request, 0).ok()?;
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut datagram, 0).ok()?;
            let sequence = datagram.get(8..12)?;
            if sequence != self.sequence.to_ne_bytes() {
                // Of a request that was given up.
                continue;
            }
            let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
            let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
            if kind == ERROR {
                return None;
            }
            return datagram
                .get(HEADER + GENERIC_HEADER..length)
                .map(<[u8]>::to_vec);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes in, what the way out takes, its driver's features, and what may be redirected (0: everything).
    #[test]
    fn limits_of_ways_out() {
        for (receive_mtu, mtu, features, expected) in [
            (1_500, 1_500, u64::MAX, 0),
            (9_000, 9_000, u64::MAX, 0),
            (9_000, 1_500, u64::MAX, 1_500),
            (1_500, 9_000, u64::MAX, 0),
            (1_500, 1_400, u64::MAX, 1_400),
            // Not what lies in several buffers.
            (9_000, 9_000, SENDS_REDIRECTED, ONE_BUFFER),
            (9_000, 1_400, SENDS_REDIRECTED, 1_400),
            (1_500, 1_500, SENDS_REDIRECTED, 0),
        ] {
            let mut ways = Ways::default();
            ways.follow_receive_mtu(receive_mtu);
            ways.features.insert(7, features);
            let limit = ways.limit(7, mtu);
            assert_eq!(limit, expected, "{receive_mtu} {mtu} {features:#x}");
        }
    }

    #[test]
    fn what_need_not_be_asked_is_known() {
        let mut ways = Ways::default();
        ways.look(&BTreeSet::from([3, 4]), |_| false);
        assert!(ways.knows(3) && ways.sends(4) && !ways.knows(5));
        assert!(ways.take_changed() && !ways.take_changed());
    }
}
