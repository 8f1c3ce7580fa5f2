//! Two directors with adverts every 10 ms while every core is kept busy by others: nobody may take a
//! late advert for a dead master.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_user::{api::proto::InstanceStatus, model::VrrpState};
use serde::Serialize;

use crate::{Director, Lab, Node, Process, guide::VIP, network::INTERFACE, witness::Witness};

/// Between two looks at the directors.
const LOOK: Duration = Duration::from_secs(1);
/// Endless loops for each core: an ordinary thread gets a third of one.
const LOOPS_PER_CORE: usize = 2;
const INSTANCE: &str = "VI_1";
const PRIORITIES: [u8; 2] = [100, 98];

/// What was seen of the pair.
#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    /// Both directors, the master first.
    pub directors: Vec<Seen>,
    /// How late an idle thread of lbd's priority was at worst, on any core, microseconds.
    pub machine_lateness_us: u64,
}

impl Soak {
    /// Whether anybody changed its state.
    pub fn is_quiet(&self) -> bool {
        self.directors
            .iter()
            .all(|seen| seen.transitions.is_empty())
    }

    /// Whether the machine itself kept a core from such threads for so long that adverts failed to come in
    /// time, whoever sends them. The backup waits for 36 ms, so the next advert, due after 10, is 26 late; a
    /// witness that wakes every 10 ms sees at least 16 of that.
    pub fn stood_still(&self) -> bool {
        self.machine_lateness_us > 16_000
    }
}

/// What was seen of one director.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Its name.
    pub director: String,
    /// Transitions while the cores were busy. None is right.
    pub transitions: Vec<String>,
    /// Adverts that it sent meanwhile.
    pub sent: u64,
    /// Adverts that it believed meanwhile.
    pub received: u64,
    /// Adverts that it could not send meanwhile.
    pub send_errors: u64,
    /// Adverts that it did not believe meanwhile.
    pub rejected: u64,
    /// The longest that one of its timers was late since its start, microseconds.
    pub worst_lateness_us: u64,
    /// What that was when the load began: what it did at its start has a share in it.
    pub lateness_before_us: u64,
}

/// Keeps every core busy until it is dropped.
pub struct Load {
    _loops: Vec<Process>,
}

impl Load {
    /// Starts the loops, on a host of the laboratory.
    pub fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let start = |number| {
            let mut command = node.command("sh");
            command.args(["-c", "while :; do :; done"]);
            Process::start_command(lab, node, &format!("busy{number}"), &mut command)
        };
        let loops = (0..cores * LOOPS_PER_CORE).map(start);
        Ok(Self {
            _loops: loops.collect::<Result<_>>()?,
        })
    }
}

/// Runs the pair for `time` under load, and tells how long it has run at each look.
pub fn run(time: Duration, mut told: impl FnMut(Duration, &Soak)) -> Result<Soak> {
    let lab = Lab::new()?;
    let nodes = [
        lab.node("node1", [10, 1, 15, 43])?,
        lab.node("node2", [10, 1, 15, 44])?,
    ];
    let other = lab.node("other", [10, 1, 15, 1])?;
    let mut directors = Vec::new();
    for (node, priority) in nodes.iter().zip(PRIORITIES) {
        let mut director = Director::new(&lab, node, &config(priority))?;
        director.start(&lab)?;
        directors.push(director);
    }
    directors[0].wait_for(INSTANCE, VrrpState::Master)?;
    directors[1].wait_for(INSTANCE, VrrpState::Backup)?;
    // The election is over when its last advert was answered.
    std::thread::sleep(Duration::from_millis(200));
    for director in &directors {
        ensure!(
            !director.log().contains("without real-time priority"),
            "no real-time priority here: {}",
            director.log()
        );
    }
    let before: Vec<_> = directors.iter().map(Before::of).collect::<Result<_>>()?;
    let load = Load::start(&lab, &other)?;
    let witness = Witness::start()?;
    let begin = Instant::now();
    let look = |directors: &[Director]| -> Result<Soak> {
        let both = directors.iter().zip(&before);
        let seen = both.map(|(director, before)| before.compare(director));
        Ok(Soak {
            directors: seen.collect::<Result<_>>()?,
            machine_lateness_us: u64::try_from(witness.worst().as_micros())?,
        })
    };
    while begin.elapsed() < time {
        std::thread::sleep(LOOK.min(time));
        told(begin.elapsed(), &look(&directors)?);
    }
    let seen = look(&directors)?;
    drop(load);
    witness.finish()?;
    for director in &mut directors {
        director.stop()?;
    }
    Ok(seen)
}

/// Counters when the load began.
struct Before {
    status: InstanceStatus,
    transitions: usize,
}

impl Before {
    fn of(director: &Director) -> Result<Self> {
        Ok(Self {
            status: status(director)?,
            transitions: transitions(director).len(),
        })
    }

    fn compare(&self, director: &Director) -> Result<Seen> {
        let now = status(director)?;
        let rejected = |status: &InstanceStatus| -> u64 {
            status.rejected.iter().map(|(_, count)| count).sum()
        };
        Ok(Seen {
            director: director.node.name.clone(),
            transitions: transitions(director).split_off(self.transitions),
            sent: now.sent - self.status.sent,
            received: now.received - self.status.received,
            send_errors: now.send_errors - self.status.send_errors,
            rejected: rejected(&now) - rejected(&self.status),
            worst_lateness_us: now.worst_lateness_us,
            lateness_before_us: self.status.worst_lateness_us,
        })
    }
}

fn status(director: &Director) -> Result<InstanceStatus> {
    let status = director.status()?;
    let mut instances = status.instances.into_iter();
    instances.next().context("no instance")
}

/// Lines of its log that tell of a transition.
fn transitions(director: &Director) -> Vec<String> {
    let log = director.log();
    let lines = log.lines().filter(|line| line.contains(" -> "));
    lines.map(str::to_owned).collect()
}

fn config(priority: u8) -> String {
    format!(
        "[[vrrp]]\nname = \"{INSTANCE}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
         priority = {priority}\naddresses = [\"{VIP}/16\"]\nversion = 3\nadvert_interval = \"10ms\"\n"
    )
}
