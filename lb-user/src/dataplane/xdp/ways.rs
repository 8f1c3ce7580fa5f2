//! By which interfaces frames can leave that came in by another one: their drivers must send what XDP redirects
//! (`ndo_xdp_xmit`). Bridges, macvlans and some cards do not, and the kernel loses such frames silently.
//!
//! The kernel tells by generic netlink's family "netdev" (Linux 6.3, Documentation/netlink/specs/netdev.yaml). One
//! that cannot tell is taken at its word that it can send.

use std::{collections::BTreeSet, io, time::Duration};

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
/// NETDEV_XDP_ACT_NDO_XMIT.
const SENDS_REDIRECTED: u64 = 4;
/// The kernel answers within the request.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for an answer of a few attributes.
const DATAGRAM: usize = 8_192;

/// What is known of the interfaces that frames leave by.
#[derive(Default)]
pub struct Ways {
    netdev: Option<Netdev>,
    /// Those whose driver does not send redirected frames.
    deaf: BTreeSet<u32>,
}

impl Ways {
    /// Begins to ask the kernel, where it can tell.
    pub fn open() -> Self {
        Self {
            netdev: Netdev::open(),
            deaf: BTreeSet::new(),
        }
    }

    /// Whether redirected frames leave by an interface, as far as is known.
    pub fn sends(&self, ifindex: u32) -> bool {
        !self.deaf.contains(&ifindex)
    }

    /// Asks anew about these. Says whether an answer is another one than before.
    pub fn look(&mut self, interfaces: &BTreeSet<u32>) -> bool {
        let Some(netdev) = &mut self.netdev else {
            return false;
        };
        let is_deaf = |ifindex: &u32| {
            let features = netdev.features(*ifindex);
            features.is_some_and(|features| features & SENDS_REDIRECTED == 0)
        };
        let deaf: BTreeSet<u32> = interfaces.iter().copied().filter(is_deaf).collect();
        let changed = deaf != self.deaf;
        self.deaf = deaf;
        changed
    }

    /// Those that do not send redirected frames.
    pub fn deaf(&self) -> impl Iterator<Item = u32> + '_ {
        self.deaf.iter().copied()
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
