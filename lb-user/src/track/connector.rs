//! The kernel's process connector: tells of every process that begins, changes its program or its
//! name, or ends. It exists in the first network and process namespaces only, and needs
//! CAP_NET_ADMIN; where it is refused, processes are looked for at intervals.

use std::{io, os::fd::AsRawFd, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_CONNECTOR};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::proc_event::{ProcEvent, decode, subscription};

/// CN_IDX_PROC as a multicast group.
const GROUP: u32 = 1;
/// Some ten thousand events. More that nobody reads are lost, and everything is looked at again.
const BUFFER: usize = 4 << 20;
/// The kernel answers a subscription at once, or, in another process namespace, never.
const PATIENCE: Duration = Duration::from_millis(500);
/// Larger than any event.
const MESSAGE: usize = 256;
/// Events taken before others get their turn.
const BURST: usize = 256;

/// A subscription.
pub struct Connector {
    socket: AsyncFd<Socket>,
}

/// Some events.
pub struct Batch {
    /// In their order.
    pub events: Vec<ProcEvent>,
    /// Whether events were lost before these.
    pub lost: bool,
}

impl Connector {
    /// Subscribes.
    pub async fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_CONNECTOR)?;
        socket.bind(&SocketAddr::new(0, GROUP))?;
        socket.set_non_blocking(true)?;
        enlarge_buffer(&socket);
        socket.connect(&SocketAddr::new(0, 0))?;
        // SAFETY: `Socket` owns one descriptor for all its life.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let mut connector = Self {
            socket: socket.map_err(io::Error::from)?,
        };
        connector.socket.get_ref().send(&subscription(), 0)?;
        match timeout(PATIENCE, connector.answer()).await {
            Ok(Ok(0)) => Ok(connector),
            Ok(Ok(error)) => Err(io::Error::from_raw_os_error(error.cast_signed())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other(
                "the kernel does not answer: not in the first process namespace",
            )),
        }
    }

    async fn answer(&mut self) -> io::Result<u32> {
        loop {
            // Others may have subscribed before, so events can come first; a look through all
            // processes follows anyway.
            for event in self.next().await?.events {
                if let ProcEvent::Answer(error) = event {
                    return Ok(error);
                }
            }
        }
    }

    /// Waits for events.
    pub async fn next(&mut self) -> io::Result<Batch> {
        let mut batch = Batch {
            events: Vec::new(),
            lost: false,
        };
        loop {
            let mut ready = self.socket.readable().await?;
            for _ in 0..BURST {
                let mut message = [0; MESSAGE];
                let got = ready.try_io(|socket| {
                    let mut room = &mut message[..];
                    socket.get_ref().recv(&mut room, 0)
                });
                match got {
                    Ok(Ok(length)) => batch
                        .events
                        .extend(decode(message.get(..length).unwrap_or_default())),
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        batch.lost = true;
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if batch.lost || !batch.events.is_empty() {
                return Ok(batch);
            }
        }
    }
}

/// Beyond the system's limit where we may; what we get is enough for a while in any case.
fn enlarge_buffer(socket: &Socket) {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(fd, BUFFER).is_err() {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(fd, BUFFER);
    }
}
