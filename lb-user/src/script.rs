//! Programs that operators configured: without a shell, as an unprivileged account, killed with
//! their process group when they take too long.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

/// How much of a failing script's standard error goes to the log.
const STDERR_LIMIT: u64 = 1024;
/// How long after a failing script's end its last words are waited for.
const STDERR_GRACE: Duration = Duration::from_millis(200);
/// A killed process is gone within that, unless it cannot be killed.
const REAP: Duration = Duration::from_millis(200);

/// The account named in the configuration does not exist.
#[derive(Debug, Error)]
#[error(
    "there is no account `{0}` for scripts; create it or name another (`script_user` in [runtime], `user` of a script)"
)]
pub struct NoSuchUser(String);

/// User and group that scripts run as; without one, as whoever we are.
#[derive(Clone, Copy, Debug)]
pub struct Account(Option<(u32, u32)>);

impl Account {
    /// The account of this name. Without root there is no choice.
    pub fn of(user: &str) -> Result<Self, NoSuchUser> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let found = User::from_name(user)
            .ok()
            .flatten()
            .ok_or_else(|| NoSuchUser(user.to_owned()))?;
        Ok(Self(Some((found.uid.as_raw(), found.gid.as_raw()))))
    }

    /// User and group, where they are not our own.
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.0
    }

    /// Whoever we are.
    #[cfg(test)]
    pub fn own() -> Self {
        Self(None)
    }
}

/// How a script ended.
pub enum Outcome {
    /// With success.
    Succeeded,
    /// Its exit status, and the beginning of its standard error.
    Failed(String, String),
    /// It ran too long, and was killed with its process group.
    Killed,
}

/// Runs a program with its arguments for at most `limit`.
pub async fn run(command: &[String], limit: Duration, account: Account) -> io::Result<Outcome> {
    Ok(match run_to_end(command, limit, account).await? {
        None => Outcome::Killed,
        Some((status, _)) if status.success() => Outcome::Succeeded,
        Some((status, stderr)) => Outcome::Failed(status.to_string(), stderr),
    })
}

/// The same, for whoever wants the exit status itself and the beginning of the standard error of one
/// that failed. Nothing: it was killed.
pub async fn run_to_end(
    command: &[String],
    limit: Duration,
    account: Account,
) -> io::Result<Option<(ExitStatus, String)>> {
    // Nobody may be waiting any more: a reload ends track scripts in the middle.
    let mut running = start(command, account)?;
    match timeout(limit, wait(&mut running.child)).await {
        Ok(outcome) => {
            running.group.let_live();
            outcome.map(Some)
        }
        Err(_) => {
            running.kill().await?;
            Ok(None)
        }
    }
}

/// Starts a program with its arguments. It ends with the value, and its process group with it.
pub fn start(command: &[String], account: Account) -> io::Result<Running> {
    let [program, arguments @ ..] = command else {
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
    if let Account(Some((uid, gid))) = account {
        command.uid(uid).gid(gid);
    }
    let child = command.spawn()?;
    let group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
    Ok(Running { child, group })
}

/// A program that runs.
pub struct Running {
    child: Child,
    group: Group,
}

impl Running {
    /// Its process id, until it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> io::Result<Outcome> {
        let (status, stderr) = wait(&mut self.child).await?;
        Ok(match status.success() {
            true => Outcome::Succeeded,
            false => Outcome::Failed(status.to_string(), stderr),
        })
    }

    /// Asks it to end, and kills what is left of its process group after `grace`.
    pub async fn terminate(mut self, grace: Duration) {
        self.group.signal(Signal::SIGTERM);
        let _ = timeout(grace, self.child.wait()).await;
    }

    /// Kills the process group. A process that waits for a dead file server dies when that answers, and
    /// nobody waits for it: it is reaped whenever it ends.
    async fn kill(mut self) -> io::Result<()> {
        self.group.signal(Signal::SIGKILL);
        timeout(REAP, self.child.kill()).await.unwrap_or(Ok(()))
    }
}

/// A process group that ends with this value.
struct Group(Option<i32>);

impl Group {
    /// What a script that has ended left running may go on.
    fn let_live(&mut self) {
        self.0 = None;
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.0 {
            let _ = killpg(Pid::from_raw(leader), signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Waits for the script itself. What it leaves running in the background may go on, and may hold
/// its standard error open.
async fn wait(child: &mut Child) -> io::Result<(ExitStatus, String)> {
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
        return Ok((status, String::new()));
    }
    let text = timeout(STDERR_GRACE, reader)
        .await
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default();
    let stderr = String::from_utf8_lossy(&text).trim().to_owned();
    Ok((status, stderr))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    async fn shell(text: &str, limit: Duration) -> io::Result<Outcome> {
        let command = ["sh", "-c", text].map(str::to_owned);
        run(&command, limit, Account(None)).await
    }

    /// A script that notes the id of a child of its own and waits for it.
    fn with_child(name: &str) -> (std::path::PathBuf, String) {
        let file = std::env::temp_dir().join(format!("lbd-{name}-{}", std::process::id()));
        let text = format!("sleep 1000 & echo $! > {}; wait", file.display());
        (file, text)
    }

    async fn is_gone(file: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(file).unwrap();
        std::fs::remove_file(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..100 {
            // A zombie has been killed, too.
            let text = std::fs::read_to_string(&stat);
            if text.is_err() || text.is_ok_and(|text| text.contains(") Z ")) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    #[tokio::test]
    async fn a_script_that_hangs_is_killed_with_its_children() {
        let (file, text) = with_child("hangs");
        let outcome = shell(&text, Duration::from_millis(300)).await;
        assert!(matches!(outcome.unwrap(), Outcome::Killed));
        assert!(is_gone(&file).await);
    }

    #[tokio::test]
    async fn a_script_that_nobody_waits_for_ends_with_its_children() {
        let (file, text) = with_child("aborted");
        let task = tokio::spawn(async move { shell(&text, Duration::from_secs(100)).await });
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        task.abort();
        assert!(is_gone(&file).await);
    }

    #[tokio::test]
    async fn a_script_may_leave_something_in_the_background() {
        let began = Instant::now();
        let outcome = shell("sleep 3 & exit 0", Duration::from_secs(10)).await;
        assert!(matches!(outcome.unwrap(), Outcome::Succeeded));
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn failures_are_told_with_status_and_stderr() {
        let outcome = shell("echo no such thing >&2; exit 3", Duration::from_secs(10)).await;
        let Outcome::Failed(status, stderr) = outcome.unwrap() else {
            panic!("must fail");
        };
        assert_eq!(
            (status.as_str(), stderr.as_str()),
            ("exit status: 3", "no such thing")
        );
        let missing = ["/no/such/file".to_owned()];
        let result = run(&missing, Duration::from_secs(1), Account(None)).await;
        assert!(result.is_err());
    }
}
