//! A named pipe that gets a line for every event, as keepalived's `notify_fifo`; and the program that reads
//! it.
//!
//! Nobody waits for the reader: the pipe is open for reading here too, so it keeps what is written while
//! nobody reads, until it is full (64 KiB); then lines wait in a queue, and when that is full the oldest go.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{OpenOptions, Sender},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::backlog::Backlog;
use crate::{
    api::proto::{FifoStatus, ReaderStatus},
    model::NotifyFifo,
    script::{self, Account, Outcome},
};

/// Lines that wait for room in the pipe, which itself holds about 1,500: enough for a reader that takes
/// minutes for a restart.
const QUEUE: usize = 1024;
/// How long after its end a reader is started again; doubled each time that it ends soon.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// At most so long after.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the last lines may wait for room, how long a reader may go on with what it has got, and
/// again how long after it was asked to end.
const GRACE: Duration = Duration::from_secs(1);

/// Why there is no FIFO.
#[derive(Debug, Error)]
pub enum FifoError {
    /// Something else has the path.
    #[error("notify_fifo {0} exists and is no FIFO; remove it, or name another path")]
    NotAFifo(PathBuf),
    /// It cannot be made.
    #[error("cannot {what} notify_fifo {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// The pipe, with its queue and its reader.
pub struct Fifo {
    lines: Arc<Backlog<String>>,
    status: Arc<Mutex<FifoStatus>>,
    writer: JoinHandle<()>,
    reader: Option<(JoinHandle<()>, oneshot::Sender<()>)>,
    _file: Made,
}

/// The file, removed with this value where we made it.
struct Made(Option<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl Fifo {
    /// Makes the file if it is missing, opens it, and starts the reader, which runs as `account`.
    pub fn open(setup: &NotifyFifo, account: Account) -> Result<Self, FifoError> {
        let path = &setup.path;
        let made = make(path, account)?;
        let failed = |what| {
            move |source| FifoError::System {
                what,
                path: path.clone(),
                source,
            }
        };
        let pipe = OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map_err(failed("open"))?;
        let command = setup.reader.as_ref().map(|command| {
            let path = path.display().to_string();
            command.iter().cloned().chain([path]).collect::<Vec<_>>()
        });
        let lines = Arc::new(Backlog::new(QUEUE));
        let status = Arc::new(Mutex::new(FifoStatus {
            path: path.display().to_string(),
            written: 0,
            dropped: 0,
            waiting: 0,
            error: None,
            reader: command.as_ref().map(|command| ReaderStatus {
                command: command.join(" "),
                ..ReaderStatus::default()
            }),
        }));
        Ok(Self {
            writer: tokio::spawn(write(pipe, lines.clone(), status.clone())),
            reader: command.map(|command| {
                let (stop, stopped) = oneshot::channel();
                let task = keep_running(command, account, status.clone(), stopped);
                (tokio::spawn(task), stop)
            }),
            lines,
            status,
            _file: made,
        })
    }

    /// Adds a line.
    pub fn push(&self, line: String) {
        if !self.lines.push(line) && self.lines.dropped() == 1 {
            // Told once; the status has the number.
            tracing::warn!("nobody reads the FIFO of notifications; lines are dropped");
        }
    }

    /// What became of the lines.
    pub fn status(&self) -> FifoStatus {
        let mut status = lock(&self.status).clone();
        status.waiting = self.lines.waiting();
        status.dropped = self.lines.dropped();
        status
    }

    /// Writes what there is room for, and ends the reader.
    pub async fn finish(mut self) {
        self.lines.close();
        if timeout(GRACE, &mut self.writer).await.is_err() {
            self.writer.abort();
            let _ = (&mut self.writer).await;
        }
        // The pipe is closed: a reader that knows no other sees its end.
        if let Some((task, stop)) = self.reader {
            let _ = stop.send(());
            let _ = task.await;
        }
    }
}

/// For root and the account of scripts alone, as keepalived makes it.
fn make(path: &Path, account: Account) -> Result<Made, FifoError> {
    let failed = |what, source| FifoError::System {
        what,
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_fifo() => return Ok(Made(None)),
        Ok(_) => return Err(FifoError::NotAFifo(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", error)),
    }
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| failed("make", error.into()))?;
    let made = Made(Some(path.to_owned()));
    if let Some((user, group)) = account.ids() {
        std::os::unix::fs::lchown(path, Some(user), Some(group))
            .map_err(|error| failed("give away", error))?;
    }
    Ok(made)
}

async fn write(mut pipe: Sender, lines: Arc<Backlog<String>>, status: Arc<Mutex<FifoStatus>>) {
    while let Some(line) = lines.next().await {
        match pipe.write_all(line.as_bytes()).await {
            Ok(()) => lock(&status).written += 1,
            Err(error) => {
                tracing::error!(%error, "cannot write to the FIFO of notifications");
                lock(&status).error = Some(error.to_string());
                return;
            }
        }
    }
}

/// Starts the reader again whenever it ends, until `stop`.
async fn keep_running(
    command: Vec<String>,
    account: Account,
    status: Arc<Mutex<FifoStatus>>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let end = match script::start(&command, account) {
            Ok(mut running) => {
                note(&status, |reader| {
                    reader.starts += 1;
                    reader.pid = running.id();
                });
                tokio::select! {
                    outcome = running.end() => match outcome {
                        Ok(Outcome::Succeeded) => "exit status: 0".to_owned(),
                        Ok(Outcome::Failed(status, stderr)) if stderr.is_empty() => status,
                        Ok(Outcome::Failed(status, stderr)) => format!("{status}: {stderr}"),
                        Ok(Outcome::Killed) => "killed".to_owned(),
                        Err(error) => error.to_string(),
                    },
                    _ = &mut stop => {
                        if timeout(GRACE, running.end()).await.is_err() {
                            running.terminate(GRACE).await;
                        }
                        return;
                    }
                }
            }
            Err(error) => format!("cannot start: {error}"),
        };
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tracing::warn!(
            script = command.join(" "),
            end,
            again_in = ?pause,
            "the reader of the notification FIFO has ended"
        );
        note(&status, |reader| {
            reader.pid = None;
            reader.last_end = Some(end);
        });
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut stop => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn note(status: &Mutex<FifoStatus>, change: impl FnOnce(&mut ReaderStatus)) {
    if let Some(reader) = &mut lock(status).reader {
        change(reader);
    }
}

fn lock(status: &Mutex<FifoStatus>) -> MutexGuard<'_, FifoStatus> {
    // Every change is complete before anything could panic.
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lbd-fifo-{name}-{}", std::process::id()))
    }

    fn setup(path: &Path, reader: Option<&str>) -> NotifyFifo {
        NotifyFifo {
            path: path.to_owned(),
            reader: reader.map(|text| ["sh", "-c", text, "reader"].map(str::to_owned).to_vec()),
        }
    }

    async fn until(mut is_true: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is_true() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("waited too long");
    }

    #[tokio::test]
    async fn made_if_missing_and_removed_at_the_end() {
        let path = path("made");
        let fifo = Fifo::open(&setup(&path, None), Account::own()).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_fifo());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        fifo.finish().await;
        assert!(!path.exists());
        // One that was there stays.
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        Fifo::open(&setup(&path, None), Account::own())
            .unwrap()
            .finish()
            .await;
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        // A file is no FIFO, and stays too.
        fs::write(&path, "precious").unwrap();
        let error = Fifo::open(&setup(&path, None), Account::own())
            .err()
            .unwrap();
        assert!(error.to_string().contains("is no FIFO"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn nobody_reads() {
        let path = path("unread");
        let fifo = Fifo::open(&setup(&path, None), Account::own()).unwrap();
        let began = Instant::now();
        // Far more than pipe and queue hold.
        for n in 0..20_000 {
            fifo.push(format!("INSTANCE \"VI_1\" MASTER {n}\n"));
            if n % 500 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        until(|| fifo.status().written > 1000).await;
        let status = fifo.status();
        assert_eq!(status.waiting, QUEUE as u64);
        // One line is in the hand of the writer.
        assert_eq!(status.written + status.dropped + status.waiting + 1, 20_000);
        // Whoever comes late gets the newest ones, too.
        let reader = tokio::task::spawn_blocking({
            let path = path.clone();
            move || fs::read_to_string(path).unwrap()
        });
        until(|| fifo.status().waiting == 0).await;
        fifo.finish().await;
        let text = reader.await.unwrap();
        assert!(text.ends_with("MASTER 19999\n"));
    }

    #[tokio::test]
    async fn a_reader_that_dies_is_started_again_and_ended_at_the_end() {
        let (path, log) = (path("reader"), path("reader-log"));
        // Ends after two lines; `sleep` would hold up an end that waits for all of the group.
        let text = format!(
            "read -r one; read -r two; echo \"$1: $one $two\" >> {}; sleep 1000 & exit 4",
            log.display()
        );
        let text = format!("exec < \"$1\"; {text}");
        let fifo = Fifo::open(&setup(&path, Some(&text)), Account::own()).unwrap();
        for n in 1..=4 {
            fifo.push(format!("{n}\n"));
        }
        let lines = || fs::read_to_string(&log).unwrap_or_default();
        until(|| lines().lines().count() == 2).await;
        assert_eq!(lines(), format!("{0}: 1 2\n{0}: 3 4\n", path.display()));
        until(|| {
            fifo.status()
                .reader
                .is_some_and(|r| r.starts == 3 && r.pid.is_some())
        })
        .await;
        let reader = fifo.status().reader.unwrap();
        assert_eq!(reader.last_end.as_deref(), Some("exit status: 4"));
        let pid = reader.pid.unwrap();
        fifo.finish().await;
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        fs::remove_file(&log).unwrap();
    }
}
