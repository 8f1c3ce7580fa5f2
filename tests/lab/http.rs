//! Clients: single requests, and a prober that measures how long a service was away.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::Node;

/// One `GET /` on a connection of its own; the body.
pub fn get(address: Ipv4Addr, limit: Duration) -> Result<String> {
    let target = SocketAddr::from((address, 80));
    let mut stream = TcpStream::connect_timeout(&target, limit).context("connect")?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("{status}");
    }
    Ok(body.trim().to_owned())
}

/// `count` requests from `node`, and the body of each; fails if one fails.
pub fn get_many(node: &Node, address: Ipv4Addr, count: usize) -> Result<Vec<String>> {
    node.within(|| {
        (0..count)
            .map(|_| get(address, Duration::from_secs(2)))
            .collect()
    })?
}

/// Asks without pause from `node` and remembers when answers came.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

/// One request of a [`Prober`].
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// Whether it was answered.
    pub answered: bool,
}

/// Between the ends of one probe and the start of the next.
const PAUSE: Duration = Duration::from_millis(5);
/// A probe that takes longer counts as failed: far above any answer on a switch, and short, because
/// it is the grain of the measurement.
pub const GRAIN: Duration = Duration::from_millis(25);

impl Prober {
    /// Starts asking for `GET /` at `address`. Only a real server's page counts as an answer, and
    /// only within `limit`.
    pub fn start(node: &Node, address: Ipv4Addr, limit: Duration) -> Result<Self> {
        let namespace = node.open()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                samples.push(Sample {
                    sent,
                    answered: get(address, limit).is_ok_and(|page| page.starts_with("rs")),
                });
                std::thread::sleep(PAUSE);
            }
            Ok(samples)
        });
        Ok(Self { stop, thread })
    }

    /// Stops asking.
    pub fn finish(self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|panic| anyhow::anyhow!("prober panicked: {panic:?}"))?
    }
}

/// The longest time between two answered probes with a failed one in between; zero if none failed.
/// A service that was not there at the beginning or did not come back has no outage but an error.
pub fn outage(samples: &[Sample]) -> Result<Duration> {
    let answered = |sample: Option<&Sample>| sample.is_some_and(|sample| sample.answered);
    if !answered(samples.first()) || !answered(samples.last()) {
        bail!(
            "no answer at the beginning or at the end of {} probes",
            samples.len()
        );
    }
    let mut longest = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut failed = false;
    for sample in samples {
        if !sample.answered {
            failed = true;
            continue;
        }
        if failed && let Some(last) = last {
            longest = longest.max(sample.sent - last);
        }
        failed = false;
        last = Some(sample.sent);
    }
    Ok(longest)
}

/// Failed probes.
pub fn failures(samples: &[Sample]) -> usize {
    samples.iter().filter(|sample| !sample.answered).count()
}
