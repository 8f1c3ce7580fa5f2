//! `cargo xtask`: everything that is done to this project, by one name each.
//!
//! Depends on none of the project's crates: it builds and runs them.

mod apt;
mod ebpf;
mod fuzz;
mod guest;
mod run;
mod setup;
mod test;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and demonstrate lbd")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine (as root, by apt), or say how.
    Setup,
    /// Compile the XDP program that the daemon embeds.
    BuildEbpf,
    /// Run the deployment guide's cluster in network namespaces and show what it does.
    Demo {
        /// Also write what was seen to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Run every test, or those whose name contains FILTER.
    Test {
        /// Part of a test's name.
        filter: Option<String>,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Fuzz what reads bytes of others, guided by coverage: one target, or each in turn.
    Fuzz {
        /// A folder of tests/fuzz/corpus.
        target: Option<String>,
        /// For each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run a pair with adverts every 10 ms while every core is busy, and look for false failovers.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// Also write what was seen to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Instead: health checks against hostile servers, and whether descriptors are lost.
        #[arg(long)]
        checks: bool,
    },
    /// Boot Debian's kernel under QEMU and run the tests that need it, or those whose name contains CASE.
    Vm {
        /// Part of a test's name.
        case: Option<String>,
        /// With an optimized daemon, for tests that print how long something takes.
        #[arg(long)]
        release: bool,
    },
    /// What continuous integration runs: the same as `test`.
    Ci,
}

#[derive(Subcommand)]
enum Bench {
    /// Cost per packet, against the textbook's load balancer in the same run.
    DataPlane {
        /// Also write the figures to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Instructions of a packet in XDP and in the kernel's IPVS, in a guest whose clock counts them.
    Ipvs {
        /// Also write the figures to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// How long a client is without its address when directors fail, for lbd and keepalived in turn.
    Failover {
        /// Also write the figures to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Trials of each event.
        #[arg(long, default_value_t = 10)]
        trials: u32,
    },
    /// What two thousand health checks a second cost, how late they begin, and what a death leads to.
    Health {
        /// Also write the figures to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::everything(),
        Command::BuildEbpf => ebpf::build(),
        Command::Demo { json } => demo(json),
        Command::Test { filter } => test::run(filter.as_deref()),
        Command::Bench {
            what: Bench::DataPlane { json },
        } => bench_data_plane(json),
        Command::Bench {
            what: Bench::Failover { json, trials },
        } => bench_laboratory("lbd-failover", &["--trials", &trials.to_string()], json),
        Command::Bench {
            what: Bench::Health { json },
        } => bench_laboratory("lbd-health", &[], json),
        Command::Bench {
            what: Bench::Ipvs { json },
        } => bench_ipvs(json),
        Command::Fuzz { target, seconds } => fuzz(target.as_deref(), seconds),
        Command::Soak {
            minutes,
            json,
            checks,
        } => soak(minutes, json, checks),
        Command::Vm { case, release } => vm(case.as_deref(), release),
        Command::Ci => test::run(None),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(json: Option<PathBuf>) -> Result<()> {
    // Relative to where the command was given, not to where the demonstration runs.
    let json = json.map(std::path::absolute).transpose()?;
    if let Some(file) = &json {
        // Whatever ends this run early, nobody takes an older result for this one's.
        std::fs::write(file, "{ \"passed\": false, \"steps\": [] }\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    setup::everything()?;
    if !run::is_root() {
        bail!(
            "the demonstration makes network namespaces and needs root: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo"
        );
    }
    ebpf::build()?;
    run::stage("building lbd, lbctl and the demonstration", || {
        run::cargo(&[
            "build",
            "--quiet",
            "--package",
            "lb-user",
            "--package",
            "lb-tests",
            "--bins",
        ])
    })?;
    let mut command = std::process::Command::new(run::target().join("debug/lbd-demo"));
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    run::through_interrupts(&mut command)
}

fn vm(case: Option<&str>, release: bool) -> Result<()> {
    if let Some(why) = guest::obstacle() {
        println!("==> skipping the guest's tests: no guest can run here: {why}");
        return Ok(());
    }
    setup::everything()?;
    ebpf::build()?;
    let profile = if release {
        build_release("building an optimized lbd")?;
        "release"
    } else {
        "debug"
    };
    guest::tests(case, profile, |_| ())
}

fn fuzz(target: Option<&str>, seconds: u32) -> Result<()> {
    // The daemon embeds it, and the readers are the daemon's.
    ebpf::build()?;
    fuzz::run(target, seconds)
}

fn bench_ipvs(json: Option<PathBuf>) -> Result<()> {
    if let Some(why) = guest::obstacle() {
        bail!("no guest can run here: {why}");
    }
    let json = json.map(std::path::absolute).transpose()?;
    setup::everything()?;
    ebpf::build()?;
    guest::bench(|figures| match &json {
        Some(file) => std::fs::write(file, figures.to_owned() + "\n")
            .with_context(|| format!("cannot write {}", file.display())),
        None => Ok(()),
    })
}

fn soak(minutes: f64, json: Option<PathBuf>, checks: bool) -> Result<()> {
    if !run::is_root() {
        bail!("network namespaces need root");
    }
    let json = json.map(std::path::absolute).transpose()?;
    setup::everything()?;
    ebpf::build()?;
    build_release("building lbd and the soak")?;
    let mut command = std::process::Command::new(run::target().join("release/lbd-soak"));
    command.args(["--minutes", &minutes.to_string()]);
    command.args(checks.then_some("--checks"));
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    run::through_interrupts(&mut command)
}

/// Every program of the daemon and of the laboratory, optimized.
fn build_release(what: &str) -> Result<()> {
    run::stage(what, || {
        let packages = ["--package", "lb-user", "--package", "lb-tests"];
        run::cargo(
            &[
                &["build", "--quiet", "--release"],
                &packages[..],
                &["--bins"],
            ]
            .concat(),
        )
    })
}

/// A benchmark with daemons in namespaces.
fn bench_laboratory(program: &str, arguments: &[&str], json: Option<PathBuf>) -> Result<()> {
    if !run::is_root() {
        bail!("network namespaces need root");
    }
    let json = json.map(std::path::absolute).transpose()?;
    setup::everything()?;
    ebpf::build()?;
    build_release("building lbd and the benchmark")?;
    let mut command = std::process::Command::new(run::target().join("release").join(program));
    command.args(arguments);
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    run::through_interrupts(&mut command)
}

fn bench_data_plane(json: Option<PathBuf>) -> Result<()> {
    if !run::is_root() {
        bail!("running BPF programs needs root");
    }
    let json = json.map(std::path::absolute).transpose()?;
    setup::everything()?;
    ebpf::build()?;
    run::stage("building the benchmark", || {
        run::cargo(&[
            "build",
            "--quiet",
            "--release",
            "--package",
            "lb-tests",
            "--bin",
            "lbd-bench",
        ])
    })?;
    let mut command = std::process::Command::new(run::target().join("release/lbd-bench"));
    command.arg(run::target().join("bpf/lb-bench.o"));
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    run::run(&mut command)
}
