//! The demonstration: the deployment guide's cluster in namespaces, every step measured.
//!
//! `lbd-demo [--json FILE]`. Run by `cargo xtask demo`, which builds what it needs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::{
    Guide,
    steps::{STEPS, Seen, Step},
};
use serde_json::{Value, json};

/// Outcome of one step.
struct Outcome {
    step: &'static Step,
    seen: Seen,
    error: Option<String>,
    took: Duration,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut json_file = None;
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--json", Some(file)) => json_file = Some(PathBuf::from(file)),
            _ => {
                eprintln!("usage: lbd-demo [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let outcomes = match demonstrate(json_file.as_deref()) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            eprintln!("demo: the cluster does not start: {error:#}");
            write_json(json_file.as_deref(), false, &[]);
            return ExitCode::FAILURE;
        }
    };
    let passed = outcomes.len() == STEPS.len() && outcomes.iter().all(|o| o.error.is_none());
    print_table(&outcomes);
    println!(
        "\n{}",
        if passed {
            "Every step saw what it should."
        } else {
            "The demonstration FAILED."
        }
    );
    if write_json(json_file.as_deref(), passed, &outcomes) && passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn demonstrate(json_file: Option<&Path>) -> Result<Vec<Outcome>> {
    println!("building the cluster: a switch, a client, two directors, two real servers");
    let began = Instant::now();
    let mut guide = Guide::start()?;
    println!("  ready after {:.1} s", began.elapsed().as_secs_f64());
    let mut outcomes = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        println!("[{}/{}] {} ...", index + 1, STEPS.len(), step.title);
        let began = Instant::now();
        let mut seen = Seen::default();
        let error = with_reminders(began, || (step.run)(&mut guide, &mut seen))
            .err()
            .map(|error| format!("{error:#}"));
        let took = began.elapsed();
        match &error {
            None => println!("      ok after {:.1} s", took.as_secs_f64()),
            Some(error) => {
                println!("      FAILED after {:.1} s: {error}", took.as_secs_f64());
                println!(
                    "--- log of node1\n{}--- log of node2\n{}",
                    guide.node1.log(),
                    guide.node2.log()
                );
            }
        }
        let failed = error.is_some();
        outcomes.push(Outcome {
            step,
            seen,
            error,
            took,
        });
        // An interrupted run leaves what it has seen, and that it did not pass.
        write_json(json_file, false, &outcomes);
        if failed {
            // Later steps need the normal state that this one did not restore.
            break;
        }
    }
    println!("removing the cluster");
    Ok(outcomes)
}

/// Says every ten seconds that a step still runs.
fn with_reminders<T>(began: Instant, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let pause = Duration::from_secs(10);
            while waiting.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                println!("      still running after {} s", began.elapsed().as_secs());
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn print_table(outcomes: &[Outcome]) {
    println!();
    for (index, outcome) in outcomes.iter().enumerate() {
        let verdict = if outcome.error.is_none() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "{}. {:<67} {verdict:>6} {:>6.1} s",
            index + 1,
            outcome.step.title,
            outcome.took.as_secs_f64()
        );
        for (what, value) in &outcome.seen.0 {
            match value {
                Value::String(text) => println!("     {what}: {text}"),
                other => println!("     {what}: {other}"),
            }
        }
        if let Some(error) = &outcome.error {
            println!("     error: {error}");
        }
    }
}

/// Writes the result; says whether that worked.
fn write_json(file: Option<&Path>, passed: bool, outcomes: &[Outcome]) -> bool {
    let Some(file) = file else { return true };
    let steps: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "name": outcome.step.name,
                "passed": outcome.error.is_none(),
                "seen": outcome.seen.0,
                "seconds": outcome.took.as_secs_f64(),
                "error": outcome.error,
            })
        })
        .collect();
    let document = json!({ "passed": passed, "steps": steps });
    let written = serde_json::to_string_pretty(&document)
        .context("encode")
        .and_then(|text| std::fs::write(file, text + "\n").context("write"));
    if let Err(error) = &written {
        eprintln!("demo: cannot write {}: {error:#}", file.display());
    }
    written.is_ok()
}
