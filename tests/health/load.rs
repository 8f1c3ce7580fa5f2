//! What both are measured with: the checks, servers that answer them, a server that dies again and again.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use lab::{
    Node,
    arrivals::{Arrivals, arrivals},
    sniffer::Sniffer,
};

/// Real servers of each service: fewer than the 1,024 neighbours that the kernel keeps by default.
pub const SERVERS: usize = 100;
/// Services with all of them: two thousand checks in all.
pub const SERVICES: usize = 20;
/// From one attempt of a check to the next, which needs no more time than that.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// For what must follow a birth or a death.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The port of the server that dies.
pub const DYING: u16 = 81;
/// A start is over by then, with the first attempts.
const START: Duration = Duration::from_secs(4);

/// The port of a service, and that where its real servers are asked: one for each, so that no two checks ask alike.
pub fn ports(service: usize) -> [usize; 2] {
    [1_000 + service, 2_000 + service]
}

/// The server of all checks of the load.
pub fn serve(server: &Node) -> Result<Listeners> {
    let ports: Vec<u16> = (0..SERVICES)
        .map(|service| Ok(ports(service)[1].try_into()?))
        .collect::<Result<_>>()?;
    Listeners::open(server, &ports)
}

/// What the checks cost while nothing changes, and when the servers saw them.
pub struct Steady {
    pub per_second: f64,
    /// Share of a core.
    pub core: f64,
    pub arrivals: Arrivals,
}

impl Steady {
    /// Checks that one core makes in a second.
    pub fn per_core(&self) -> f64 {
        self.per_second / self.core
    }
}

/// Waits until a start is over, and then watches for `time`. `begin` is called when that begins.
pub fn steady(
    server: &Node,
    pids: &[u32],
    time: Duration,
    begin: impl FnOnce() -> Result<()>,
) -> Result<Steady> {
    sleep(START);
    begin()?;
    let sniffer = Sniffer::start(server)?;
    let (begin, cpu_before) = (Instant::now(), cpu(pids)?);
    sleep(time);
    let (seconds, cpu_after) = (begin.elapsed().as_secs_f64(), cpu(pids)?);
    let frames = sniffer.stop()?;
    let arrivals = arrivals(&frames, INTERVAL).context("no check came twice")?;
    Ok(Steady {
        per_second: arrivals.count as f64 / seconds,
        core: (cpu_after - cpu_before).as_secs_f64() / seconds,
        arrivals,
    })
}

/// Processor time of processes and all their threads.
fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut all = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .context("no fields")?
            .split_whitespace()
            .collect();
        // User and system time, fields 14 and 15 of proc(5), in ticks of 10 ms.
        all += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(Duration::from_millis(all * 10))
}

/// Somebody who checks the server that dies.
pub trait Witness {
    /// Waits until it counts as up.
    fn until_up(&mut self) -> Result<()>;
    /// Hears that it is about to die, at rest.
    fn before_it_dies(&mut self) -> Result<()> {
        Ok(())
    }
    /// Waits until it does not. Returns when that was, since 1970 in ms.
    fn until_down(&mut self) -> Result<f64>;
}

/// Milliseconds from each death of a server to what its witness does about it, in order of size.
pub fn deaths(server: &Node, count: usize, witness: &mut impl Witness) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(count);
    for trial in 0..count {
        let listener = Listeners::open(server, &[DYING])?;
        witness.until_up()?;
        // At another place of the interval each time.
        sleep(INTERVAL + INTERVAL * u32::try_from(trial)? / u32::try_from(count)?);
        witness.before_it_dies()?;
        drop(listener);
        let died = SystemTime::now().duration_since(UNIX_EPOCH)?;
        all.push(witness.until_down()? - died.as_secs_f64() * 1e3);
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

/// A server that takes connections and says nothing.
pub struct Listeners {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    fn open(node: &Node, ports: &[u16]) -> Result<Self> {
        let mut all = Self {
            ended: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for port in ports {
            let listener = node.within(|| TcpListener::bind(("0.0.0.0", *port)))??;
            // The backlog of the standard library is 128, and all checks may come at once.
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4_096)?)?;
            // So that it ends when it is told.
            let patience = Some(Duration::from_millis(50));
            socket2::SockRef::from(&listener).set_read_timeout(patience)?;
            let ended = all.ended.clone();
            all.threads.push(std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    drop(listener.accept());
                }
            }));
        }
        Ok(all)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
