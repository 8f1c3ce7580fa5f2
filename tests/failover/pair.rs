//! Two directors of one kind, and what can be done to them.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use lab::{Director, Lab, Node, Process, guide::VIP, network::INTERFACE, peer, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::probe;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    Lbd,
    Keepalived,
}

impl Daemon {
    pub const ALL: [Daemon; 2] = [Daemon::Lbd, Daemon::Keepalived];

    /// The word in the figures.
    pub fn name(self) -> &'static str {
        match self {
            Daemon::Lbd => "lbd",
            Daemon::Keepalived => "keepalived",
        }
    }
}

/// Which version, and how often adverts come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timers {
    V2,
    V3_100,
    V3_10,
}

impl Timers {
    pub const ALL: [Timers; 3] = [Timers::V2, Timers::V3_100, Timers::V3_10];

    /// The word in the figures.
    pub fn name(self) -> &'static str {
        match self {
            Timers::V2 => "v2-1s",
            Timers::V3_100 => "v3-100ms",
            Timers::V3_10 => "v3-10ms",
        }
    }

    /// Between two adverts.
    pub fn interval(self) -> Duration {
        Duration::from_millis(match self {
            Timers::V2 => 1_000,
            Timers::V3_100 => 100,
            Timers::V3_10 => 10,
        })
    }
}

enum Running {
    Lbd(Box<Director>),
    Keepalived(Option<Process>),
}

/// node1 is master (priority 100), node2 is backup (98).
pub struct Pair {
    running: [Running; 2],
    nodes: [Node; 2],
    client: Node,
    timers: Timers,
    lab: Lab,
}

const PRIORITIES: [u8; 2] = [100, 98];

impl Pair {
    /// The network and both daemons, in their normal state.
    pub fn start(daemon: Daemon, timers: Timers) -> Result<Self> {
        let lab = Lab::new()?;
        let client = lab.node("client", [10, 1, 15, 1])?;
        let nodes = [
            lab.node("node1", [10, 1, 15, 43])?,
            lab.node("node2", [10, 1, 15, 44])?,
        ];
        for node in &nodes {
            probe::answer(node)?;
        }
        let running = match daemon {
            Daemon::Keepalived => [Running::Keepalived(None), Running::Keepalived(None)],
            Daemon::Lbd => [
                Running::Lbd(Box::new(Director::new(&lab, &nodes[0], &ours(timers, 0))?)),
                Running::Lbd(Box::new(Director::new(&lab, &nodes[1], &ours(timers, 1))?)),
            ],
        };
        let mut pair = Self {
            running,
            nodes,
            client,
            timers,
            lab,
        };
        pair.launch(0)?;
        pair.launch(1)?;
        Ok(pair)
    }

    /// Where questions come from.
    pub fn client(&self) -> &Node {
        &self.client
    }

    /// Does one thing to node1.
    pub fn act(&mut self, event: &str) -> Result<()> {
        match event {
            "stop" => self.stop(),
            "kill" => self.kill(),
            "preempt" => self.launch(0),
            "port-down" => self.nodes[0].cable(false),
            "silent-cut" => self.nodes[0].silently(false),
            "heal" => self.nodes[0].silently(true),
            other => bail!("no event {other}"),
        }
    }

    /// Undoes what the next event does not begin with.
    pub fn settle(&mut self, event: &str) -> Result<()> {
        match event {
            "port-down" => self.nodes[0].cable(true),
            // keepalived does not know the addresses that it left.
            "kill" => {
                let vip = format!("{VIP}/16");
                if let Running::Keepalived(_) = self.running[0] {
                    let _ = self.nodes[0].ip(&["address", "del", &vip, "dev", INTERFACE]);
                    for file in ["node1-keepalived.pid", "node1-keepalived.vrrp.pid"] {
                        let _ = fs::remove_file(self.lab.directory().join(file));
                    }
                }
                self.launch(0)
            }
            _ => Ok(()),
        }
    }

    /// Waits until the pair is as `event` finds it, and stays so for a while.
    pub fn rest(&mut self, event: &str) -> Result<()> {
        let expected = match event {
            "preempt" => [false, true],
            "heal" => [true, true],
            _ => [true, false],
        };
        let quiet = 4 * self.timers.interval() + Duration::from_millis(200);
        let what = format!("the pair is ready for {event}");
        wait::until_true(&what, Duration::from_secs(30), || {
            if self.holders()? != expected {
                return Ok(false);
            }
            std::thread::sleep(quiet);
            Ok(self.holders()? == expected)
        })
    }

    fn holders(&self) -> Result<[bool; 2]> {
        let vip = VIP.to_string();
        Ok([
            self.nodes[0].addresses()?.contains(&vip),
            self.nodes[1].addresses()?.contains(&vip),
        ])
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        match &mut self.running[index] {
            Running::Lbd(director) => director.start(&self.lab),
            Running::Keepalived(process) => {
                let text = theirs(self.timers, index);
                let global = match self.timers {
                    Timers::V2 => "",
                    Timers::V3_100 | Timers::V3_10 => "  vrrp_version 3",
                };
                let node = &self.nodes[index];
                *process = Some(peer::keepalived(&self.lab, node, global, &text)?);
                Ok(())
            }
        }
    }

    fn stop(&mut self) -> Result<()> {
        match &mut self.running[0] {
            Running::Lbd(director) => director.stop(),
            Running::Keepalived(process) => {
                process.take().context("not running")?.stop().map(|_| ())
            }
        }
    }

    fn kill(&mut self) -> Result<()> {
        match &mut self.running[0] {
            Running::Lbd(director) => director.kill(),
            Running::Keepalived(process) => {
                let mut parent = process.take().context("not running")?;
                // The child speaks VRRP; its parent would start another one.
                let file = self.lab.directory().join("node1-keepalived.vrrp.pid");
                let child: i32 = fs::read_to_string(file)?.trim().parse()?;
                parent.signal(Signal::SIGKILL)?;
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                parent.wait(Duration::from_secs(5)).map(|_| ())
            }
        }
    }
}

fn ours(timers: Timers, index: usize) -> String {
    let timing = match timers {
        Timers::V2 => "advert_interval = \"1s\"",
        Timers::V3_100 => "version = 3\nadvert_interval = \"100ms\"",
        Timers::V3_10 => "version = 3\nadvert_interval = \"10ms\"",
    };
    format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\npriority = {}\n\
         addresses = [\"{VIP}/16\"]\n{timing}\n",
        PRIORITIES[index]
    )
}

fn theirs(timers: Timers, index: usize) -> String {
    format!(
        "vrrp_instance VI_1 {{\n  state BACKUP\n  interface {INTERFACE}\n  virtual_router_id 20\n  \
         priority {}\n  advert_int {}\n  virtual_ipaddress {{\n    {VIP}/16\n  }}\n}}\n",
        PRIORITIES[index],
        timers.interval().as_secs_f64()
    )
}
