//! Hundreds of health checks of all types against servers that do everything wrong: afterwards the director has as many
//! descriptors and children as before.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    Director, Lab,
    network::INTERFACE,
    servers::{Serve, Servers, drip, flood, heard, silent},
    wait,
};

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Checks that ran.
    pub checks: usize,
    /// Attempts that they made.
    pub attempts: u64,
    /// Open descriptors of the director before the checks began.
    pub before: usize,
    /// The most while they ran.
    pub most: usize,
    /// When they had ended.
    pub after: usize,
    /// Children that were left then.
    pub children: usize,
}

/// Each check stands this often in the configuration.
const COPIES: usize = 10;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long what is under way may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

const SERVERS: [(u16, Serve); 5] = [
    (1001, silent),
    (1002, |_| ()),
    (1003, |stream| {
        drip(stream, b"HTTP/1.1 200 OK\r\nX: ", b"x");
    }),
    (1004, |stream| {
        if heard(stream) {
            flood(stream, b"HTTP/1.1 200 OK\r\n\r\n", b"b");
        }
    }),
    (1005, |stream| {
        flood(stream, b"", b"\x00\xff\x16\x03garbage\r\n");
    }),
];

const CHECKS: [&str; 22] = [
    "type = \"tcp\"\nport = 1001",
    "type = \"tcp\"\nport = 999",
    "type = \"tcp\"\nport = 1001\naddress = \"10.1.15.99\"",
    "type = \"http\"\nport = 1001",
    "type = \"http\"\nport = 1002",
    "type = \"http\"\nport = 1003",
    "type = \"http\"\nport = 1004\nbody = \"x\"",
    "type = \"http\"\nport = 1005",
    "type = \"http\"\nport = 1001\nhttp_version = \"2\"",
    "type = \"http\"\nport = 1005\nhttp_version = \"2\"",
    "type = \"https\"\nport = 1001",
    "type = \"https\"\nport = 1005",
    "type = \"grpc\"\nport = 1005",
    "type = \"smtp\"\nport = 1003",
    "type = \"smtp\"\nport = 1001\ntls = true",
    "type = \"dns\"\nport = 1001\nname = \"www.example.com\"",
    "type = \"udp\"\nport = 1001\npayload = \"61\"\nreply = \"61\"",
    "type = \"icmp\"",
    "type = \"icmp\"\naddress = \"10.1.15.99\"",
    "type = \"exec\"\ncommand = \"/bin/sh -c 'sleep 1000 & wait'\"",
    "type = \"agent\"\nport = 1005",
    "type = \"file\"\nfile = \"/no/such/file\"",
];

/// Runs the checks for `time`, and tells of it at each look.
pub fn run(time: Duration, mut told: impl FnMut(Duration, usize)) -> Result<Seen> {
    let lab = Lab::new()?;
    let node = lab.node("node1", [10, 1, 15, 43])?;
    let server = lab.node("rs1", [10, 1, 15, 45])?;
    let mut servers = Servers::new(&server);
    for (port, serve) in SERVERS {
        servers.tcp(port, serve)?;
    }
    let mut director = Director::new(&lab, &node, &config(false))?;
    director.start(&lab)?;
    let pid = director.process()?.id();
    director.ctl(&["reload"])?;
    let before = settled(pid)?;
    director.configure(&config(true))?;
    director.ctl(&["reload"])?;
    let (begin, mut most) = (Instant::now(), 0);
    while begin.elapsed() < time {
        sleep(LOOK.min(time));
        most = most.max(descriptors(pid)?);
        told(begin.elapsed(), most);
    }
    let status = director.status()?;
    let checks = status.checks.len();
    ensure!(checks == CHECKS.len() * COPIES, "{checks} checks");
    for check in status.checks.iter().flat_map(|server| &server.checks) {
        ensure!(check.attempts > 0, "never made: {check:?}");
    }
    director.configure(&config(false))?;
    director.ctl(&["reload"])?;
    let _ = wait::until_true("descriptors are closed", PATIENCE, || {
        Ok(settled(pid)? <= before && children(pid)? == 0)
    });
    let seen = Seen {
        checks,
        attempts: status.probes.lateness.count,
        before,
        most,
        after: settled(pid)?,
        children: children(pid)?,
    };
    director.stop()?;
    Ok(seen)
}

/// The same services, with or without checks.
fn config(checked: bool) -> String {
    const TIMING: &str = "[[service.check]]\ninterval = \"1s\"\nretries = 0\nwarmup = \"1s\"\n";
    let head = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n");
    let all = (0..COPIES).flat_map(|_| CHECKS);
    let services = all.enumerate().map(|(number, check)| {
        let of = |kinds: &[&str]| kinds.iter().any(|kind| check.contains(&format!("\"{kind}\"")));
        let limit = match (of(&["file"]), of(&["udp", "icmp", "exec"])) {
            (true, _) => "",
            (_, true) => "answer_timeout = \"300ms\"\n",
            (_, false) => "connect_timeout = \"300ms\"\n",
        };
        let check = match checked {
            true => format!("{TIMING}{limit}{check}\n"),
            false => String::new(),
        };
        format!(
            "[[service]]\naddress = \"10.1.15.50:{}\"\n{check}[[service.backend]]\naddress = \"10.1.15.45\"\n",
            2_000 + number
        )
    });
    head + &services.collect::<String>()
}

/// The descriptors of a director that has nothing to do: who asks it something has one for a moment.
fn settled(pid: u32) -> Result<usize> {
    let mut least = descriptors(pid)?;
    for _ in 0..10 {
        sleep(Duration::from_millis(20));
        least = least.min(descriptors(pid)?);
    }
    Ok(least)
}

fn descriptors(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    Ok(std::fs::read_dir(&folder).context(folder)?.count())
}

/// Processes that a process has started and that have not been waited for.
fn children(pid: u32) -> Result<usize> {
    let mut count = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        count += list.split_whitespace().count();
    }
    Ok(count)
}
