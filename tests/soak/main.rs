//! `cargo xtask soak`: minutes of adverts every 10 ms while every core is busy, without a false failover; or
//! minutes of health checks of which nothing is left.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lab::{hostile, soak};

#[derive(Parser)]
#[command(about = "Look for false failovers under load")]
struct Arguments {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Instead: hundreds of health checks against hostile servers, and whether descriptors or processes are left.
    #[arg(long)]
    checks: bool,
    /// Also write what was seen to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Between two lines of progress.
const REMINDER: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let time = Duration::try_from_secs_f64(arguments.minutes * 60.0).context("minutes")?;
    if arguments.checks {
        return checks(time, arguments.json);
    }
    let mut next = REMINDER;
    let soak = soak::run(time, |elapsed, soak| {
        if elapsed >= next {
            next += REMINDER;
            let directors = &soak.directors;
            let transitions: usize = directors.iter().map(|seen| seen.transitions.len()).sum();
            let late = directors.iter().map(|seen| seen.worst_lateness_us).max();
            println!(
                "{:>5} s: {transitions} transitions, {} adverts heard, latest timer {:.2} ms, machine {:.2} ms",
                elapsed.as_secs(),
                directors[1].received,
                late.unwrap_or_default() as f64 / 1e3,
                soak.machine_lateness_us as f64 / 1e3
            );
        }
    })?;
    println!(
        "an idle thread of the same priority was late by {:.2} ms at most",
        soak.machine_lateness_us as f64 / 1e3
    );
    for seen in &soak.directors {
        println!(
            "{}: {} adverts sent, {} heard, {} not sent, {} not believed; latest timer {:.2} ms ({:.2} ms before the load); {} transitions",
            seen.director,
            seen.sent,
            seen.received,
            seen.send_errors,
            seen.rejected,
            seen.worst_lateness_us as f64 / 1e3,
            seen.lateness_before_us as f64 / 1e3,
            seen.transitions.len()
        );
        for line in &seen.transitions {
            println!("    {line}");
        }
    }
    if let Some(file) = arguments.json {
        let text = serde_json::json!({ "seconds": time.as_secs_f64(), "soak": soak });
        std::fs::write(&file, serde_json::to_string_pretty(&text)? + "\n")
            .with_context(|| file.display().to_string())?;
    }
    ensure!(
        soak.is_quiet() || !soak.stood_still(),
        "there were failovers, but the machine itself stood still: run it on a quieter host"
    );
    ensure!(soak.is_quiet(), "there were false failovers");
    Ok(())
}

/// Health checks against hostile servers.
fn checks(time: Duration, json: Option<PathBuf>) -> Result<()> {
    let mut next = REMINDER;
    let seen = hostile::run(time, |elapsed, most| {
        if elapsed >= next {
            next += REMINDER;
            println!("{:>5} s: {most} descriptors at the most", elapsed.as_secs());
        }
    })?;
    println!(
        "{} checks, {} attempts; descriptors: {} before, {} at the most, {} after; {} children are left",
        seen.checks, seen.attempts, seen.before, seen.most, seen.after, seen.children
    );
    if let Some(file) = json {
        let text = serde_json::json!({ "seconds": time.as_secs_f64(), "checks": seen });
        std::fs::write(&file, serde_json::to_string_pretty(&text)? + "\n")
            .with_context(|| file.display().to_string())?;
    }
    ensure!(
        seen.after == seen.before && seen.children == 0,
        "something is left of the checks"
    );
    Ok(())
}
