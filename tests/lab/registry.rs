//! What laboratories have made, on disk: removed at their end, by a signal, or by the next run.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

const ROOT: &str = "/run/lbd-lab";
/// Prefix of every namespace, so that a person sees whose they are.
pub const PREFIX: &str = "lbd";

/// Held while something is made and noted; taken for good by the clean-up after a signal.
static MAKING: Mutex<()> = Mutex::new(());
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static PREPARE: Once = Once::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The state of one laboratory.
pub struct Registry {
    directory: PathBuf,
    id: String,
}

impl Registry {
    /// A fresh state directory. The first one of a process also removes what dead processes left,
    /// and sees to it that signals end with a clean host.
    pub fn create() -> Result<Self> {
        PREPARE.call_once(|| {
            remove_stale();
            if let Err(error) = clean_up_on_signals() {
                eprintln!("lab: no clean-up on signals: {error}");
            }
        });
        let id = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = Path::new(ROOT).join(&id);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        fs::write(
            directory.join("owner"),
            identity(std::process::id()).unwrap_or_default(),
        )?;
        live().push(directory.clone());
        Ok(Self { directory, id })
    }

    /// Part of every name that belongs to the laboratory.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Room for files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes a namespace before it is made.
    pub fn note_namespace(&self, name: &str) -> Result<()> {
        self.note("namespaces", name)
    }

    /// Notes a mount before it is made.
    pub fn note_mount(&self, path: &Path) -> Result<()> {
        self.note("mounts", &path.display().to_string())
    }

    /// Notes a process: its id with its start time, so that no other process of that id is harmed.
    pub fn note_process(&self, pid: u32) -> Result<()> {
        self.note("processes", &identity(pid).unwrap_or_default())
    }

    fn note(&self, file: &str, line: &str) -> Result<()> {
        let path = self.directory.join(file);
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        writeln!(file, "{line}")?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        remove(&self.directory);
        live().retain(|directory| *directory != self.directory);
    }
}

/// Nothing is made while a signal's clean-up runs, and no clean-up runs while something is made.
pub fn making() -> MutexGuard<'static, ()> {
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// "pid start-time", from /proc/PID/stat: field 22, counted behind the name in parentheses.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

fn is_alive(line: &str) -> Option<i32> {
    let pid: u32 = line.split(' ').next()?.parse().ok()?;
    (identity(pid).as_deref() == Some(line)).then(|| i32::try_from(pid).ok())?
}

fn remove(directory: &Path) {
    let lines = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let processes = lines("processes");
    let pids = || processes.lines().filter_map(is_alive).map(Pid::from_raw);
    for pid in pids() {
        let _ = kill(pid, Signal::SIGTERM);
    }
    for _ in 0..40 {
        if pids().next().is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for pid in pids() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    for name in lines("namespaces").lines() {
        quietly("ip", &["netns", "delete", name]);
    }
    for path in lines("mounts").lines() {
        quietly("umount", &["--lazy", path]);
    }
    let _ = fs::remove_dir_all(directory);
    // Succeeds for the last one.
    let _ = fs::remove_dir(ROOT);
}

fn quietly(program: &str, arguments: &[&str]) {
    let _ = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Removes the laboratories of processes that are not there any more.
pub fn remove_stale() {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return;
    };
    for directory in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let owner = fs::read_to_string(directory.join("owner")).unwrap_or_default();
        if is_alive(&owner).is_none() {
            remove(&directory);
        }
    }
}

fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _nothing_new = making();
            eprintln!("\nlab: interrupted; removing namespaces, processes, mounts and pins");
            for directory in live().drain(..) {
                remove(&directory);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
