//! Every test, with one closing line.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{ebpf, guest, run, setup};

/// What test runs reported.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of those that failed in the present stage.
    failing: Vec<String>,
    /// Names of those that failed beside others and passed alone.
    unsteady: Vec<String>,
}

/// More failures than this are no accident.
const ACCIDENTS: usize = 5;

/// Formatting and lints, then unit tests, then those that need root. With a filter only tests.
pub fn run(filter: Option<&str>) -> Result<()> {
    let root = run::is_root();
    if root {
        setup::everything()?;
    }
    ebpf::build()?;
    let mut tally = Tally::default();
    if filter.is_none() {
        tally.check("formatting", || run::cargo(&["fmt", "--all", "--check"]));
        tally.check("lints", || {
            let common = [
                "clippy",
                "--quiet",
                "--workspace",
                "--exclude",
                "lb-ebpf",
                "--all-targets",
            ];
            run::cargo(&[&common[..], &["--", "--deny", "warnings"]].concat())
        });
        tally.check("lints of the XDP program", lint_ebpf);
    }
    let unit = [
        "test",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--lib",
        "--bins",
        "--test",
        "rules",
        "--test",
        "decoders",
    ];
    tally.tests("unit tests and rules", &unit, filter, &[])?;
    // What is pure has no bad days.
    tally.failing.clear();
    // The daemon and lbctl that the system tests start.
    run::cargo(&["build", "--quiet", "--package", "lb-user", "--bins"])?;
    let system = [
        "test",
        "--package",
        "lb-tests",
        "--test",
        "cases",
        "--test",
        "allocations",
        "--test",
        "soak",
    ];
    let missing = setup::missing_programs();
    if root && missing.is_empty() {
        tally.tests(
            "packet, namespace and interoperability tests",
            &system,
            filter,
            &["--test-threads=3"],
        )?;
        tally.again(ACCIDENTS, |tally, names| {
            let harness = [&["--exact", "--test-threads=1"], names].concat();
            tally.tests("what failed, once more and alone", &system, None, &harness)
        })?;
    } else {
        let count = count_tests(&system, filter)?;
        let why = if root {
            format!("missing: {}", missing.join(", "))
        } else {
            "they need root".to_owned()
        };
        println!("==> skipping {count} packet, namespace and interoperability tests: {why}");
        tally.skipped += count;
    }
    guest_tests(&mut tally, filter)?;
    println!(
        "\n{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    if !tally.unsteady.is_empty() {
        println!(
            "unsteady: failed beside others, passed alone: {}",
            tally.unsteady.join(", ")
        );
    }
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    Ok(())
}

/// Those in the guest; with a filter only if it names one of them.
fn guest_tests(tally: &mut Tally, filter: Option<&str>) -> Result<()> {
    let own = [
        "test",
        "--package",
        "lb-tests",
        "--test",
        "guest",
        "--test",
        "instructions",
    ];
    let count = count_tests(&own, filter)?;
    if count == 0 {
        return Ok(());
    }
    let obstacle = match run::is_root() {
        true => guest::obstacle(),
        false => Some("it gets programs that only root installs".to_owned()),
    };
    if let Some(why) = obstacle {
        println!(
            "==> skipping the guest's tests ({count} of its own, and packets on its kernel): {why}"
        );
        tally.skipped += count;
        return Ok(());
    }
    let failed = tally.failed;
    let mut most = ACCIDENTS;
    if let Err(error) = guest::tests(filter, "debug", |line| tally.count(line)) {
        eprintln!("{error:#}");
        if error.is::<guest::Died>() {
            // One accident, whatever it had not done yet.
            most = usize::MAX;
        }
        if tally.failed == failed {
            // It has no name.
            tally.failed += 1;
        }
    }
    tally.again(most, |tally, names| {
        let filter = names.join(" ");
        guest::tests(Some(&filter), "debug", |line| tally.count(line))
    })
}

impl Tally {
    /// A check counts as one test; the others still run when it fails.
    fn check(&mut self, what: &str, work: impl FnOnce() -> Result<()>) {
        match run::stage(what, work) {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{error:#}");
                self.failed += 1;
            }
        }
    }

    /// Runs tests, shows their output, and counts what it says.
    fn tests(
        &mut self,
        what: &str,
        cargo: &[&str],
        filter: Option<&str>,
        harness: &[&str],
    ) -> Result<()> {
        run::stage(what, || {
            let mut command = run::cargo_command(cargo);
            command
                .arg("--no-fail-fast")
                .args(filter)
                .arg("--")
                .args(harness);
            let mut child = command
                .stdout(Stdio::piped())
                .spawn()
                .context("cargo test")?;
            let stdout = child.stdout.take().context("no output")?;
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                println!("{line}");
                self.count(&line);
            }
            let status = child.wait()?;
            if !status.success() && self.failed == 0 {
                // It did not even compile, or died without a verdict.
                self.failed += 1;
            }
            Ok(())
        })
    }

    /// Runs what failed in this stage once more, alone: tests of systems have time-outs, and a busy machine
    /// can make one miss its own. What passes then is named in the closing line.
    /// More than `most` are no accident.
    fn again(
        &mut self,
        most: usize,
        run: impl FnOnce(&mut Self, &[&str]) -> Result<()>,
    ) -> Result<()> {
        let failing = std::mem::take(&mut self.failing);
        if failing.is_empty() || failing.len() > most {
            return Ok(());
        }
        let names: Vec<&str> = failing.iter().map(String::as_str).collect();
        let mut alone = Self::default();
        // That tests failed again is in the tally.
        let verdict = run(&mut alone, &names);
        let passed = failing.len() as u64;
        if alone.passed >= passed && alone.failed == 0 && verdict.is_ok() {
            self.failed -= passed;
            self.passed += passed;
            self.unsteady.extend(failing);
        }
        Ok(())
    }

    /// Takes a line such as `test result: ok. 10 passed; 0 failed; 1 ignored; ...`.
    fn count(&mut self, line: &str) {
        // "test life::a_killed_daemon ... FAILED"
        let failing = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"));
        self.failing.extend(failing.map(str::to_owned));
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let number = |word: &str| -> u64 {
            let before = result.split(word).next().unwrap_or_default();
            before
                .trim_end()
                .rsplit(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        self.passed += number(" passed");
        self.failed += number(" failed");
        self.skipped += number(" ignored");
    }
}

fn count_tests(cargo: &[&str], filter: Option<&str>) -> Result<u64> {
    let mut command = run::cargo_command(cargo);
    command.arg("--quiet").args(filter).args(["--", "--list"]);
    let list = run::output(&mut command).context("the system tests do not compile")?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count() as u64)
}

/// The XDP program's lints, compiled for this machine: the BPF compiler has no clippy.
fn lint_ebpf() -> Result<()> {
    let arguments = [
        "clippy",
        "--quiet",
        "--package",
        "lb-ebpf",
        "--profile",
        "bpf",
        "--",
        "--deny",
        "warnings",
    ];
    let mut command = run::cargo_command(&arguments);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", run::target().join("bpf/lint"));
    run::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out");
        tally.count("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured");
        tally.count("test name ... ok");
        tally.count("test other::name ... FAILED");
        assert_eq!((tally.passed, tally.failed, tally.skipped), (13, 1, 2));
        assert_eq!(tally.failing, ["other::name"]);
    }

    /// What the second run says decides, and only if it speaks of every one.
    #[test]
    fn a_second_chance() {
        let failed_once = || {
            let mut tally = Tally::default();
            tally.count("test a ... FAILED");
            tally.count("test b ... FAILED");
            tally.count("test result: FAILED. 7 passed; 2 failed; 0 ignored");
            tally
        };
        for (second, passed, failed) in [
            ("test result: ok. 2 passed; 0 failed; 0 ignored", 9, 0),
            ("test result: FAILED. 1 passed; 1 failed; 0 ignored", 7, 2),
            ("test result: ok. 0 passed; 0 failed; 0 ignored", 7, 2),
        ] {
            let mut tally = failed_once();
            let run = |alone: &mut Tally, names: &[&str]| {
                assert_eq!(names, ["a", "b"]);
                alone.count(second);
                Ok(())
            };
            tally.again(ACCIDENTS, run).unwrap();
            assert_eq!((tally.passed, tally.failed), (passed, failed), "{second}");
            assert_eq!(tally.unsteady.is_empty(), failed > 0);
        }
    }
}
