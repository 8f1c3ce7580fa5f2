//! `cargo xtask bench health`: what two thousand checks a second cost, how late they begin, and how long
//! a dead server stays in the data plane; and the same of keepalived. What is told as "since the start" counts the
//! start as well, when two thousand real servers are found on the network.

mod load;
mod ours;
mod theirs;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use lab::Lab;
use serde_json::{Value, json};

use crate::{
    load::{INTERVAL, Steady},
    ours::{Counted, Ours},
    theirs::Theirs,
};

#[derive(Parser)]
#[command(about = "Measure health checks, of lbd and of keepalived")]
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let lab = Lab::new()?;
    let node = lab.node("node1", [10, 1, 15, 43])?;
    let server = lab.node("rs1", [10, 1, 15, 45])?;
    // The server has every address of this network.
    server.ip(&["route", "add", "local", "10.1.32.0/24", "dev", "lo"])?;
    let load = load::serve(&server)?;
    let time = Duration::from_secs(arguments.seconds);
    let ours = ours::measure(&lab, &node, &server, time, arguments.deaths)?;
    let theirs =
        theirs::measure(&lab, &node, &server, time, arguments.deaths).context("keepalived")?;
    drop(load);
    table(&ours, &theirs);
    details(&ours);
    if let Some(file) = arguments.json {
        let text = serde_json::to_string_pretty(&figures(&ours, &theirs))?;
        std::fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Both, side by side.
fn table(ours: &Ours, theirs: &Theirs) {
    let row = |what: &str, of: &dyn Fn(&Steady, &[f64]) -> String| {
        let ours = of(&ours.steady, &ours.deaths);
        let theirs = of(&theirs.steady, &theirs.deaths);
        println!("{what:<58} {ours:>22} {theirs:>22}");
    };
    println!("{:<58} {:>22} {:>22}", "", "lbd", "keepalived");
    row("checks a second, as the servers see them", &|s, _| {
        format!("{:.0}", s.per_second)
    });
    row("per cent of a core", &|s, _| {
        format!("{:.1}", s.core * 100.0)
    });
    row("checks a second and core", &|s, _| {
        format!("{:.0}", s.per_core())
    });
    row(
        "between two of a check, ms beyond the interval: earliest",
        &|s, _| format!("{:.1}", s.arrivals.min),
    );
    row("  median / 99 % / latest", &|s, _| {
        let late = s.arrivals;
        format!("{:.1} / {:.1} / {:.1}", late.p50, late.p99, late.max)
    });
    row(
        "death to the data plane, ms: least / median / most",
        &|_, d| {
            format!(
                "{:.0} / {:.0} / {:.0}",
                d[0],
                d[d.len() / 2],
                d[d.len() - 1]
            )
        },
    );
    println!("All with an interval of {INTERVAL:?}; the deaths while all else runs.");
}

/// What only lbd tells.
fn details(ours: &Ours) {
    let start = &ours.after.lateness;
    println!(
        "lbd, by its own clock: late by {:.1} ms on average; since the start by {} ms (median), {} ms (99 %), {:.1} ms (worst)",
        ours.late.mean_ms(),
        start.p50_ms,
        start.p99_ms,
        start.max_ms
    );
    println!(
        "from the end of a probe to the data plane that follows: {:.1} ms on average, {} times",
        ours.reaction.mean_ms(),
        ours.reaction.count
    );
    histogram("late", &ours.late);
    histogram("reaction", &ours.reaction);
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

fn figures(ours: &Ours, theirs: &Theirs) -> Value {
    let start = &ours.after.lateness;
    let of = |steady: &Steady| {
        json!({
            "probes_per_second_per_core": steady.per_core(),
            "probes_per_second": steady.per_second,
            "core_share": steady.core,
            "beyond_the_interval_ms": steady.arrivals,
        })
    };
    json!({
        "probes_per_second_per_core": ours.steady.per_core(),
        "probes_per_second": ours.steady.per_second,
        "core_share": ours.steady.core,
        "late_ms": { "p50": start.p50_ms, "p99": start.p99_ms, "max": start.max_ms },
        "late_mean_ms": ours.late.mean_ms(),
        "late_below_ms": ours.late.below,
        "death_to_map_ms": { "lbd": ours.deaths, "keepalived": theirs.deaths },
        "probe_end_to_map_ms": {
            "count": ours.reaction.count,
            "mean": ours.reaction.mean_ms(),
            "below": ours.reaction.below,
        },
        "seen_by_servers": { "lbd": of(&ours.steady), "keepalived": of(&theirs.steady) },
    })
}
