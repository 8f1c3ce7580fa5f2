//! What is served and asked while the data planes take over from each other: connections that stay open,
//! requests on connections of their own, and datagrams at short intervals that show the outage.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::Node;
use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A question and an answer: the server's name, filled up.
const WORD: usize = 16;
/// Longer than any retransmission that two switches cost, on a guest that is emulated.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between the questions of an open connection.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two datagrams.
const BEAT: Duration = Duration::from_millis(4);

/// Clients and servers are one process, with two descriptors for each connection and more while it pauses.
pub fn allow_many_sockets() {
    let limit = libc::rlimit {
        rlim_cur: 65_536,
        rlim_max: 65_536,
    };
    // SAFETY: the limit lives until the call returns.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}

/// Answers every question over TCP with the server's name, and every datagram with itself.
pub fn serve(node: &Node, vip: Ipv4Addr, ports: &[u16], udp: u16) {
    let name = word(&node.name);
    let ports = ports.to_vec();
    inside(node, move || {
        let sockets = ports.iter().map(|port| SocketAddr::from((vip, *port)));
        let sockets: Vec<_> = sockets
            .map(|at| std::net::TcpListener::bind(at).unwrap())
            .collect();
        runtime().block_on(async move {
            let answering = sockets.into_iter().map(|socket| {
                socket.set_nonblocking(true).unwrap();
                answer(TcpListener::from_std(socket).unwrap(), name)
            });
            let tasks: Vec<_> = answering.map(tokio::spawn).collect();
            for task in tasks {
                let _ = task.await;
            }
        });
    });
    inside(node, move || {
        let socket = UdpSocket::bind((vip, udp)).unwrap();
        let mut datagram = [0; 8];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
}

async fn answer(listener: TcpListener, name: [u8; WORD]) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut question = [0; WORD];
            while stream.read_exact(&mut question).await.is_ok() {
                if stream.write_all(&name).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// What was seen of TCP.
#[derive(Default)]
pub struct Seen {
    /// Connections that are open.
    pub open: AtomicU64,
    /// Questions that open connections had answered.
    pub answers: AtomicU64,
    /// Open connections that broke, changed their server, or were silent for too long.
    pub broken: AtomicU64,
    /// Requests on connections of their own that were answered.
    pub requests: AtomicU64,
    /// Those that were not.
    pub failed: AtomicU64,
}

impl Seen {
    /// As text for people.
    pub fn describe(&self) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} connections open, {} answers on them, {} broken; {} requests, {} failed",
            of(&self.open),
            of(&self.answers),
            of(&self.broken),
            of(&self.requests),
            of(&self.failed)
        )
    }
}

/// Clients that ask until told to stop.
pub struct Load {
    /// What they see.
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    /// `open` connections that stay, and as many requests a second as `rate` on connections of their own.
    pub fn start(node: &Node, to: SocketAddr, open: u32, rate: u32) -> Self {
        let (seen, stop) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let (shown, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = inside(node, move || {
            runtime().block_on(async move {
                let mut tasks = Vec::new();
                for number in 0..open {
                    let first = PAUSE * number / open;
                    let task = stay(to, first, Arc::clone(&shown), Arc::clone(&stopped));
                    tasks.push(tokio::spawn(task));
                }
                let mut beat = tokio::time::interval(Duration::from_secs(1) / rate);
                while !stopped.load(Ordering::Relaxed) {
                    beat.tick().await;
                    tasks.push(tokio::spawn(request(to, Arc::clone(&shown))));
                }
                for task in tasks {
                    task.await.unwrap();
                }
            });
        });
        Self { seen, stop, thread }
    }

    /// Stops, and waits for what was asked last.
    pub fn finish(self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.seen
    }
}

/// A connection that stays open and asks again and again; its server must stay the same.
async fn stay(to: SocketAddr, first: Duration, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    tokio::time::sleep(first).await;
    let Ok(mut stream) = TcpStream::connect(to).await else {
        seen.broken.fetch_add(1, Ordering::Relaxed);
        return;
    };
    seen.open.fetch_add(1, Ordering::Relaxed);
    let mut server = None;
    while !stop.load(Ordering::Relaxed) {
        match tokio::time::timeout(PATIENCE, ask(&mut stream)).await {
            Ok(Ok(name)) if *server.get_or_insert(name) == name => {
                seen.answers.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                println!("an open connection broke: {other:?}");
                seen.broken.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A question on a connection of its own.
async fn request(to: SocketAddr, seen: Arc<Seen>) {
    let asked = async {
        let mut stream = TcpStream::connect(to).await?;
        ask(&mut stream).await
    };
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    let count = match answered {
        Ok(Ok(_)) => &seen.requests,
        other => {
            if seen.failed.load(Ordering::Relaxed) < 10 {
                let now = std::time::SystemTime::now();
                let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
                println!(
                    "a request failed at {} ms: {other:?}",
                    now.as_millis() % 1_000_000
                );
            }
            &seen.failed
        }
    };
    count.fetch_add(1, Ordering::Relaxed);
}

async fn ask(stream: &mut TcpStream) -> io::Result<[u8; WORD]> {
    let mut name = [0; WORD];
    stream.write_all(&[b'?'; WORD]).await?;
    stream.read_exact(&mut name).await?;
    Ok(name)
}

/// The server that a client is given, from an address of its own.
pub fn server_of(node: &Node, from: Ipv4Addr, to: SocketAddr) -> String {
    let asked = node.within(move || {
        runtime().block_on(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            let asked = async {
                let mut stream = socket.connect(to).await?;
                ask(&mut stream).await
            };
            tokio::time::timeout(Duration::from_secs(30), asked).await?
        })
    });
    let name = asked.unwrap().unwrap();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// A connection some of whose packets may travel no further than to the director.
pub struct Odd {
    stream: std::net::TcpStream,
    server: [u8; WORD],
}

impl Odd {
    /// Connects, and asks once.
    pub fn open(node: &Node, to: SocketAddr) -> Self {
        let stream = node
            .within(move || std::net::TcpStream::connect(to))
            .unwrap()
            .unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        let mut odd = Self {
            stream,
            server: [0; WORD],
        };
        odd.server = odd.answer(&[1, 255]);
        odd
    }

    /// Asks in two segments, whose TTL these are: what expires is sent again with the last.
    fn answer(&mut self, ttls: &[u32; 2]) -> [u8; WORD] {
        use std::io::{Read as _, Write as _};
        let mut name = [0; WORD];
        for ttl in ttls {
            self.stream.set_ttl(*ttl).unwrap();
            self.stream.write_all(&[b'?'; WORD / 2]).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        self.stream.read_exact(&mut name).unwrap();
        name
    }

    /// The same server answers as at the beginning.
    pub fn goes_on(&mut self) {
        assert_eq!(self.answer(&[64, 64]), self.server);
    }

    /// The same, with a packet that expires.
    pub fn goes_on_oddly(&mut self) {
        assert_eq!(self.answer(&[1, 255]), self.server);
    }
}

/// Datagrams at short intervals over one socket, and which of them were answered.
pub struct Beats {
    stop: Arc<AtomicBool>,
    sent: JoinHandle<Vec<Instant>>,
    answered: JoinHandle<Vec<u64>>,
}

impl Beats {
    /// Starts sending.
    pub fn start(node: &Node, to: SocketAddr) -> Self {
        let socket = node
            .within(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(to).unwrap();
                socket
            })
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, stopped_too) = (Arc::clone(&stop), Arc::clone(&stop));
        let ears = socket.try_clone().unwrap();
        let sent = thread::spawn(move || {
            let mut sent = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let number = sent.len() as u64;
                sent.push(Instant::now());
                // An error of ICMP shows here; the datagram counts as lost.
                let _ = socket.send(&number.to_be_bytes());
                thread::sleep(BEAT);
            }
            sent
        });
        let answered = thread::spawn(move || {
            let mut numbers = Vec::new();
            let mut datagram = [0; 8];
            loop {
                match ears.recv(&mut datagram) {
                    Ok(8) => numbers.push(u64::from_be_bytes(datagram)),
                    // After the end this waited once more for what was on its way.
                    _ if stopped_too.load(Ordering::Relaxed) => return numbers,
                    _ => {}
                }
            }
        });
        Self {
            stop,
            sent,
            answered,
        }
    }

    /// Stops, and gives the times at which those datagrams were sent that were answered.
    pub fn finish(self) -> Vec<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sent.join().unwrap();
        let mut numbers = self.answered.join().unwrap();
        numbers.sort_unstable();
        numbers
            .iter()
            .filter_map(|number| sent.get(usize::try_from(*number).ok()?).copied())
            .collect()
    }
}

/// The longest time without an answered datagram that began at most a little before `at`.
pub fn outage(answered: &[Instant], at: Instant) -> Duration {
    let window = Duration::from_secs(4);
    let near = |pair: &&[Instant]| pair[1] > at && pair[0] < at + window;
    let gaps = answered
        .windows(2)
        .filter(near)
        .map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or(window)
}

fn word(name: &str) -> [u8; WORD] {
    let mut word = [b' '; WORD];
    for (to, from) in word.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    word
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn inside(node: &Node, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let namespace = node.open().unwrap();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work();
    })
}
