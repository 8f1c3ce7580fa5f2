//! The guest: Debian's cloud kernel, booted by QEMU, for what the kernel of this machine does not
//! have: IPVS, VLAN devices, tunnels, SCTP, and an older verifier.
//!
//! Its programs and libraries are this machine's own, so Debian's kernel runs under Debian's (or
//! Ubuntu's) user space.

mod image;

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{apt, run};

/// Programs that only the guest needs, and their packages.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("ipvsadm", "ipvsadm"),
    ("nft", "nftables"),
];
/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Seconds after which a guest is ended. A full run takes a few minutes under emulation.
const LIMIT_S: u32 = 1500;
/// As fast as emulation goes.
const TWO_PROCESSORS: [&str; 4] = ["-smp", "2", "-accel", "tcg,thread=multi"];
/// One nanosecond of the guest's clock is one instruction: what it measures does not depend on this
/// machine.
const COUNTING: [&str; 6] = [
    "-smp",
    "1",
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
];
/// What the program that measures prints before its figures.
const RESULT: &str = "RESULT ";
/// That program. IPVS gets the largest table of connections that it can have.
const MEASURING: &str = "instructions";
const MEASURING_SCRIPT: &str = "modprobe veth; modprobe dummy numdummies=0\n\
    modprobe ip_vs conn_tab_bits=20; modprobe ip_vs_wrr\n\
    status=0; /opt/lbd/instructions --nocapture --test-threads=1 || status=1\n";
/// What a guest prints last, with its status.
const END: &str = "the guest ends with status";

/// One test program and the tests of it that run in the guest.
struct Suite {
    program: &'static str,
    filters: &'static [&'static str],
    /// Runs after all others, because it sets the machine's clock.
    sets_the_clock: bool,
}

/// Everything under `tests/guest`, and those of `tests/cases` that ask the verifier and the
/// program of the guest's kernel.
const SUITES: [Suite; 3] = [
    Suite {
        program: "guest",
        filters: &[],
        sets_the_clock: false,
    },
    Suite {
        program: "cases",
        filters: &[
            "packets::",
            "shapes::every_packet",
            "tunnels::all_four",
            "choosing::weighted",
            "choosing::maglev",
        ],
        sets_the_clock: false,
    },
    Suite {
        program: "guest",
        filters: &["clock::"],
        sets_the_clock: true,
    },
];

/// Why no guest can run here, or `None`.
pub fn obstacle() -> Option<String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Some("the guest is an x86-64 machine".to_owned());
    }
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| run::find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() && !run::is_root() {
        return Some(format!("missing packages: {}", missing.join(" ")));
    }
    if missing.iter().any(|package| !apt::is_available(package)) {
        return Some(format!("apt does not have: {}", missing.join(" ")));
    }
    if image::kernel().is_none() && !apt::is_available(KERNEL) {
        return Some(format!("apt does not have the guest's kernel, {KERNEL}"));
    }
    None
}

/// Boots the guest and runs the tests whose name contains `filter` (all of them without one), those
/// that count instructions in a guest of their own. `line` gets every line that the guests print.
pub fn tests(filter: Option<&str>, mut line: impl FnMut(&str)) -> Result<()> {
    prepare()?;
    let payload = run::stage("building the guest's programs", image::tests)?;
    let mut first = None;
    if filter.is_none_or(|filter| SUITES.iter().any(|s| payload.has_test(s.program, filter))) {
        let overlay = image::build(&script(filter), &payload)?;
        let ran = run::stage("running the guest", || {
            boot(&overlay, &TWO_PROCESSORS, &mut line)
        });
        first = Some(ran);
    }
    if filter.is_none_or(|filter| payload.has_test(MEASURING, filter)) {
        let overlay = image::build(MEASURING_SCRIPT, &payload)?;
        run::stage("counting instructions in the guest", || {
            boot(&overlay, &COUNTING, &mut line)
        })?;
    } else if first.is_none() {
        println!("no test of the guest is called that");
    }
    first.unwrap_or(Ok(()))
}

/// Measures what a packet costs in XDP and in IPVS. `take` gets the figures as JSON, also those over
/// their budget.
pub fn bench(mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    prepare()?;
    let payload = run::stage("building the guest's programs", image::tests)?;
    let overlay = image::build(MEASURING_SCRIPT, &payload)?;
    let mut figures = None;
    let ran = run::stage("counting instructions in the guest", || {
        boot(&overlay, &COUNTING, &mut |line: &str| {
            if let Some(text) = line.strip_prefix(RESULT) {
                figures = Some(text.to_owned());
            }
        })
    });
    if let Some(text) = &figures {
        take(text)?;
    }
    ran?;
    figures.context("the guest printed no figures").map(|_| ())
}

/// Installs what is missing and fetches the kernel.
fn prepare() -> Result<()> {
    let missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| run::find_program(program).is_none())
        .map(|(_, package)| (*package).to_owned())
        .collect();
    if !missing.is_empty() {
        apt::install(&missing)?;
    }
    if image::kernel().is_none() {
        run::stage("fetching the guest's kernel", || {
            apt::update()?;
            image::fetch_kernel(KERNEL)
        })?;
    }
    Ok(())
}

/// The guest's commands. A filter with `::` names a module, as the test programs print it; one of several
/// words names what any of them does.
fn script(filter: Option<&str>) -> String {
    let mut text = String::from("status=0\n");
    for suite in &SUITES {
        let chosen: Vec<String> = match filter {
            None => suite.filters.iter().map(|&f| f.to_owned()).collect(),
            // Nothing else runs beside those that set the clock.
            Some(filter) => words(filter)
                .filter(|word| !suite.sets_the_clock || word.contains("clock"))
                .map(|word| word.replace('\'', ""))
                .collect(),
        };
        if suite.sets_the_clock && chosen.is_empty() {
            continue;
        }
        let quoted: String = chosen.iter().map(|f| format!(" '{f}'")).collect();
        let skipped = match suite.sets_the_clock {
            true => "",
            false => " --skip clock::",
        };
        let program = suite.program;
        text += &format!(
            "/opt/lbd/{program} --test-threads=2 --show-output{quoted}{skipped} || status=1\n"
        );
    }
    text
}

fn words(filter: &str) -> impl Iterator<Item = &str> {
    filter.split_whitespace()
}

/// Boots, prints what the guest prints, and returns its verdict.
fn boot(overlay: &[PathBuf], machine: &[&str], line: &mut impl FnMut(&str)) -> Result<()> {
    let kernel = image::kernel().context("no kernel")?;
    let initrd = image::join(overlay)?;
    let mut command = Command::new("timeout");
    command
        .arg(LIMIT_S.to_string())
        .arg("qemu-system-x86_64")
        .args(["-m", "3072", "-cpu", "max", "-nographic"])
        .args(["-no-reboot", "-nodefaults", "-serial", "stdio"])
        // Emulation everywhere: a machine that offers KVM to its guests may still not boot one.
        .args(machine)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off loglevel=3",
        ]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64")?;
    let stdout = child.stdout.take().context("no output")?;
    let mut verdict = None;
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text?;
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\r');
        if let Some(status) = text.strip_prefix(END) {
            verdict = Some(status.trim() == "0");
        } else {
            println!("{text}");
            line(text);
        }
    }
    let output = child.wait_with_output()?;
    match verdict {
        Some(true) => Ok(()),
        Some(false) => bail!("tests failed in the guest"),
        None => bail!(
            "the guest died or took longer than {LIMIT_S} s ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}
