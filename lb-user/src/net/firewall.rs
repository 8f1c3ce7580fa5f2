//! The table of nf_tables that keeps packets to some addresses and services from the host's own sockets. It
//! belongs to the socket kept here and goes with it, however the daemon ends.

use std::io;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};

use super::nft::{self, Closed, ForIpvs, Guarded};

/// Answers are short: an error with the header that it is about.
const BUFFER: usize = 8192;
/// A batch is sent as one: 255 instances with 16 addresses each fit.
const BATCH: usize = 4 << 20;
const NLMSG_ERROR: u16 = 2;

/// The table's owner.
#[derive(Default)]
pub struct Firewall {
    socket: Option<Socket>,
    held: (Vec<Closed>, Vec<Guarded>, Option<ForIpvs>),
}

impl Firewall {
    /// Makes exactly these addresses closed and these services guarded, and leads marked packets past both to IPVS.
    /// Nothing is done if it is so. Needs CAP_NET_ADMIN, and nf_tables in the kernel (5.12 or later) if there are any.
    pub fn hold(
        &mut self,
        closed: Vec<Closed>,
        guarded: Vec<Guarded>,
        for_ipvs: Option<ForIpvs>,
    ) -> io::Result<()> {
        let wanted = (closed, guarded, for_ipvs);
        if wanted == Default::default() {
            // The table goes with its socket.
            self.socket = None;
            self.held = wanted;
            return Ok(());
        }
        if wanted == self.held {
            return Ok(());
        }
        // A refusal below ends the socket, and with it the table.
        self.held = Default::default();
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let mut socket = Socket::new(NETLINK_NETFILTER)?;
                socket.bind_auto()?;
                setsockopt(&socket, sockopt::SndBufForce, &BATCH)?;
                socket
            }
        };
        request(&socket, &nft::replace(&wanted.0, &wanted.1, wanted.2))?;
        self.socket = Some(socket);
        self.held = wanted;
        Ok(())
    }

    /// Guards no service any more, and keeps all else: sooner than with [`Self::hold`], which makes the table anew. Where
    /// the kernel refuses that, the guard stays until then.
    pub fn unguard(&mut self) {
        if let Some(socket) = &self.socket
            && !self.held.1.is_empty()
        {
            match request(socket, &nft::unguard(self.held.2)) {
                Ok(()) => self.held.1.clear(),
                Err(error) => tracing::debug!(%error, "the guard goes with its table"),
            }
        }
    }
}

/// Sends a batch. The kernel has dealt with it when the call returns, and has answered if it refuses.
fn request(socket: &Socket, batch: &[u8]) -> io::Result<()> {
    socket.send(batch, 0)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let received = match socket.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        if let Some(error) = first_error(&buffer[..received]) {
            return Err(error);
        }
    }
}

/// The error in an answer: behind the 16 bytes of header, negative; 0 is an acknowledgement.
pub fn first_error(answer: &[u8]) -> Option<io::Error> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let code = answer.get(16..20)?;
    let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
    (kind == Some(NLMSG_ERROR) && code != 0)
        .then(|| io::Error::from_raw_os_error(code.saturating_abs()))
}
