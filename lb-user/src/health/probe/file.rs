//! A file that says how the real server is, in an agent's words; a number alone is its weight. Another
//! program, or an operator, writes it.

use std::{
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use thiserror::Error;
use tokio::task::spawn_blocking;

use super::{Late, Place, Verdict};
use crate::health::words::{NotUnderstood, Words};

/// How much of the file is read, in bytes: one line of words.
const MAX_FILE: u64 = 1_024;

/// Why a file says nothing useful.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The disk does not answer.
    #[error(transparent)]
    Late(#[from] Late),
    /// An earlier attempt still waits for the disk.
    #[error("{} could not be read since an earlier attempt", path.display())]
    Stuck {
        /// The file.
        path: PathBuf,
    },
    /// The words say nothing.
    #[error("{} {source}", path.display())]
    Words {
        /// The file.
        path: PathBuf,
        /// What stands there instead.
        source: NotUnderstood,
    },
}

/// The file of one check.
pub(super) struct WordsFile {
    path: PathBuf,
    /// A reader is under way. It cannot be stopped, so there is never a second one.
    reading: Arc<AtomicBool>,
}

impl WordsFile {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            reading: Arc::default(),
        }
    }

    pub(super) async fn attempt(&self, place: &Place) -> Result<Verdict, FileError> {
        let path = || self.path.clone();
        if self.reading.swap(true, Ordering::AcqRel) {
            return Err(FileError::Stuck { path: path() });
        }
        let (file, reading) = (path(), self.reading.clone());
        let reader = spawn_blocking(move || {
            let text = read(&file);
            reading.store(false, Ordering::Release);
            text
        });
        let text = place
            .within(place.limits.answer, "have its file read", reader)
            .await?
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| FileError::Read {
                path: path(),
                source,
            })?;
        // A file always says everything: nothing of before counts.
        let mut words = Words::default();
        words
            .hear(text.lines().next().unwrap_or_default())
            .map_err(|source| FileError::Words {
                path: path(),
                source,
            })?;
        Ok(words.verdict().into())
    }
}

/// The beginning of the file. Opening a pipe would wait for its writer.
fn read(path: &Path) -> io::Result<String> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
