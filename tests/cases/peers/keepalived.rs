//! keepalived as the other director.

use std::{path::PathBuf, time::Duration};

use lab::{Lab, Node, Process, network::INTERFACE, peer};
use nix::sys::signal::{Signal, kill};

use super::{
    Dialect, Theirs,
    pair::{Peer, holds},
};

pub struct KeepalivedPeer {
    node: Node,
    directory: PathBuf,
    dialect: Dialect,
    process: Option<Process>,
    /// Lines of the log that were looked at.
    read: usize,
}

impl KeepalivedPeer {
    pub fn new(lab: &Lab, node: &Node, dialect: &Dialect) -> Self {
        Self {
            node: node.clone(),
            directory: lab.directory().to_owned(),
            dialect: *dialect,
            process: None,
            read: 0,
        }
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }
}

impl Peer for KeepalivedPeer {
    fn start(&mut self, lab: &Lab) {
        let Theirs::Keepalived(global, lines) = self.dialect.theirs else {
            panic!("not keepalived's");
        };
        let instance = |name: &str, vrid: u8, addresses: &[&str]| {
            let addresses = addresses.join("\n    ");
            format!(
                "vrrp_instance {name} {{\n  state BACKUP\n  interface {INTERFACE}\n  virtual_router_id {vrid}\n  \
                 priority 100\n{lines}\n  virtual_ipaddress {{\n    {addresses}\n  }}\n}}\n"
            )
        };
        let mut instances = instance("VI_1", 20, self.dialect.addresses);
        if let Some(second) = self.dialect.second {
            instances += &instance("VI_2", 21, &[second]);
            instances += "vrrp_sync_group VG_1 {\n  group {\n    VI_1\n    VI_2\n  }\n}\n";
        }
        let process = peer::keepalived(lab, &self.node, global, &instances);
        self.process = Some(process.unwrap());
    }

    fn stop(&mut self) {
        self.process.take().unwrap().stop().unwrap();
    }

    /// The child that speaks VRRP dies first; its parent would start another one.
    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::SIGSTOP).unwrap();
        let child = peer::keepalived_child(&self.directory, &self.node).unwrap();
        kill(child, Signal::SIGKILL).unwrap();
        process.signal(Signal::SIGKILL).unwrap();
        process.wait(Duration::from_secs(5)).unwrap();
        // The next one would look whether there are processes of these numbers.
        for suffix in ["pid", "vrrp.pid"] {
            let file = format!("{}-keepalived.{suffix}", self.node.name);
            std::fs::remove_file(self.directory.join(file)).unwrap();
        }
    }

    fn is_master(&self) -> bool {
        holds(&self.node, &self.dialect).unwrap_or(false)
    }

    fn ends_heard(&self) -> usize {
        self.log().matches("received priority 0 advert").count()
    }

    fn complaints(&mut self) -> Vec<String> {
        let log = self.process().log();
        let new = log.lines().skip(self.read).collect::<Vec<_>>().join("\n");
        self.read = log.lines().count();
        let mut found = peer::complaints(&new);
        let counters = peer::keepalived_counters(&self.directory, &self.node).unwrap();
        let received = counters
            .iter()
            .find(|(name, _)| name == "Advertisements: Received");
        assert!(
            received.is_some_and(|(_, count)| *count > 0),
            "{counters:?}"
        );
        let errors = counters
            .iter()
            .filter(|(name, count)| name.contains("rror") && *count > 0);
        found.extend(errors.map(|(name, count)| format!("{name}: {count}")));
        found
    }

    fn log(&self) -> String {
        self.process.as_ref().map_or_else(String::new, Process::log)
    }
}
