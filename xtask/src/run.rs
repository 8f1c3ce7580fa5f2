//! Commands, and telling what runs and for how long.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A stage that takes longer says so this often.
const REMINDER: Duration = Duration::from_secs(15);

/// The workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where everything built goes, whatever the environment says: the daemon's build script looks for
/// the XDP program there.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `work` between two lines that say what it is and how long it took.
pub fn stage<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {what}");
    let began = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let reminder = remind(what.to_owned(), began, Arc::clone(&done));
    let result = work();
    done.store(true, Ordering::Relaxed);
    reminder.thread().unpark();
    let _ = reminder.join();
    let word = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {word} after {:.1} s", began.elapsed().as_secs_f64());
    result
}

fn remind(what: String, began: Instant, done: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut next = began + REMINDER;
        while !done.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= next {
                println!("    still {what}: {} s", began.elapsed().as_secs());
                next += REMINDER;
            }
            std::thread::park_timeout(next.saturating_duration_since(now));
        }
    })
}

/// A cargo command in the workspace.
pub fn cargo_command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(arguments)
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target());
    command
}

/// Runs cargo in the workspace.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    run(&mut cargo_command(arguments))
}

/// Runs a command whose output goes to the terminal.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// A command's standard output, or `None` if it fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that cleans up after itself when interrupted: the interrupt that a terminal sends
/// to both of us must not end us before it.
pub fn through_interrupts(command: &mut Command) -> Result<()> {
    // A terminal interrupts both of us; anybody else only one. A second copy does no harm.
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let pid = rustix::process::Pid::from_child(&child);
    let ended = Arc::new(AtomicBool::new(false));
    let handle = signals.handle();
    let seen = Arc::clone(&ended);
    let forwarder = std::thread::spawn(move || {
        for _ in signals.forever() {
            if !seen.load(Ordering::Relaxed) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    });
    let status = child.wait();
    ended.store(true, Ordering::Relaxed);
    handle.close();
    let _ = forwarder.join();
    let status = status?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Whether a program is on the path or among the administrator's programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}
