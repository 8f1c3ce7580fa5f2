//! `lbd-bench OBJECT [--json FILE]`: cost per packet of the XDP program, in one run with what it is
//! compared to. Run by `cargo xtask bench data-plane`.
//!
//! Every round runs every case once, so that whatever the machine does in the meantime meets all of
//! them; the wrapper's own cost is subtracted within the round. Reported are minimum and median.

mod cases;
mod hammer;
mod harness;

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use serde_json::json;

use crate::{
    cases::{CASES, Case, FLOORS},
    harness::Harness,
};

/// Measures the cost per packet of the XDP program.
#[derive(Parser)]
struct Arguments {
    /// The compiled benchmark programs.
    object: PathBuf,
    /// Also write the figures to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Packets of each case in each round.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u32,
    /// Measure nothing: flood the half-open table while connections are established, then let two CPUs
    /// work on one flow table, that many packets each, and look for torn entries and flows with two real
    /// servers.
    #[arg(long, value_name = "PACKETS")]
    hammer: Option<u32>,
}

/// SYNs of random sources.
const FLOOD: u32 = 10_000_000;

/// A case's figures.
struct Figures {
    case: &'static Case,
    net: Vec<f64>,
    ratios: Vec<f64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut harness = Harness::new(&arguments.object)?;
    if let Some(packets) = arguments.hammer {
        let broken = harness.flood(FLOOD)?;
        anyhow::ensure!(
            broken == 0,
            "{broken} of 1,024 connections broke in a flood of {FLOOD} SYNs"
        );
        println!("no connection of 1,024 broke in a flood of {FLOOD} SYNs");
        let wrong = harness.hammer(&arguments.object, packets)?;
        anyhow::ensure!(
            wrong.is_empty(),
            "{} faults: {:?}",
            wrong.len(),
            wrong.first()
        );
        println!("no torn entry, no flow with two real servers");
        println!("{}", harness.describe()?);
        return Ok(());
    }
    println!("preparing flows");
    harness.warm_up()?;
    let mut all: Vec<Figures> = CASES
        .iter()
        .map(|case| Figures {
            case,
            net: Vec::new(),
            ratios: Vec::new(),
        })
        .collect();
    for round in 1..=arguments.rounds {
        print!("\rround {round} of {}", arguments.rounds);
        std::io::Write::flush(&mut std::io::stdout())?;
        let floors: Vec<f64> = FLOORS
            .iter()
            .map(|case| harness.measure(case, arguments.packets))
            .collect::<Result<_>>()?;
        let nets: Vec<f64> = CASES
            .iter()
            .map(|case| Ok(harness.measure(case, arguments.packets)? - floors[case.floor()]))
            .collect::<Result<_>>()?;
        let net = |name: &str| -> f64 {
            CASES
                .iter()
                .position(|case| case.name == name)
                .map_or(f64::NAN, |i| nets[i])
        };
        for (figures, own) in all.iter_mut().zip(&nets) {
            figures.net.push(*own);
            figures.ratios.push(own / net(figures.case.against));
        }
    }
    println!(
        "\n\n{:<20} {:>9} {:>9}  {:>8}",
        "case", "min (ns)", "median", "ratio"
    );
    for figures in &all {
        println!(
            "{:<20} {:>9.1} {:>9.1}  {:>8.2} of {}",
            figures.case.name,
            minimum(&figures.net),
            median(&figures.net),
            median(&figures.ratios),
            figures.case.against
        );
    }
    let (alone, flooded) = harness.under_flood(&arguments.object, arguments.packets)?;
    println!(
        "\n1,024 established connections, wrapper included: {alone} ns a packet alone, {flooded} while another CPU floods \
         the same tables with SYNs"
    );
    println!("\n{}", harness.describe()?);
    if let Some(file) = arguments.json {
        let cases: Vec<_> = all
            .iter()
            .map(|figures| {
                json!({
                    "name": figures.case.name,
                    "net_ns_min": minimum(&figures.net),
                    "net_ns_median": median(&figures.net),
                    "ratio_to_textbook": median(&figures.ratios),
                })
            })
            .collect();
        fs::write(
            file,
            serde_json::to_string_pretty(&json!({
                "cases": cases,
                "established_1k_ns": { "alone": alone, "under_flood": flooded },
            }))? + "\n",
        )?;
    }
    Ok(())
}

fn minimum(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
