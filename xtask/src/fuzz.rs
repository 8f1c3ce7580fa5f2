//! `cargo xtask fuzz`: libFuzzer on every reader of bytes.
//!
//! The fuzzer is built by this toolchain: coverage instrumentation is a pass of LLVM that rustc runs when told to,
//! and libFuzzer itself comes as source with its crate, for g++ or clang++. Address sanitizer would need a nightly
//! compiler and could find little: what is fuzzed has no `unsafe`; what may go wrong are panics, overflows and
//! endless loops.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run;

/// libFuzzer's own description of what it needs: edges counted, compared values seen.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// An input that takes longer is a finding, in seconds.
const SLOW: u32 = 5;

/// Fuzzes one target, or each in turn, for so long.
pub fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let names = targets()?;
    if let Some(target) = target
        && !names.iter().any(|name| name == target)
    {
        bail!("no target {target}; there are {}", names.join(", "));
    }
    let program = build()?;
    for name in names {
        if target.is_none_or(|target| target == name) {
            run::stage(&format!("fuzzing {name} for {seconds} s"), || {
                fuzz(&program, &name, seconds)
            })?;
        }
    }
    Ok(())
}

/// The folders of the corpus: each target has one.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus()).context("no corpus")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn corpus() -> PathBuf {
    run::root().join("tests/fuzz/corpus")
}

fn folder() -> PathBuf {
    run::target().join("fuzz")
}

fn build() -> Result<PathBuf> {
    if run::find_program("g++").is_none() && run::find_program("clang++").is_none() {
        bail!("libFuzzer needs a C++ compiler: apt-get install g++");
    }
    // Named, so that build scripts and macros are not instrumented.
    let host = host()?;
    let manifest = run::root().join("tests/fuzz/Cargo.toml");
    // The product's own versions; only libFuzzer's crates are added.
    let lock = run::root().join("Cargo.lock");
    fs::copy(&lock, manifest.with_file_name("Cargo.lock")).context("copy Cargo.lock")?;
    let arguments = ["build", "--quiet", "--release", "--target", &host];
    run::stage("building the fuzzer", || {
        let mut command = run::cargo_command(&arguments);
        command
            .arg("--manifest-path")
            .arg(&manifest)
            .env("CARGO_TARGET_DIR", folder())
            .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
        run::run(&mut command)
    })?;
    Ok(folder().join(host).join("release/lb-fuzz"))
}

fn host() -> Result<String> {
    let told = run::output(Command::new("rustc").arg("-vV")).context("rustc")?;
    let line = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc names no host")?.to_owned())
}

/// New inputs that reach something go to target/fuzz/corpus, findings to target/fuzz/findings.
fn fuzz(program: &Path, name: &str, seconds: u32) -> Result<()> {
    let grown = folder().join("corpus").join(name);
    let findings = folder().join("findings");
    fs::create_dir_all(&grown)?;
    fs::create_dir_all(&findings)?;
    let mut command = Command::new(program);
    command
        .env("LBD_FUZZ_TARGET", name)
        .arg(&grown)
        .arg(corpus().join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .args([
            "-max_len=4096",
            "-print_final_stats=1",
            "-print_funcs=0",
            "-verbosity=0",
        ]);
    run::through_interrupts(&mut command)
        .with_context(|| format!("a finding of {name} is in {}", findings.display()))
}
