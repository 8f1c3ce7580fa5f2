//! keepalived as it makes the same checks. What it tells IPVS of them is not carried out, so that any kernel will do:
//! see `lab::unheard`.

use std::{
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail, ensure};
use lab::{Lab, Node, peer, wait};

use crate::load::{self, DYING, PATIENCE, SERVERS, SERVICES, Steady, Witness, deaths};

/// How it says in its log that the server which dies is out of use, and in use again. It tells IPVS next.
const DOWN: &str = "Removing service [10.1.15.45]";
const UP: &str = "Adding service [10.1.15.45]";

/// How long its start may take.
const START: Duration = Duration::from_secs(60);

/// What was measured.
pub struct Theirs {
    pub steady: Steady,
    /// From a death to what it tells IPVS.
    pub deaths: Vec<f64>,
}

/// Runs it on a node.
pub fn measure(
    lab: &Lab,
    node: &Node,
    server: &Node,
    time: Duration,
    count: usize,
) -> Result<Theirs> {
    let keepalived = peer::keepalived_checkers(lab, node, &config())?;
    let checker = wait::until("keepalived makes checks", PATIENCE, || {
        peer::keepalived_checker(lab.directory(), node).map(Some)
    })?;
    let pids = [keepalived.id(), u32::try_from(checker.as_raw())?];
    // It makes two thousand checks ready before it begins with any.
    wait::until_true("keepalived has started", START, || {
        Ok(keepalived.log().contains("Activating BFD healthchecker"))
    })?;
    let steady = load::steady(server, &pids, time, || Ok(()))?;
    let log = keepalived.log();
    let down = log.matches("Removing service [").count();
    // That which will live and die.
    ensure!(
        down == 1 && log.contains(DOWN),
        "{down} real servers are down"
    );
    let file = lab
        .directory()
        .join(format!("{}-keepalived.log", node.name));
    let mut witness = Tail {
        seen: log.len(),
        file,
    };
    let deaths = deaths(server, count, &mut witness)?;
    keepalived.stop()?;
    Ok(Theirs { steady, deaths })
}

/// As lbd's configuration.
fn config() -> String {
    let service = |port: usize, asked: usize, servers: &[String]| {
        let all: String = servers
            .iter()
            .map(|address| {
                format!(
                    "  real_server {address} {port} {{\n    weight 1\n    TCP_CHECK {{\n      connect_port {asked}\n      \
                     connect_timeout 1\n      retry 0\n      delay_before_retry 1\n    }}\n  }}\n"
                )
            })
            .collect();
        format!(
            "virtual_server 10.1.15.50 {port} {{\n  delay_loop 1\n  lb_algo wrr\n  lb_kind DR\n  protocol TCP\n{all}}}\n"
        )
    };
    let all: Vec<String> = (1..=SERVERS).map(|n| format!("10.1.32.{n}")).collect();
    let load: String = (0..SERVICES)
        .map(load::ports)
        .map(|[port, asked]| service(port, asked, &all))
        .collect();
    let dying = usize::from(DYING);
    service(dying, dying, &["10.1.15.45".to_owned()]) + &load
}

/// Its log, as it is written.
struct Tail {
    file: PathBuf,
    /// Bytes of it that are of earlier turns.
    seen: usize,
}

impl Tail {
    /// Waits for words, and returns when they were there: its own times are whole seconds.
    fn wait_for(&mut self, words: &str) -> Result<Duration> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            if fs::metadata(&self.file)?.len() > self.seen as u64 {
                let bytes = fs::read(&self.file)?;
                let text = String::from_utf8_lossy(&bytes[self.seen..]);
                if text.contains(words) {
                    self.seen = bytes.len();
                    return Ok(now);
                }
            }
            sleep(Duration::from_millis(1));
        }
        bail!("keepalived does not say within {PATIENCE:?}: {words}")
    }
}

impl Witness for Tail {
    fn until_up(&mut self) -> Result<()> {
        self.wait_for(UP).map(|_| ())
    }

    fn until_down(&mut self) -> Result<f64> {
        Ok(self.wait_for(DOWN)?.as_secs_f64() * 1e3)
    }
}
