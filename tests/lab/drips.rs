//! Connections on which clients never stop talking: a director that answers a segment in the place of a
//! real server, if only for a millisecond, resets one of them.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::Node;

/// Between two bytes of a connection. A line of 8 KiB, which is as much as nginx takes, lasts for 160 s.
const PAUSE: Duration = Duration::from_millis(20);
/// For a connection to open, and for its answer at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests for `GET /` whose last header grows by a byte at a time.
pub struct Drips {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Connection>>,
}

/// One of them, and what became of it.
struct Connection {
    stream: TcpStream,
    broken: Option<io::Error>,
}

impl Drips {
    /// Opens `count` connections from `node`, and talks on all of them from now on.
    pub fn start(node: &Node, vip: Ipv4Addr, count: u32) -> Result<Self> {
        let open =
            || -> Result<Vec<Connection>> { (0..count).map(|_| Connection::open(vip)).collect() };
        let mut connections = node.within(open)??;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for connection in &mut connections {
                    connection.drip();
                    std::thread::sleep(PAUSE / count);
                }
            }
            connections
        });
        Ok(Self { stop, thread })
    }

    /// Stops talking. An error if a connection is broken.
    pub fn break_off(self) -> Result<()> {
        self.stop_talking().map(drop)
    }

    /// Ends every request, and waits for the pages. An error if a connection is broken.
    pub fn finish(self) -> Result<Vec<String>> {
        let connections = self.stop_talking()?;
        connections.into_iter().map(Connection::finish).collect()
    }

    fn stop_talking(self) -> Result<Vec<Connection>> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        let mut connections =
            joined.map_err(|panic| anyhow::anyhow!("the talker panicked: {panic:?}"))?;
        connections.iter_mut().for_each(Connection::drip);
        let broken: Vec<String> = connections
            .iter()
            .filter_map(|connection| Some(connection.broken.as_ref()?.to_string()))
            .collect();
        let all = connections.len();
        ensure!(
            broken.is_empty(),
            "{} of {all} connections broke: {broken:?}",
            broken.len()
        );
        Ok(connections)
    }
}

impl Connection {
    fn open(vip: Ipv4Addr) -> Result<Self> {
        let to = SocketAddr::from((vip, 80));
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
        stream.set_nodelay(true)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Drips: ")?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            broken: None,
        })
    }

    fn drip(&mut self) {
        match self.stream.write(b"x") {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                // What is written after a reset finds a closed pipe.
                self.broken.get_or_insert(error);
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Result<String> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream.write_all(b"\r\n\r\n")?;
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).context("read")?;
        let (_, page) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok(page.trim().to_owned())
    }
}
