//! Routers that nobody here wrote: keepalived and FRR.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Lab, Node, Process, guide::VIP, network::INTERFACE, unheard::without_ipvs, wait};

/// Lines in which keepalived finds fault with adverts.
pub fn complaints(log: &str) -> Vec<String> {
    let suspicious = [
        "nvalid",
        "ncorrect",
        "ismatch",
        "ignoring",
        "wrong",
        "bogus",
        "xpect",
        "not present",
        "but this VRRP instance",
        "already processed",
    ];
    log.lines()
        .filter(|line| suspicious.iter().any(|word| line.contains(word)))
        // Said of the configuration of a machine without the account for scripts.
        .filter(|line| !line.contains("script"))
        .map(str::to_owned)
        .collect()
}

/// The guide's instance in keepalived's words.
pub fn guide_instance(priority: u8) -> String {
    format!(
        "vrrp_instance VI_1 {{
  state BACKUP
  interface {INTERFACE}
  virtual_router_id 20
  priority {priority}
  advert_int 1
  authentication {{
    auth_type PASS
    auth_pass 6b8a916c
  }}
  virtual_ipaddress {{
    {VIP}/16
  }}
}}
"
    )
}

/// Starts keepalived's VRRP. `global` goes into its `global_defs`, `instances` behind them.
pub fn keepalived(lab: &Lab, node: &Node, global: &str, instances: &str) -> Result<Process> {
    start_keepalived(lab, node, global, instances, &["-P"], |_| ())
}

/// Starts all of keepalived: with its health checks and its IPVS. `rest` has virtual servers as well.
pub fn keepalived_director(lab: &Lab, node: &Node, global: &str, rest: &str) -> Result<Process> {
    let pid = checkers_file(lab.directory(), node).display().to_string();
    start_keepalived(lab, node, global, rest, &["-c", &pid], |_| ())
}

/// Starts keepalived's health checks of these virtual servers, on any kernel: see [`crate::unheard`].
pub fn keepalived_checkers(lab: &Lab, node: &Node, servers: &str) -> Result<Process> {
    let pid = checkers_file(lab.directory(), node).display().to_string();
    let options = ["-C", "-c", &pid];
    start_keepalived(lab, node, "", servers, &options, without_ipvs)
}

/// The process of keepalived on a host that makes health checks.
pub fn keepalived_checker(directory: &Path, node: &Node) -> Result<Pid> {
    pid_in(&checkers_file(directory, node))
}

fn checkers_file(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}-keepalived.checkers.pid", node.name))
}

fn start_keepalived(
    lab: &Lab,
    node: &Node,
    global: &str,
    instances: &str,
    options: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<Process> {
    let name = &node.name;
    let config = format!("global_defs {{\n  router_id {name}\n{global}\n}}\n{instances}");
    let path = |suffix: &str| {
        lab.directory()
            .join(format!("{name}-keepalived.{suffix}"))
            .display()
            .to_string()
    };
    fs::write(path("conf"), config)?;
    let (conf, pid, vrrp_pid) = (path("conf"), path("pid"), path("vrrp.pid"));
    let common = ["-n", "-l", "-D", "-f", &conf, "-p", &pid, "-r", &vrrp_pid];
    let mut command = node.command("/usr/sbin/keepalived");
    // Where it writes its counters; others do so elsewhere.
    let files = counters_of(lab.directory(), node);
    fs::create_dir_all(&files)?;
    command.env("TMPDIR", files).args(common).args(options);
    prepare(&mut command);
    Process::start_command(lab, node, "keepalived", &mut command)
}

fn counters_of(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}-keepalived", node.name))
}

/// The process of keepalived on a host that speaks VRRP.
pub fn keepalived_child(directory: &Path, node: &Node) -> Result<Pid> {
    pid_in(&directory.join(format!("{}-keepalived.vrrp.pid", node.name)))
}

fn pid_in(file: &Path) -> Result<Pid> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Pid::from_raw(text.trim().parse()?))
}

/// What a keepalived has counted since it started, of all instances, with the title of each counter's group.
pub fn keepalived_counters(directory: &Path, node: &Node) -> Result<Vec<(String, u64)>> {
    let file = counters_of(directory, node).join("keepalived.stats");
    let _ = fs::remove_file(&file);
    kill(keepalived_child(directory, node)?, Signal::SIGUSR2)?;
    let text = wait::until("keepalived's counters", Duration::from_secs(5), || {
        let text = fs::read_to_string(&file)?;
        // It ends with those of priority zero.
        let tail = text.rsplit_once("Priority Zero:").map(|(_, tail)| tail);
        let is_whole = tail.is_some_and(|tail| tail.contains("Sent:") && tail.ends_with('\n'));
        Ok(is_whole.then_some(text))
    })?;
    let mut counters = Vec::new();
    let mut group = "";
    for line in text.lines() {
        match line.trim().split_once(':') {
            Some((title, "")) => group = title,
            Some((name, count)) => {
                if let Ok(count) = count.trim().parse() {
                    counters.push((format!("{group}: {name}"), count));
                }
            }
            None => {}
        }
    }
    Ok(counters)
}

/// FRR's zebra and vrrpd.
pub struct Frr {
    node: Node,
    directory: PathBuf,
    vrrpd: Option<Process>,
    _zebra: Process,
}

impl Frr {
    /// Starts both with a virtual router on the host's interface. `router` is what follows
    /// `vrrp VRID` in its configuration, a line each.
    pub fn start(lab: &Lab, node: &Node, vrid: u8, vip: &str, router: &[&str]) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let v6 = vip.contains(':');
        // The address lies on a macvlan of the virtual MAC, which FRR takes up and down.
        let mac = format!("00:00:5e:00:0{}:{vrid:02x}", if v6 { 2 } else { 1 });
        let (device, length) = (format!("vrrp-{vrid}"), if v6 { 64 } else { 16 });
        node.ip(&[
            "link", "add", &device, "link", INTERFACE, "type", "macvlan", "mode", "bridge",
        ])?;
        node.ip(&["link", "set", &device, "address", &mac, "up"])?;
        let address = format!("{vip}/{length}");
        let nodad: &[&str] = if v6 { &["nodad"] } else { &[] };
        node.ip(&[&["address", "add", &address, "dev", &device], nodad].concat())?;
        let directory = lab.directory().join(format!("{}-frr", node.name));
        fs::create_dir_all(&directory)?;
        for path in [lab.directory(), &directory] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        }
        // Only so does it tell of adverts that it does not believe.
        let mut lines = format!(
            "log stdout debugging\ndebug vrrp packets\ndebug vrrp protocol\ninterface {INTERFACE}\n"
        );
        for line in router {
            lines += &format!(" vrrp {vrid} {line}\n");
        }
        fs::write(directory.join("zebra.conf"), "log stdout\n")?;
        fs::write(directory.join("vrrpd.conf"), lines)?;
        let zebra = daemon(lab, node, &directory, "zebra")?;
        let socket = directory.join("zebra.sock");
        wait::until_true("zebra listens", Duration::from_secs(10), || {
            Ok(socket.exists())
        })?;
        let vrrpd = daemon(lab, node, &directory, "vrrpd")?;
        Ok(Self {
            node: node.clone(),
            directory,
            vrrpd: Some(vrrpd),
            _zebra: zebra,
        })
    }

    /// What `show vrrp` says of the only router.
    pub fn show(&self) -> Result<serde_json::Value> {
        let directory = self.directory.display().to_string();
        let arguments = [
            "--vty_socket",
            &directory,
            "-d",
            "vrrpd",
            "-c",
            "show vrrp json",
        ];
        let text = self.node.run("vtysh", &arguments)?;
        let routers: serde_json::Value = serde_json::from_str(&text)?;
        Ok(routers[0].clone())
    }

    /// Ends vrrpd, which says so.
    pub fn stop(&mut self) -> Result<()> {
        self.vrrpd.take().context("not running")?.stop().map(|_| ())
    }

    /// Kills vrrpd outright.
    pub fn kill(&mut self) -> Result<()> {
        let mut vrrpd = self.vrrpd.take().context("not running")?;
        vrrpd.signal(Signal::SIGKILL)?;
        vrrpd.wait(Duration::from_secs(5)).map(|_| ())
    }

    /// Everything that vrrpd has logged.
    pub fn log(&self) -> String {
        self.vrrpd.as_ref().map_or_else(String::new, Process::log)
    }

    /// Lines in which it finds fault with adverts.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = complaints(&self.log());
        // Of its own states.
        found.retain(|line| !line.contains("' event in '"));
        found
    }

    /// Starts vrrpd again.
    pub fn resume(&mut self, lab: &Lab) -> Result<()> {
        self.vrrpd = Some(daemon(lab, &self.node, &self.directory, "vrrpd")?);
        Ok(())
    }
}

fn daemon(lab: &Lab, node: &Node, directory: &std::path::Path, name: &str) -> Result<Process> {
    let d = directory.display();
    let arguments =
        format!("-f {d}/{name}.conf -i {d}/{name}.pid -z {d}/zebra.sock --vty_socket {d} -P 0");
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let program = format!("/usr/lib/frr/{name}");
    Process::start(lab, node, name, program.as_ref(), &arguments)
}
