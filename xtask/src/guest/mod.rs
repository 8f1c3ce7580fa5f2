//! The guest: Debian's cloud kernel, booted by QEMU, for what the kernel of this machine does not
//! have: IPVS, VLAN devices, tunnels, SCTP, and an older verifier.
//!
//! Its programs and libraries are this machine's own, so Debian's kernel runs under Debian's (or
//! Ubuntu's) user space.

mod image;
mod machine;
mod progress;

use anyhow::{Context, Result};

pub use self::machine::Died;
use self::{
    image::Payload,
    machine::{ALIVE, ALIVE_S, COUNTING, TWO_PROCESSORS, boot},
    progress::{BEGIN, Progress, Suite},
};
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
/// Those that tell how long something takes, which others check already: they run when they are named.
const WHEN_NAMED: [&str; 1] = ["switching::losses::losses_are_short"];
/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the program that measures prints before its figures.
const RESULT: &str = "RESULT ";
/// That program. IPVS gets the largest table of connections that it can have.
const MEASURING: &str = "instructions";
const MEASURING_SCRIPT: &str = "modprobe veth; modprobe dummy numdummies=0\n\
    modprobe ip_vs conn_tab_bits=20; modprobe ip_vs_wrr\n\
    status=0; /opt/lbd/instructions --nocapture --test-threads=1 || status=1\n";
/// A test program and what of it runs in the guest, several at once.
const SUITES: [Plan; 3] = [
    // Everything under `tests/guest`.
    Plan {
        program: "guest",
        filters: "",
        sets_the_clock: false,
        limit_s: 1_500,
    },
    // Those of `tests/cases` that ask the verifier and the program of the guest's kernel.
    Plan {
        program: "cases",
        filters: "packets:: shapes::every_packet tunnels::all_four choosing::weighted choosing::maglev",
        sets_the_clock: false,
        limit_s: 300,
    },
    // Nothing else runs beside those that set the clock.
    Plan {
        program: "guest",
        filters: "",
        sets_the_clock: true,
        limit_s: 300,
    },
];

/// See [`SUITES`].
struct Plan {
    program: &'static str,
    /// Names of tests, or parts of them.
    filters: &'static str,
    sets_the_clock: bool,
    /// Seconds after which it is ended, more than twice what it takes.
    limit_s: u32,
}

/// Why no guest can run here, or `None` when everything is there that one needs.
pub fn obstacle() -> Option<String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Some("the guest is an x86-64 machine".to_owned());
    }
    let missing = missing_packages();
    if !missing.is_empty() && !run::is_root() {
        return Some(format!("missing packages: {}", missing.join(" ")));
    }
    let mut wanted = missing;
    wanted.extend(image::kernel().is_none().then_some(KERNEL));
    let unknown = || -> Vec<&str> {
        let all = wanted.iter().copied();
        all.filter(|package| !apt::is_available(package)).collect()
    };
    // A fresh machine has no lists of packages yet.
    if !unknown().is_empty()
        && let Err(error) = apt::update()
    {
        return Some(format!("{error:#}"));
    }
    match unknown()[..] {
        [] => prepare().err().map(|error| format!("{error:#}")),
        ref names => Some(format!("apt does not have: {}", names.join(" "))),
    }
}

/// Boots the guest and runs the tests whose name contains one of the words of `filter` (all of them without
/// one, but for those of [`WHEN_NAMED`]), those that count instructions in a guest of their own. `line` gets every line that the guests print, and what
/// a suite that did not come to its end did not print. An error is [`Died`] if a guest had no verdict.
/// The daemon is that of `profile`, a folder of the target.
pub fn tests(filter: Option<&str>, profile: &str, mut line: impl FnMut(&str)) -> Result<()> {
    prepare()?;
    let payload = run::stage("building the guest's programs", || image::tests(profile))?;
    let suites: Vec<(Suite, u32)> = SUITES
        .iter()
        .map(|plan| (suite(plan, filter, &payload), plan.limit_s))
        .filter(|(suite, _)| !suite.tests.is_empty())
        .collect();
    let mut first = None;
    if !suites.is_empty() {
        let overlay = image::build(&script(&suites), &payload)?;
        let suites: Vec<Suite> = suites.into_iter().map(|(suite, _)| suite).collect();
        let mut progress = Progress::new(&suites);
        let ran = run::stage("running the guest", || {
            boot(&overlay, &TWO_PROCESSORS, &mut |text: &str| {
                progress.take(text);
                line(text);
            })
        });
        for text in progress.missing() {
            println!("{text}");
            line(&text);
        }
        first = Some(ran);
    }
    if filter.is_none_or(|filter| !payload.tests(MEASURING, filter).is_empty()) {
        let overlay = image::build(MEASURING_SCRIPT, &payload)?;
        let ran = run::stage("counting instructions in the guest", || {
            boot(&overlay, &COUNTING, &mut line)
        });
        // The first guest's death is worth more words than the second's.
        first = match first {
            Some(Err(error)) => Some(Err(error)),
            _ => Some(ran),
        };
    } else if first.is_none() {
        println!("no test of the guest is called that");
    }
    first.unwrap_or(Ok(()))
}

/// The tests of a suite, all of it or what a filter names.
fn suite(plan: &Plan, filter: Option<&str>, payload: &Payload) -> Suite {
    let mut tests = payload.tests(plan.program, filter.unwrap_or(plan.filters));
    tests.retain(|name| name.starts_with("clock::") == plan.sets_the_clock);
    tests.retain(|name| filter.is_some() || !WHEN_NAMED.contains(&name.as_str()));
    Suite {
        program: plan.program,
        tests,
    }
}

/// Measures what a packet costs in XDP and in IPVS. `take` gets the figures as JSON, also those over
/// their budget.
pub fn bench(mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    prepare()?;
    let payload = run::stage("building the guest's programs", || image::tests("debug"))?;
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

/// Packages of the programs that are not there.
fn missing_packages() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .filter(|(program, _)| run::find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

/// Installs what is missing and fetches the kernel.
fn prepare() -> Result<()> {
    let missing: Vec<String> = missing_packages().into_iter().map(str::to_owned).collect();
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

/// The guest's commands.
fn script(suites: &[(Suite, u32)]) -> String {
    let mut text = format!("while sleep {ALIVE_S}; do echo '{ALIVE}'; done &\nstatus=0\n");
    for (number, (suite, limit_s)) in suites.iter().enumerate() {
        let Suite { program, tests } = suite;
        let tests = tests.join(" ");
        text += &format!(
            "echo '{BEGIN}{number}'\nlimited {limit_s} /opt/lbd/{program} --test-threads=2 --show-output --exact {tests} \
             || status=1\n"
        );
    }
    text
}
