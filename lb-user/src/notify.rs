//! Notify scripts in keepalived's conventions: in order and one at a time per instance, without a
//! shell, as an unprivileged account, killed with their process group when they take too long.

use std::{collections::HashMap, io, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use crate::model::{Instance, VrrpState};

/// Commands of one instance that wait for their turn. An instance that changes its state so often
/// that a hundred wait has a problem no script solves; further ones are dropped and logged.
const QUEUE: usize = 100;
/// How much of a failing script's standard error goes to the log.
const STDERR_LIMIT: u64 = 1024;
/// How long after a failing script's end its last words are waited for.
const STDERR_GRACE: Duration = Duration::from_millis(200);

/// The account named in the configuration does not exist.
#[derive(Debug, Error)]
#[error(
    "there is no account `{0}` for notify scripts; create it or set `script_user` in [runtime]"
)]
pub struct NoSuchUser(String);

/// Runs scripts.
pub struct Notifier {
    account: Option<(u32, u32)>,
    queues: HashMap<String, (mpsc::Sender<Call>, JoinHandle<()>)>,
}

struct Call {
    command: Vec<String>,
    limit: Duration,
}

impl Notifier {
    /// A notifier whose scripts run as `user`. Without root they run as whoever we are.
    pub fn new(user: &str) -> Result<Self, NoSuchUser> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self {
                account: None,
                queues: HashMap::new(),
            });
        }
        let found = User::from_name(user)
            .ok()
            .flatten()
            .ok_or_else(|| NoSuchUser(user.to_owned()))?;
        let account = Some((found.uid.as_raw(), found.gid.as_raw()));
        Ok(Self {
            account,
            queues: HashMap::new(),
        })
    }

    /// Queues the scripts of a transition: the state's own, then the general one.
    pub fn transition(&mut self, instance: &Instance, state: VrrpState) {
        for command in commands(instance, state) {
            let account = self.account;
            let (queue, _) = self.queues.entry(instance.name.clone()).or_insert_with(|| {
                let (queue, calls) = mpsc::channel(QUEUE);
                (queue, tokio::spawn(run_queue(calls, account)))
            });
            let call = Call {
                command,
                limit: instance.notify.timeout,
            };
            if let Err(error) = queue.try_send(call) {
                tracing::error!(instance = instance.name, %error, "dropping a notify script");
            }
        }
    }

    /// Waits for what is queued, at most `limit`.
    pub async fn finish(self, limit: Duration) {
        let tasks: Vec<JoinHandle<()>> = self.queues.into_values().map(|(_, task)| task).collect();
        if timeout(limit, futures::future::join_all(tasks))
            .await
            .is_err()
        {
            tracing::warn!("notify scripts are still running; ending them");
        }
    }
}

/// The command lines of a transition, in order. `notify` gets keepalived's four arguments:
/// `INSTANCE`, the name, the state (`STOP` for the end) and the priority.
fn commands(instance: &Instance, state: VrrpState) -> Vec<Vec<String>> {
    let scripts = &instance.notify;
    let (own, word) = match state {
        VrrpState::Master => (&scripts.master, "MASTER"),
        VrrpState::Backup => (&scripts.backup, "BACKUP"),
        VrrpState::Fault => (&scripts.fault, "FAULT"),
        VrrpState::Init => (&scripts.stop, "STOP"),
    };
    let general = scripts.any.as_ref().map(|command| {
        let arguments = [
            "INSTANCE",
            &instance.name,
            word,
            &instance.priority.to_string(),
        ]
        .map(str::to_owned);
        command.iter().cloned().chain(arguments).collect()
    });
    own.iter().cloned().chain(general).collect()
}

async fn run_queue(mut calls: mpsc::Receiver<Call>, account: Option<(u32, u32)>) {
    while let Some(call) = calls.recv().await {
        let name = call.command.join(" ");
        match run(&call, account).await {
            Ok(Outcome::Succeeded) => tracing::debug!(script = name, "notify script succeeded"),
            Ok(Outcome::Failed(status, stderr)) => {
                tracing::warn!(script = name, status, stderr, "notify script failed");
            }
            Ok(Outcome::Killed) => {
                tracing::warn!(script = name, limit = ?call.limit, "notify script killed: it ran too long");
            }
            Err(error) => tracing::warn!(script = name, %error, "cannot run a notify script"),
        }
    }
}

enum Outcome {
    Succeeded,
    Failed(String, String),
    Killed,
}

async fn run(call: &Call, account: Option<(u32, u32)>) -> io::Result<Outcome> {
    let [program, arguments @ ..] = call.command.as_slice() else {
        return Err(io::Error::other("empty command"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some((uid, gid)) = account {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn()?;
    let outcome = timeout(call.limit, wait(&mut child)).await;
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => {
            kill_group(&child);
            child.kill().await?;
            Ok(Outcome::Killed)
        }
    }
}

/// Waits for the script itself. What it leaves running in the background may go on, and may hold
/// its standard error open.
async fn wait(child: &mut Child) -> io::Result<Outcome> {
    let stderr = child.stderr.take();
    let reader = tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let mut first = stderr.take(STDERR_LIMIT);
            let _ = first.read_to_end(&mut text).await;
            // The script must not be stopped by a full pipe.
            let _ = tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await;
        }
        text
    });
    let status = child.wait().await?;
    if status.success() {
        return Ok(Outcome::Succeeded);
    }
    let text = timeout(STDERR_GRACE, reader)
        .await
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default();
    let stderr = String::from_utf8_lossy(&text).trim().to_owned();
    Ok(Outcome::Failed(status.to_string(), stderr))
}

fn kill_group(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::NotifyScripts;

    fn instance(notify: NotifyScripts) -> Instance {
        Instance {
            name: "VI_1".into(),
            interface: "eth0".into(),
            vrid: 20,
            priority: 100,
            advert_interval: Duration::from_secs(1),
            preempt: true,
            source: None,
            group: std::net::Ipv4Addr::new(224, 0, 0, 18).into(),
            version: crate::model::VrrpVersion::V2,
            preempt_delay: Duration::ZERO,
            peers: Vec::new(),
            unicast_ttl: crate::model::UnicastTtl::default(),
            checksum: crate::model::ChecksumForm::Auto,
            auth: crate::model::Auth::None,
            excluded: Vec::new(),
            addresses: Vec::new(),
            notify,
        }
    }

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn keepalived_conventions() {
        let instance = instance(NotifyScripts {
            master: words("/etc/master.sh one"),
            any: words("/etc/any.sh"),
            ..NotifyScripts::default()
        });
        let lines = |state| -> Vec<String> {
            commands(&instance, state)
                .iter()
                .map(|line| line.join(" "))
                .collect()
        };
        assert_eq!(
            lines(VrrpState::Master),
            ["/etc/master.sh one", "/etc/any.sh INSTANCE VI_1 MASTER 100"]
        );
        assert_eq!(
            lines(VrrpState::Backup),
            ["/etc/any.sh INSTANCE VI_1 BACKUP 100"]
        );
        assert_eq!(
            lines(VrrpState::Fault),
            ["/etc/any.sh INSTANCE VI_1 FAULT 100"]
        );
        assert_eq!(
            lines(VrrpState::Init),
            ["/etc/any.sh INSTANCE VI_1 STOP 100"]
        );
    }

    #[tokio::test]
    async fn a_script_that_hangs_is_killed_with_its_children() {
        let command = ["sh", "-c", "sleep 1000 & echo $! >&2; wait"]
            .map(str::to_owned)
            .to_vec();
        let call = Call {
            command,
            limit: Duration::from_millis(300),
        };
        let began = Instant::now();
        assert!(matches!(run(&call, None).await.unwrap(), Outcome::Killed));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_script_may_leave_something_in_the_background() {
        let command = ["sh", "-c", "sleep 3 & exit 0"].map(str::to_owned).to_vec();
        let call = Call {
            command,
            limit: Duration::from_secs(10),
        };
        let began = Instant::now();
        assert!(matches!(
            run(&call, None).await.unwrap(),
            Outcome::Succeeded
        ));
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn failures_are_told_with_status_and_stderr() {
        let command = ["sh", "-c", "echo no such thing >&2; exit 3"]
            .map(str::to_owned)
            .to_vec();
        let call = Call {
            command,
            limit: Duration::from_secs(10),
        };
        let Outcome::Failed(status, stderr) = run(&call, None).await.unwrap() else {
            panic!("must fail");
        };
        assert_eq!(
            (status.as_str(), stderr.as_str()),
            ("exit status: 3", "no such thing")
        );
        let missing = Call {
            command: vec!["/no/such/file".into()],
            limit: Duration::from_secs(1),
        };
        assert!(run(&missing, None).await.is_err());
    }
}
