//! A director and a real server for tests of health checks: a service for each check, all at once.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
pub use lab::servers::Servers;
use lab::{Director, Lab, Node, network::INTERFACE};
use lb_user::api::proto::CheckStatus;

/// The real server.
pub const SERVER: &str = "10.1.15.45";
/// Its IPv6 address.
pub const SERVER_V6: &str = "2001:db8::45";

/// What checks that are made often have in common, and do not try again.
pub const TIMING: &str = "interval = \"200ms\"\nretries = 0\nwarmup = \"100ms\"\n";

/// What must become of a check.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// At least two attempts, none of them failed.
    Up,
    /// Down, for a reason with these words.
    Down(&'static str),
}

/// The hosts. Fields are dropped in this order.
pub struct Checked {
    pub director: Director,
    pub server: Node,
    pub lab: Lab,
}

impl Checked {
    pub fn prepare() -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("node1", [10, 1, 15, 43])?;
        let server = lab.node("rs1", [10, 1, 15, 45])?;
        for (host, address) in [(&node, "2001:db8::43/64"), (&server, "2001:db8::45/64")] {
            host.ip(&["-6", "address", "add", address, "dev", INTERFACE, "nodad"])?;
        }
        // Scripts and nginx's workers are other accounts.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(lab.directory(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            director: Director::new(&lab, &node, "")?,
            server,
            lab,
        })
    }

    /// A path in the laboratory's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.lab.directory().join(name)
    }

    /// Runs the director with a service for each check. `timing` is what all checks have in common.
    pub fn start(&mut self, timing: &str, checks: &[String]) -> Result<()> {
        let services: String = checks
            .iter()
            .enumerate()
            .map(|(index, check)| {
                let service = service(index);
                format!(
                    "[[service]]\naddress = \"{service}\"\n[[service.backend]]\naddress = \"{SERVER}\"\nweight = 20\n[[service.backend.check]]\n{timing}{check}\n"
                )
            })
            .collect();
        let config = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{services}");
        self.director.configure(&config)?;
        self.director.start(&self.lab)
    }

    /// What the director knows by the check of this number.
    pub fn status(&self, index: usize) -> Result<CheckStatus> {
        let name = format!("TCP {}", service(index));
        let all = self.director.status()?.checks;
        let found = all.into_iter().find(|check| check.service == name);
        found.ok_or_else(|| anyhow::anyhow!("no {name}"))
    }

    /// Waits until every check is as expected, and names those that are not.
    pub fn wait_for(&self, rows: &[(String, Expect)], limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let all = self.director.status()?.checks;
            let wrong: Vec<String> = rows
                .iter()
                .enumerate()
                .filter_map(|(index, (check, expect))| {
                    let name = format!("TCP {}", service(index));
                    let seen = all.iter().find(|check| check.service == name)?;
                    (!is_as_expected(seen, *expect))
                        .then(|| format!("{check}\n  expected {expect:?}, seen {seen:?}\n"))
                })
                .collect();
            ensure!(
                all.len() == rows.len(),
                "{} of {} checks",
                all.len(),
                rows.len()
            );
            if wrong.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{}", wrong.join("\n"));
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn service(index: usize) -> String {
    format!("10.1.15.50:{}", 2_000 + index)
}

fn is_as_expected(seen: &CheckStatus, expect: Expect) -> bool {
    match expect {
        Expect::Up => {
            seen.up
                && seen
                    .checks
                    .iter()
                    .all(|c| c.attempts >= 2 && c.failures == 0 && !c.blind)
        }
        Expect::Down(words) => {
            !seen.up
                && seen
                    .cause
                    .as_ref()
                    .is_some_and(|cause| cause.contains(words))
        }
    }
}
