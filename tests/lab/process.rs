//! A process of the laboratory, ended with it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Lab, Node, registry::making};

/// A running process with its output in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on `node`; output goes to `NODE-NAME.log` in the laboratory's directory.
    pub fn start(
        lab: &Lab,
        node: &Node,
        name: &str,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let program = program.to_str().context("path")?;
        Self::start_command(lab, node, name, node.command(program).args(arguments))
    }

    /// As [`Process::start`], for a prepared command.
    pub fn start_command(
        lab: &Lab,
        node: &Node,
        name: &str,
        command: &mut Command,
    ) -> Result<Self> {
        let log = lab.directory().join(format!("{}-{name}.log", node.name));
        let output = File::options().create(true).append(true).open(&log)?;
        let _making = making();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name} on {}", node.name))?;
        lab.registry().note_process(child.id())?;
        Ok(Self { child, log })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal}"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(
                Instant::now() < end,
                "still running after {limit:?}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by SIGTERM and waits.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(15))
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(5)).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
