//! Everything that comes to a host's interface, with the kernel's time of each frame.

use std::{
    io::IoSliceMut,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Node, network::INTERFACE};

/// Bytes that wait for the sniffer on a busy machine: ten thousand frames a second, for some seconds.
const BUFFER: usize = 64 << 20;
/// ETH_P_ALL.
const EVERY_PROTOCOL: u16 = 3;

/// A frame and when it came, since 1970.
pub type Frame = (Duration, Vec<u8>);

/// Listens until it is asked what it heard.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Frame>>>,
}

impl Sniffer {
    /// Listens on a host from now on.
    pub fn start(node: &Node) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let (node, flag) = (node.clone(), stop.clone());
        let thread = std::thread::spawn(move || node.within(move || listen(&flag, &ready))?);
        is_ready.recv().context("the sniffer does not start")?;
        Ok(Self { stop, thread })
    }

    /// Ends, with everything that was heard.
    pub fn stop(self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|panic| anyhow::anyhow!("panicked: {panic:?}"))?
    }
}

fn listen(stop: &AtomicBool, ready: &mpsc::Sender<()>) -> Result<Vec<Frame>> {
    let all = i32::from(EVERY_PROTOCOL.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
    socket.bind_device(Some(INTERFACE.as_bytes()))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    ready.send(()).context("nobody waits")?;
    let mut frames = Vec::new();
    let mut bytes = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let Ok(got) = got else { continue };
        let time = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let length = got.bytes;
        frames.push((time.context("no time stamp")?, bytes[..length].to_vec()));
    }
    Ok(frames)
}
