//! The main job, step by step: what the demonstration shows and the namespace tests check. Every
//! step begins and ends in the cluster's normal state and fails when it sees anything but what it
//! expects.

mod elections;
mod failover;
mod peers;
mod traffic;

use anyhow::Result;
use serde_json::{Map, Value};

pub use traffic::under_requests;

use crate::Guide;

/// What a step saw, in order.
#[derive(Debug, Default)]
pub struct Seen(pub Map<String, Value>);

impl Seen {
    /// Notes a value.
    pub fn note(&mut self, what: &str, value: impl Into<Value>) {
        self.0.insert(what.to_owned(), value.into());
    }
}

/// A step of the main job.
pub struct Step {
    /// Short name, unique.
    pub name: &'static str,
    /// What it shows, for people.
    pub title: &'static str,
    /// Does it.
    pub run: fn(&mut Guide, &mut Seen) -> Result<()>,
}

/// All steps, in the order of the demonstration.
pub const STEPS: [Step; 9] = [
    Step {
        name: "election",
        title: "node1 becomes MASTER, node2 stays BACKUP",
        run: elections::election,
    },
    Step {
        name: "weights",
        title: "40 requests at 1:1, then 40 at 1:3 after a reload, in XDP",
        run: traffic::weights,
    },
    Step {
        name: "health",
        title: "real servers stop and return; the sorry server answers meanwhile",
        run: traffic::health,
    },
    Step {
        name: "transfers",
        title: "a download and an upload through the VIP arrive intact",
        run: traffic::transfers,
    },
    Step {
        name: "stop",
        title: "node1 is stopped, node2 takes over; node1 returns and preempts",
        run: failover::stop,
    },
    Step {
        name: "port-down",
        title: "node1's port goes down, node2 takes over; the port returns",
        run: failover::port_down,
    },
    Step {
        name: "notify",
        title: "notify scripts see every transition in order",
        run: elections::notify,
    },
    Step {
        name: "dual-master",
        title: "each node master of one VIP; a death gives both to the other",
        run: failover::dual_master,
    },
    Step {
        name: "keepalived",
        title: "keepalived 2.2.7 as the other director, in both roles",
        run: peers::keepalived,
    },
];
