//! The deployment guide's cluster: a switch, a client, two directors and two real servers.

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::Result;
use lb_user::model::VrrpState;

use crate::{
    Director, Lab, Node,
    network::INTERFACE,
    server::{WebServer, accept_vip},
};

/// Virtual address of VI_1.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 50);
/// Virtual address of VI_2, in the dual-master pair.
pub const VIP2: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 60);

/// The cluster. Fields are dropped in this order: daemons before the network they run on.
pub struct Guide {
    /// Normally MASTER: priority 100.
    pub node1: Director,
    /// Normally BACKUP: priority 98.
    pub node2: Director,
    /// Serves `rs1`.
    pub rs1: WebServer,
    /// Serves `rs2`.
    pub rs2: WebServer,
    /// Sorry servers on the directors.
    pub sorry: [WebServer; 2],
    /// Where requests come from.
    pub client: Node,
    /// The network.
    pub lab: Lab,
}

/// What may differ between configurations of a director.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Priority in VI_1.
    pub priority: u8,
    /// Priority in VI_2, where there is one.
    pub second: Option<u8>,
    /// Weights of the real servers.
    pub weights: [u32; 2],
    /// A notify script's log.
    pub notify_log: Option<PathBuf>,
}

impl Settings {
    /// The guide's settings for a priority.
    pub fn of(priority: u8) -> Self {
        Self {
            priority,
            second: None,
            weights: [1, 1],
            notify_log: None,
        }
    }
}

impl Guide {
    /// The network and the servers, with directors configured but not started.
    pub fn prepare() -> Result<Self> {
        let lab = Lab::new()?;
        let client = lab.node("client", [10, 1, 15, 1])?;
        let node1 = lab.node("node1", [10, 1, 15, 43])?;
        let node2 = lab.node("node2", [10, 1, 15, 44])?;
        let rs1 = lab.node("rs1", [10, 1, 15, 45])?;
        let rs2 = lab.node("rs2", [10, 1, 15, 46])?;
        for server in [&rs1, &rs2] {
            accept_vip(server, &VIP.to_string())?;
            accept_vip(server, &VIP2.to_string())?;
        }
        // A real client notices a moved address by its ARP entry alone: no second opinion by
        // unsolicited replies that it did not ask for.
        client.sysctl("ipv4.conf.all.arp_accept", "0")?;
        Ok(Self {
            rs1: WebServer::start(&lab, &rs1, "rs1")?,
            rs2: WebServer::start(&lab, &rs2, "rs2")?,
            sorry: [
                WebServer::start(&lab, &node1, "sorry")?,
                WebServer::start(&lab, &node2, "sorry")?,
            ],
            node1: Director::new(&lab, &node1, &config(&Settings::of(100)))?,
            node2: Director::new(&lab, &node2, &config(&Settings::of(98)))?,
            client,
            lab,
        })
    }

    /// The cluster, running: node1 MASTER, node2 BACKUP, both real servers up.
    pub fn start() -> Result<Self> {
        let mut guide = Self::prepare()?;
        guide.start_directors()?;
        Ok(guide)
    }

    /// Starts both directors and waits for the normal state.
    pub fn start_directors(&mut self) -> Result<()> {
        self.node1.start(&self.lab)?;
        self.node2.start(&self.lab)?;
        self.node1.wait_for("VI_1", VrrpState::Master)?;
        self.node2.wait_for("VI_1", VrrpState::Backup)
    }

    /// A notify script that appends its arguments to a log, and the log.
    pub fn notify_log(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let log = self.lab.directory().join(format!("{name}.log"));
        fs::write(&log, "")?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
        let script = log.with_extension("sh");
        fs::write(
            &script,
            format!("#!/bin/sh\necho \"$@\" >> {}\n", log.display()),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(log)
    }
}

/// A director's configuration.
pub fn config(settings: &Settings) -> String {
    let mut text = instance(
        "VI_1",
        20,
        settings.priority,
        VIP,
        settings.notify_log.as_ref(),
    );
    if let Some(priority) = settings.second {
        text += &instance("VI_2", 30, priority, VIP2, settings.notify_log.as_ref());
    }
    text += &service(VIP, settings.weights);
    if settings.second.is_some() {
        text += &service(VIP2, settings.weights);
    }
    text
}

fn instance(name: &str, vrid: u8, priority: u8, vip: Ipv4Addr, log: Option<&PathBuf>) -> String {
    let notify = log.map_or_else(String::new, |log| {
        let script = log.with_extension("sh");
        let script = script.display();
        format!(
            "notify_master = \"{script} master\"\nnotify_backup = \"{script} backup\"\n\
             notify_fault = \"{script} fault\"\nnotify = \"{script}\"\n"
        )
    });
    format!(
        "
[[vrrp]]
name = \"{name}\"
interface = \"{INTERFACE}\"
virtual_router_id = {vrid}
priority = {priority}
advert_interval = \"1s\"
password = \"6b8a916c\"
multicast_group = \"224.15.15.15\"
addresses = [\"{vip}/16\"]
{notify}"
    )
}

fn service(vip: Ipv4Addr, weights: [u32; 2]) -> String {
    format!(
        "
[[service]]
address = \"{vip}:80\"
protocol = \"tcp\"
scheduler = \"wrr\"
sorry_server = \"local\"
[service.check]
type = \"http\"
path = \"/\"
status = 200
interval = \"1s\"
connect_timeout = \"1s\"
retries = 1
delay_before_retry = \"200ms\"
[[service.backend]]
address = \"10.1.15.45\"
weight = {}
[[service.backend]]
address = \"10.1.15.46\"
weight = {}
",
        weights[0], weights[1]
    )
}
