//! A director: lbd on a node, with its files, and lbctl to ask it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_user::{
    api::proto::{MapDump, ServiceSnapshot, Status},
    model::VrrpState,
};
use nix::sys::signal::Signal;

use crate::{Lab, Node, Process, binaries, network::INTERFACE, wait};

/// lbd on a node.
pub struct Director {
    /// Where it runs.
    pub node: Node,
    /// Its configuration file.
    pub config: PathBuf,
    socket: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

impl Director {
    /// A director that is not started yet. `config` is put behind the lines that give it paths of
    /// its own.
    pub fn new(lab: &Lab, node: &Node, config: &str) -> Result<Self> {
        let director = Self {
            node: node.clone(),
            config: lab.directory().join(format!("{}.toml", node.name)),
            socket: lab.directory().join(format!("{}.sock", node.name)),
            pins: lab.pin_path(&node.name),
            process: None,
        };
        director.configure(config)?;
        Ok(director)
    }

    /// Writes the configuration file.
    pub fn configure(&self, config: &str) -> Result<()> {
        let own = format!(
            "router_id = \"{}\"\n[runtime]\nsocket = \"{}\"\npin_path = \"{}\"\n",
            self.node.name,
            self.socket.display(),
            self.pins.display()
        );
        Ok(fs::write(&self.config, own + config)?)
    }

    /// Starts lbd and waits until it answers.
    pub fn start(&mut self, lab: &Lab) -> Result<()> {
        self.launch(lab)?;
        wait::until("lbd answers", Duration::from_secs(15), || {
            let running = self.process.as_mut().is_some_and(Process::is_running);
            ensure!(running, "lbd has ended:\n{}", self.log());
            Ok(self.status().ok())
        })?;
        Ok(())
    }

    /// Starts lbd without waiting.
    pub fn launch(&mut self, lab: &Lab) -> Result<()> {
        let config = self.config.to_string_lossy().into_owned();
        let lbd = binaries::find("lbd")?;
        self.process = Some(Process::start(
            lab,
            &self.node,
            "lbd",
            &lbd,
            &["--config", &config],
        )?);
        Ok(())
    }

    /// Stops lbd by SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("not running")?;
        let status = process.stop()?;
        ensure!(status.success(), "lbd ended with {status}");
        Ok(())
    }

    /// Kills lbd outright.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("not running")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(Duration::from_secs(5)).map(|_| ())
    }

    /// The running process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("not running")
    }

    /// Everything lbd has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map_or_else(String::new, Process::log)
    }

    /// Takes the program off the interface, as somebody does with `bpftool link detach`.
    pub fn detach_xdp(&self) -> Result<()> {
        let link = self.pins.join(format!("link-native-{INTERFACE}"));
        lb_user::dataplane::xdp::detach_pinned(&link).context("detach the XDP link")
    }

    /// Runs lbctl.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<Output> {
        let program = binaries::find("lbctl")?;
        let mut command = self.node.command(&program.to_string_lossy());
        command.arg("--socket").arg(&self.socket).args(arguments);
        command.output().context("run lbctl")
    }

    /// What lbctl prints; fails if it does.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lbctl(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "lbctl {arguments:?}: {}: {stderr}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `lbctl --json status`.
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&self.ctl(&["--json", "status"])?)?)
    }

    /// `lbctl --json map dump NAME`.
    pub fn dump(&self, map: &str) -> Result<MapDump> {
        let mut dumps: Vec<MapDump> =
            serde_json::from_str(&self.ctl(&["--json", "map", "dump", map])?)?;
        dumps.pop().context("no dump")
    }

    /// State of a VRRP instance.
    pub fn state(&self, instance: &str) -> Result<VrrpState> {
        let status = self.status()?;
        let found = status.instances.iter().find(|i| i.name == instance);
        Ok(found
            .with_context(|| format!("no instance {instance}"))?
            .state)
    }

    /// Waits until a VRRP instance is in a state.
    pub fn wait_for(&self, instance: &str, state: VrrpState) -> Result<()> {
        let what = format!("{} is {state} of {instance}", self.node.name);
        wait::until_true(&what, Duration::from_secs(15), || {
            Ok(self.state(instance)? == state)
        })
    }

    /// The first service.
    pub fn service(&self) -> Result<ServiceSnapshot> {
        self.status()?
            .data_plane
            .services
            .into_iter()
            .next()
            .context("no service")
    }

    /// Waits until the first service's backends have these states, the sorry server included.
    pub fn wait_for_backends(&self, states: &[&str]) -> Result<()> {
        let what = format!("backends of {} are {states:?}", self.node.name);
        wait::until_true(&what, Duration::from_secs(15), || {
            Ok(self
                .service()?
                .backends
                .iter()
                .map(|b| b.state.as_str())
                .eq(states.iter().copied()))
        })
    }

    /// Packets that passed to the kernel for `reason`.
    pub fn passed(&self, reason: &str) -> Result<u64> {
        let status = self.status()?;
        let found = status
            .data_plane
            .passed
            .iter()
            .find(|(label, _)| label == reason);
        Ok(found.with_context(|| format!("no reason {reason}"))?.1)
    }

    /// The API's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether anything of lbd is left on the node: program, virtual address, pins, socket.
    pub fn leftovers(&self, vips: &[&str]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        if self.node.has_xdp()? {
            left.push("XDP program".to_owned());
        }
        let addresses = self.node.addresses()?;
        left.extend(
            vips.iter()
                .filter(|vip| addresses.iter().any(|a| a == *vip))
                .map(|vip| format!("address {vip}")),
        );
        for path in [&self.pins, &self.socket] {
            if path.exists() {
                left.push(path.display().to_string());
            }
        }
        Ok(left)
    }
}
