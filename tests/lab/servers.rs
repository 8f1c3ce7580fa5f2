//! Servers of our own, for clients that must bear everything.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sched::{CloneFlags, setns};

use crate::{Lab, Node, Process};

/// No server talks for longer: a test ends some time.
const LONGEST: Duration = Duration::from_secs(5);
/// Most that is read of a request's head.
const MAX_HEAD: usize = 64 << 10;

/// What a server does with a connection.
pub type Serve = fn(&mut TcpStream);

/// TCP servers of our own on a node, each a function that is given every connection. They end with
/// this value.
pub struct Servers {
    node: Node,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// None yet.
    pub fn new(node: &Node) -> Self {
        Self {
            node: node.clone(),
            ended: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Serves on a port. Every connection has a thread, and a second at most for one read or write.
    pub fn tcp(
        &mut self,
        port: u16,
        serve: impl Fn(&mut TcpStream) + Clone + Send + 'static,
    ) -> Result<()> {
        let listener = self
            .node
            .within(move || TcpListener::bind(("0.0.0.0", port)))??;
        listener.set_nonblocking(true)?;
        let ended = self.ended.clone();
        self.threads.push(thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    sleep(Duration::from_millis(5));
                    continue;
                };
                let second = Some(Duration::from_secs(1));
                let ready = stream.set_nonblocking(false).is_ok()
                    && stream.set_read_timeout(second).is_ok()
                    && stream.set_write_timeout(second).is_ok();
                if ready {
                    let serve = serve.clone();
                    thread::spawn(move || serve(&mut stream));
                }
            }
        }));
        Ok(())
    }

    /// Runs `work` on a thread of its own inside the node until the flag is set.
    pub fn spawn(&mut self, work: impl FnOnce(Arc<AtomicBool>) + Send + 'static) -> Result<()> {
        let namespace = self.node.open()?;
        let ended = self.ended.clone();
        self.threads.push(thread::spawn(move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                work(ended);
            }
        }));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes what comes, and says nothing.
pub fn silent(stream: &mut TcpStream) {
    let end = Instant::now() + LONGEST;
    let mut buffer = [0; 1024];
    while Instant::now() < end {
        match stream.read(&mut buffer) {
            // The other side is gone.
            Ok(0) => return,
            _ => sleep(Duration::from_millis(10)),
        }
    }
}

/// Ends the connection with a reset.
pub fn reset(stream: &mut TcpStream) {
    // Nobody minds one that ends in order.
    let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
}

/// Reads a request up to the blank line that ends its head. Whether it came: to HTTP clients that read before they
/// ask, an answer that is there already is an error.
pub fn heard(stream: &mut TcpStream) -> bool {
    let (mut head, mut buffer) = (Vec::<u8>::new(), [0; 1024]);
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 && head.len() < MAX_HEAD => head.extend(&buffer[..count]),
            _ => return false,
        }
    }
    true
}

/// Says something and ends the connection in order.
pub fn say(stream: &mut TcpStream, words: &[u8]) {
    if stream.write_all(words).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        silent(stream);
    }
}

/// A beginning, and then a little more every 50 ms.
pub fn drip(stream: &mut TcpStream, begin: &[u8], more: &[u8]) {
    let end = Instant::now() + LONGEST;
    let mut next = stream.write_all(begin);
    while next.is_ok() && Instant::now() < end {
        sleep(Duration::from_millis(50));
        next = stream.write_all(more);
    }
}

/// A beginning, and then more without an end, as fast as it is taken.
pub fn flood(stream: &mut TcpStream, begin: &[u8], more: &[u8]) {
    let end = Instant::now() + LONGEST;
    let chunk = more.repeat(4096 / more.len());
    let mut next = stream.write_all(begin);
    while next.is_ok() && Instant::now() < end {
        next = stream.write_all(&chunk);
    }
}

/// Answers every datagram with a hundred of garbage, until the flag is set.
pub fn flood_datagrams(port: u16, ended: &AtomicBool) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0; 512];
    while !ended.load(Ordering::Relaxed) {
        let Ok((_, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        for _ in 0..100 {
            let _ = socket.send_to(b"garbage", from);
        }
    }
    Ok(())
}

/// Starts a name server that knows these records, as options of dnsmasq, and asks nobody.
pub fn dnsmasq(lab: &Lab, node: &Node, records: &[&str]) -> Result<Process> {
    let alone = [
        "--keep-in-foreground",
        "--log-facility=-",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file",
        "--conf-file=/dev/null",
    ];
    let arguments = [&alone, records].concat();
    let program = "/usr/sbin/dnsmasq".as_ref();
    Process::start(lab, node, "dnsmasq", program, &arguments)
}

/// Starts a socat that sends back what comes to `listen`, an address of its kind, such as `UDP4-RECVFROM:7,fork`.
pub fn echo(lab: &Lab, node: &Node, name: &str, listen: &str) -> Result<Process> {
    let arguments = ["-T2", listen, "EXEC:/bin/cat"];
    Process::start(lab, node, name, "/usr/bin/socat".as_ref(), &arguments)
}
