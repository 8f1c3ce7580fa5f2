//! `cargo xtask bench failover`: how long a client is without its address, for lbd and for
//! keepalived in turn, in the same namespaces.

mod adverts;
mod aims;
mod pair;
mod probe;

use std::{
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::{
    aims::{Judgement, Row},
    pair::{Daemon, Pair, Timers},
    probe::Probe,
};

#[derive(Parser)]
#[command(about = "Measure outages of failovers, for lbd and keepalived")]
struct Arguments {
    /// Also write the figures to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Trials of each event.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    trials: u16,
    /// Only these timers: v2-1s, v3-100ms, v3-10ms.
    #[arg(long)]
    timers: Vec<String>,
}

/// What is done to the pair, in the order of one trial. Each leaves it in its normal state or in the
/// one that the next begins with.
const EVENTS: [&str; 6] = ["stop", "preempt", "port-down", "kill", "silent-cut", "heal"];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut rows = Vec::new();
    println!(
        "{:<11} {:<9} {:<11} {:>7} {:>7} {:>7}   ms without the address",
        "daemon", "timers", "event", "min", "median", "max"
    );
    for timers in Timers::ALL {
        if !arguments.timers.is_empty()
            && !arguments.timers.iter().any(|name| name == timers.name())
        {
            continue;
        }
        for daemon in Daemon::ALL {
            if timers == Timers::V3_10 && daemon == Daemon::Keepalived {
                // Its adverts of 10 ms lose themselves on a busy machine; no figure is asked for.
                continue;
            }
            let measured = measure(daemon, timers, arguments.trials)
                .with_context(|| format!("{} with {}", daemon.name(), timers.name()))?;
            for (event, mut outages) in EVENTS.into_iter().zip(measured) {
                outages.sort_by(f64::total_cmp);
                let row = Row {
                    daemon,
                    timers,
                    event,
                    outages,
                };
                println!(
                    "{:<11} {:<9} {event:<11} {:>7.1} {:>7.1} {:>7.1}",
                    daemon.name(),
                    timers.name(),
                    row.outages[0],
                    row.median(),
                    row.longest()
                );
                rows.push(row);
            }
        }
    }
    let aims = aims::judge(&rows);
    println!("\n{:<66} {:>8} {:>8}   ms", "aim", "at most", "seen");
    let figure = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    for aim in &aims {
        let (limit, seen) = (figure(aim.at_most_ms), figure(aim.seen_ms));
        let word = aim.judgement.word();
        println!("{:<66} {limit:>8} {seen:>8}   {word}", aim.aim);
    }
    let missed = aims.iter().filter(|aim| aim.judgement == Judgement::Missed);
    let missed = missed.count();
    if let Some(file) = arguments.json {
        let events: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "daemon": row.daemon.name(),
                    "timers": row.timers.name(),
                    "event": row.event,
                    "outage_ms": row.outages,
                })
            })
            .collect();
        let all = serde_json::json!({ "events": events, "aims": aims });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
    }
    ensure!(missed == 0, "{missed} of {} aims were missed", aims.len());
    Ok(())
}

/// Outages in milliseconds, by event.
fn measure(daemon: Daemon, timers: Timers, trials: u16) -> Result<[Vec<f64>; EVENTS.len()]> {
    let mut pair = Pair::start(daemon, timers)?;
    let mut outages: [Vec<f64>; EVENTS.len()] = Default::default();
    let phases = EVENTS.map(|_| phases(timers.interval(), trials));
    for trial in 0..usize::from(trials) {
        for ((event, outages), phases) in EVENTS.into_iter().zip(&mut outages).zip(&phases) {
            pair.rest(event)?;
            let probe = Probe::start(pair.client())?;
            // After a heal the client may have lost its way for long.
            probe.until_steady(Instant::now(), Duration::from_millis(300))?;
            adverts::hear(
                pair.client(),
                3 * timers.interval() + Duration::from_secs(1),
            )?;
            std::thread::sleep(phases[trial]);
            let begin = Instant::now();
            pair.act(event)?;
            // Some consequences come with the next advert only.
            probe.until_steady(begin, 2 * timers.interval() + Duration::from_millis(500))?;
            outages.push(probe.finish(begin).as_secs_f64() * 1e3);
            pair.settle(event)?;
        }
    }
    Ok(outages)
}

/// How long after an advert each trial's event comes: every part of the interval once, in random order, and the same parts
/// for both daemons. With times of its own each would have another median, by a part of the interval.
fn phases(interval: Duration, trials: u16) -> Vec<Duration> {
    let trials = u32::from(trials);
    let mut parts: Vec<u32> = (0..trials).collect();
    let order = RandomState::new();
    parts.sort_by_cached_key(|part| order.hash_one(part));
    let middle = |part| interval * (2 * part + 1) / (2 * trials);
    parts.into_iter().map(middle).collect()
}
