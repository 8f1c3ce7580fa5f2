//! `cargo xtask bench health`: what two thousand checks a second cost, how late they begin, and how long
//! a dead server stays in the data plane. What is told as "since the start" counts the start as well, when two thousand
//! real servers are found on the network.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lab::{Director, Lab, Node, network::INTERFACE, wait};
use lb_user::{
    api::proto::{Event, EventPage, ProbesStatus},
    model::Spread,
};
use nix::sched::{CloneFlags, setns};

#[derive(Parser)]
#[command(about = "Measure health checks")]
struct Arguments {
    /// Also write the figures to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds of steady running that are measured.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Deaths that are measured.
    #[arg(long, default_value_t = 10)]
    deaths: usize,
}

/// Real servers of each service: fewer than the 1,024 neighbours that the kernel keeps by default.
const SERVERS: usize = 100;
/// Services with all of them: two thousand checks in all.
const SERVICES: usize = 20;
const INTERVAL: Duration = Duration::from_secs(1);
/// For what must follow a birth or a death.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let lab = Lab::new()?;
    let director = lab.node("node1", [10, 1, 15, 43])?;
    let server = lab.node("rs1", [10, 1, 15, 45])?;
    // The server has every address of this network.
    server.ip(&["route", "add", "local", "10.1.32.0/24", "dev", "lo"])?;
    let load = Listener::open(&server, 80)?;
    let mut director = Director::new(&lab, &director, &config())?;
    director.start(&lab)?;
    let steady = steady(&mut director, Duration::from_secs(arguments.seconds))?;
    println!(
        "{:.0} probes a second, {:.1} % of a core, {:.0} probes a second and core",
        steady.per_second,
        steady.core * 100.0,
        steady.per_second / steady.core
    );
    println!(
        "late by {:.1} ms on average; since the start by {} ms (median), {} ms (99 %), {:.1} ms (worst)",
        steady.late.mean_ms(),
        steady.after.lateness.p50_ms,
        steady.after.lateness.p99_ms,
        steady.after.lateness.max_ms
    );
    let mut deaths = deaths(&director, &server, arguments.deaths)?;
    deaths.sort_by(f64::total_cmp);
    println!(
        "death to the data plane that follows, with an interval of {INTERVAL:?}, all else running: min {:.0}, median {:.0}, max {:.0} ms",
        deaths[0],
        deaths[deaths.len() / 2],
        deaths[deaths.len() - 1]
    );
    let reaction = since(&director.status()?.probes.reaction, &steady.after.reaction);
    println!(
        "from the end of a probe to the data plane that follows: {:.1} ms on average, {} times",
        reaction.mean_ms(),
        reaction.count
    );
    histogram("late", &steady.late);
    histogram("reaction", &reaction);
    drop(load);
    if let Some(file) = arguments.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({
            "probes_per_second_per_core": steady.per_second / steady.core,
            "probes_per_second": steady.per_second,
            "core_share": steady.core,
            "late_ms": {
                "p50": steady.after.lateness.p50_ms,
                "p99": steady.after.lateness.p99_ms,
                "max": steady.after.lateness.max_ms,
            },
            "death_to_map_ms": { "lbd": deaths },
            "probe_end_to_map_ms": {
                "count": reaction.count,
                "mean": reaction.mean_ms(),
                "below": reaction.below,
            },
            "late_mean_ms": steady.late.mean_ms(),
            "late_below_ms": steady.late.below,
        }))?;
        std::fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Services with the load, and one whose real server dies.
fn config() -> String {
    let check = "[[service.check]]\ntype = \"tcp\"\ninterval = \"1s\"\nretries = 0\nconnect_timeout = \"1s\"\n";
    let service = |port: usize, servers: String| {
        format!("[[service]]\naddress = \"10.1.15.50:{port}\"\n{check}port = {port}\n{servers}")
    };
    let server = |address: String| format!("[[service.backend]]\naddress = \"{address}\"\n");
    let all: String = (1..=SERVERS)
        .map(|n| server(format!("10.1.32.{n}")))
        .collect();
    let load: String = (0..SERVICES)
        .map(|n| {
            service(1_000 + n, all.clone())
                .replace(&format!("port = {}\n", 1_000 + n), "port = 80\n")
        })
        .collect();
    let dying = service(81, server("10.1.15.45".to_owned()));
    format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{dying}{load}")
}

struct Steady {
    per_second: f64,
    core: f64,
    /// How late attempts began meanwhile.
    late: Counted,
    /// All that had been counted at the end of it, before the deaths.
    after: ProbesStatus,
}

/// What was counted within a time: of counters, what can be subtracted.
struct Counted {
    count: u64,
    sum_s: f64,
    below: Vec<(u32, u64)>,
}

impl Counted {
    fn mean_ms(&self) -> f64 {
        self.sum_s * 1e3 / self.count.max(1) as f64
    }
}

/// What has been counted since.
fn since(now: &Spread, before: &Spread) -> Counted {
    let below = now.below.iter().zip(&before.below);
    Counted {
        count: now.count - before.count,
        sum_s: now.sum_s - before.sum_s,
        below: below
            .map(|((bound, now), (_, before))| (*bound, now - before))
            .collect(),
    }
}

/// How many took less than so many milliseconds.
fn histogram(what: &str, counted: &Counted) {
    let shares: Vec<String> = counted
        .below
        .iter()
        .map(|(bound, count)| {
            let share = *count as f64 * 100.0 / counted.count.max(1) as f64;
            format!("< {bound} ms {share:.2} %")
        })
        .collect();
    println!("{what}: {} times: {}", counted.count, shares.join(", "));
}

fn steady(director: &mut Director, time: Duration) -> Result<Steady> {
    // The first attempts are over by then, and what a start costs.
    sleep(Duration::from_secs(4));
    let pid = director.process()?.id();
    let (begin, before, cpu_before) = (Instant::now(), director.status()?.probes, cpu(pid)?);
    sleep(time);
    let (after, cpu_after) = (director.status()?.probes, cpu(pid)?);
    let seconds = begin.elapsed().as_secs_f64();
    let late = since(&after.lateness, &before.lateness);
    let down = director.status()?.checks.iter().filter(|c| !c.up).count();
    // Nobody listens on port 81 yet.
    ensure!(down == 1, "{down} real servers are down");
    Ok(Steady {
        per_second: late.count as f64 / seconds,
        core: (cpu_after - cpu_before).as_secs_f64() / seconds,
        late,
        after,
    })
}

/// Processor time of a process and all its threads.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .context("no fields")?
        .split_whitespace()
        .collect();
    // User and system time, fields 14 and 15 of proc(5), in ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Milliseconds from a server's death to the data plane without it. Events tell of the verdict, which cost the director
/// little: to ask for all of its status every few milliseconds would keep it busy. They bear the time before the data
/// plane is changed; what is counted from the end of the probe to the end of that is added.
fn deaths(director: &Director, server: &Node, count: usize) -> Result<Vec<f64>> {
    let last = || -> Result<Option<Event>> {
        let page: EventPage = serde_json::from_str(&director.ctl(&["--json", "events"])?)?;
        let about = |event: &Event| event.text.starts_with("real server 10.1.15.45 is ");
        let all = page.events.into_iter().filter(about);
        Ok(all.max_by_key(|event| event.last_ms))
    };
    let wait_for = |what: &str| {
        let text = format!("real server 10.1.15.45 is {what}");
        wait::until(&text, PATIENCE, || {
            Ok(last()?.filter(|event| event.text.starts_with(&text)))
        })
    };
    let mut all = Vec::with_capacity(count);
    for trial in 0..count {
        let listener = Listener::open(server, 81)?;
        wait_for("up")?;
        // At another place of the interval each time.
        sleep(INTERVAL + INTERVAL * u32::try_from(trial)? / u32::try_from(count)?);
        let before = director.status()?.probes.reaction;
        drop(listener);
        let died = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let event = wait_for("down")?;
        let reaction = wait::until("the data plane has followed", PATIENCE, || {
            let reaction = since(&director.status()?.probes.reaction, &before);
            Ok((reaction.count > 0).then_some(reaction))
        })?;
        let verdict = event.last_ms as f64 - died.as_secs_f64() * 1e3;
        all.push(verdict + reaction.sum_s * 1e3);
    }
    Ok(all)
}

/// A server that takes connections and says nothing.
struct Listener {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    fn open(node: &Node, port: u16) -> Result<Self> {
        let listener = node.within(move || TcpListener::bind(("0.0.0.0", port)))??;
        // The backlog of the standard library is 128, and two thousand come each second.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4_096)?)?;
        let namespace = node.open()?;
        let ended = Arc::new(AtomicBool::new(false));
        let flag = ended.clone();
        listener.set_nonblocking(true)?;
        let thread = std::thread::spawn(move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            while !flag.load(Ordering::Relaxed) {
                if listener.accept().is_err() {
                    sleep(Duration::from_millis(2));
                }
            }
        });
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
