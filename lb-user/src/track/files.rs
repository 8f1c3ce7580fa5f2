//! Follows files: one task for all [`TrackFile`]s. inotify tells of changes in the directories that
//! hold them, so a file may be written, replaced by another name, removed, or made later. Besides,
//! every file is read once a second: directories may be missing, and file systems of other hosts
//! tell of nothing.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Finding, Findings, Order, Source,
    file::{Content, FileState, LONGEST},
};
use crate::model::{Condition, InitialValue, TrackFile};

/// Every file is read this often, whatever inotify tells.
const POLL: Duration = Duration::from_secs(1);
/// Between two reads, so that somebody who writes all the time does not keep us busy.
const PAUSE: Duration = Duration::from_millis(5);
/// How long the first read is waited for: a file system of another host may hang.
const FIRST_READ: Duration = Duration::from_secs(1);

/// The followed files.
pub struct Files {
    orders: mpsc::Sender<Order<TrackFile>>,
}

impl Files {
    /// Nothing is followed yet.
    pub fn new(findings: Findings) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        tokio::spawn(Task::new(findings).run(inbox));
        Self { orders }
    }

    /// Makes these the followed ones. Unchanged ones are not disturbed. Tells how all of them are.
    pub async fn configure(&self, wanted: &[TrackFile]) -> Vec<Finding> {
        let (first, answer) = oneshot::channel();
        let wanted = wanted.to_vec();
        let order = Order { wanted, first };
        match timeout(FIRST_READ, async {
            self.orders.send(order).await.ok()?;
            answer.await.ok()
        })
        .await
        {
            Ok(Some(findings)) => findings,
            Ok(None) | Err(_) => Vec::new(),
        }
    }
}

struct Task {
    findings: Findings,
    followed: Vec<(TrackFile, FileState)>,
    /// Paths of interest, for the watcher's thread.
    paths: Arc<Mutex<BTreeSet<PathBuf>>>,
    changed: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Directories that inotify watches.
    watched: BTreeSet<PathBuf>,
}

impl Task {
    fn new(findings: Findings) -> Self {
        Self {
            findings,
            followed: Vec::new(),
            paths: Arc::default(),
            changed: Arc::default(),
            watcher: None,
            watched: BTreeSet::new(),
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order<TrackFile>>) {
        loop {
            let changed = Arc::clone(&self.changed);
            let mut settled = false;
            let mut answer = None;
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        self.configure(order.wanted).await;
                        answer = Some(order.first);
                    }
                    None => return,
                },
                () = changed.notified() => sleep(PAUSE).await,
                () = sleep(POLL), if !self.followed.is_empty() => settled = true,
            }
            // A directory that is watched before its files are read hides no change.
            self.watch();
            let news = self.read_all(settled).await;
            if let Some(answer) = answer {
                let all = self.followed.iter().map(finding).collect();
                let _ = answer.send(all);
                continue;
            }
            for index in news {
                let Some(followed) = self.followed.get(index) else {
                    continue;
                };
                if self.findings.send(finding(followed)).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn configure(&mut self, wanted: Vec<TrackFile>) {
        let before = std::mem::take(&mut self.followed);
        for file in wanted {
            let kept = before.iter().find(|(known, _)| *known == file);
            let state = kept.map(|(_, state)| state.clone());
            if let (None, Some(init)) = (&state, file.init) {
                let path = file.path.clone();
                let name = file.name.clone();
                let written = spawn_blocking(move || initialise(&path, init)).await;
                if let Ok(Err(error)) = written {
                    tracing::warn!(file = name, %error, "cannot write the initial value");
                }
            }
            self.followed.push((file, state.unwrap_or_default()));
        }
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        *paths = self.followed.iter().map(|(f, _)| f.path.clone()).collect();
    }

    /// Makes inotify watch every directory that holds a file. One that is missing, or was removed and
    /// made again, is tried each time.
    fn watch(&mut self) {
        let directories: BTreeSet<PathBuf> = self
            .followed
            .iter()
            .filter_map(|(file, _)| file.path.parent().map(Path::to_owned))
            .collect();
        if directories.is_empty() {
            self.watcher = None;
            self.watched.clear();
            return;
        }
        if self.watcher.is_none() {
            match watcher(Arc::clone(&self.paths), Arc::clone(&self.changed)) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => {
                    tracing::debug!(%error, "no inotify; tracked files are read once a second");
                    return;
                }
            }
        }
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for gone in self.watched.difference(&directories) {
            let _ = watcher.unwatch(gone);
        }
        // inotify forgets a directory that is removed, and says so only in passing.
        self.watched = directories
            .into_iter()
            .filter(|directory| {
                watcher
                    .watch(directory, RecursiveMode::NonRecursive)
                    .is_ok()
            })
            .collect();
    }

    /// Reads every file. Says which have news.
    async fn read_all(&mut self, settled: bool) -> Vec<usize> {
        let paths: Vec<PathBuf> = self.followed.iter().map(|(f, _)| f.path.clone()).collect();
        let read = spawn_blocking(move || paths.iter().map(|path| read(path)).collect::<Vec<_>>());
        let contents = read.await.unwrap_or_default();
        let mut news = Vec::new();
        for (index, ((file, state), content)) in self.followed.iter_mut().zip(&contents).enumerate()
        {
            if state.found(content, settled) {
                if let Some(complaint) = state.complaint() {
                    let value = state.value();
                    tracing::warn!(
                        file = file.name,
                        path = %file.path.display(),
                        value,
                        "a tracked file {complaint}; its last value stays"
                    );
                }
                news.push(index);
            }
        }
        news
    }
}

fn finding((file, state): &(TrackFile, FileState)) -> Finding {
    Finding {
        of: Source::File(file.clone()),
        condition: Condition::Value(state.value()),
        detail: state
            .complaint()
            .map(|complaint| format!("{} {complaint}", file.path.display())),
    }
}

fn watcher(
    paths: Arc<Mutex<BTreeSet<PathBuf>>>,
    changed: Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_ours = match event {
            // Our own reading is no change.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => false,
            Ok(event) => {
                let paths = paths.lock().unwrap_or_else(PoisonError::into_inner);
                event.need_rescan() || event.paths.iter().any(|path| paths.contains(path))
            }
            Err(_) => true,
        };
        if is_ours {
            changed.notify_one();
        }
    })
}

/// The beginning of a file. A pipe or a device is none.
fn read(path: &Path) -> Content {
    let open = OpenOptions::new()
        .read(true)
        // A pipe without a writer would be waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let mut bytes = Vec::new();
    let result = open.and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)
    });
    match result {
        Ok(_) => Content::Bytes(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Absent,
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

/// Writes the initial value. Follows no symbolic link at the path's end: the directory may be
/// anybody's.
fn initialise(path: &Path, init: InitialValue) -> io::Result<()> {
    if !init.overwrite && fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o644);
    if init.overwrite {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    writeln!(options.open(path)?, "{}", init.value)
}
