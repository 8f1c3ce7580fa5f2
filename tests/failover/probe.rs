//! A client that asks every 5 ms, and whoever holds the address answers.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Node, guide::VIP};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 7007;
/// Between two questions: the grain of the measurement.
const STEP: Duration = Duration::from_millis(5);
/// A client whose ARP entry nobody corrects finds out by itself, after half a minute or more.
const PATIENCE: Duration = Duration::from_secs(90);

/// Answers questions to the virtual address on a node, whether it has the address or not. The thread
/// lives as long as the program.
pub fn answer(node: &Node) -> Result<()> {
    let namespace = node.open()?;
    std::thread::spawn(move || -> Result<()> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_freebind_v4(true)?;
        socket.bind(&SocketAddr::from((VIP, PORT)).into())?;
        let socket = UdpSocket::from(socket);
        let mut buffer = [0; 16];
        loop {
            // An ICMP error of an earlier answer is no reason to stop.
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
    Ok(())
}

/// When each question was asked, and whether its answer came.
type Log = Arc<Mutex<Vec<(Instant, bool)>>>;

/// A client at work.
pub struct Probe {
    log: Log,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Probe {
    /// Starts asking.
    pub fn start(node: &Node) -> Result<Self> {
        let namespace = node.open()?;
        let log = Log::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (told, stopped) = (Arc::clone(&log), Arc::clone(&stop));
        let work = move || ask(&namespace, &told, &stopped);
        Ok(Self {
            log,
            stop,
            threads: vec![std::thread::spawn(work)],
        })
    }

    /// Waits until every question of the last `span` was answered, `begin` being longer ago than that.
    pub fn until_steady(&self, begin: Instant, span: Duration) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            std::thread::sleep(STEP * 4);
            let now = Instant::now();
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let recent = settled(&log)
                .iter()
                .filter(|(asked, _)| *asked + span > now);
            let is_long_ago = now.duration_since(begin) > span;
            if is_long_ago && recent.clone().count() > 0 && recent.clone().all(|(_, came)| *came) {
                return Ok(());
            }
            ensure!(now < end, "no steady answers within {PATIENCE:?}");
        }
    }

    /// Stops, and returns the longest time between two answered questions with an unanswered one
    /// between them, from shortly before `begin` on.
    pub fn finish(mut self, begin: Instant) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut longest = Duration::ZERO;
        let mut last = None;
        let mut missed = false;
        let relevant = |(asked, _): &&(Instant, bool)| *asked + STEP * 10 > begin;
        for (asked, came) in settled(&log).iter().filter(relevant) {
            if *came {
                if let (true, Some(last)) = (missed, last) {
                    longest = longest.max(*asked - last);
                }
                missed = false;
                last = Some(*asked);
            } else {
                missed = true;
            }
        }
        longest
    }
}

/// Without the last questions, whose answers may still be on their way.
fn settled(log: &[(Instant, bool)]) -> &[(Instant, bool)] {
    &log[..log.len().saturating_sub(4)]
}

fn ask(namespace: &std::fs::File, log: &Log, stop: &AtomicBool) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.set_nonblocking(true)?;
    let to = SocketAddr::from((VIP, PORT));
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push((Instant::now(), false));
            log.len() as u64 - 1
        };
        // While the address is unknown, sending fails: the question counts as unanswered.
        let _ = socket.send_to(&number.to_be_bytes(), to);
        next += STEP;
        while Instant::now() < next {
            std::thread::sleep(Duration::from_millis(1));
            let mut answer = [0; 8];
            while let Ok(8) = socket.recv(&mut answer) {
                let number = u64::from_be_bytes(answer) as usize;
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(entry) = log.get_mut(number) {
                    // An answer that waited for the address to be resolved came too late.
                    entry.1 = entry.0.elapsed() < STEP * 4;
                }
            }
        }
        // A thread that was kept waiting does not catch up in a burst.
        next = next.max(Instant::now() - STEP);
    }
    Ok(())
}
