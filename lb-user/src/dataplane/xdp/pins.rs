//! The directory on a bpffs where one daemon keeps its maps and links.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::dataplane::DataPlaneError;

/// The kernel's BPF_FS_MAGIC.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The directory, locked: no second daemon uses it. Dropping the lock leaves the pins.
pub struct Pins {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Pins {
    /// Creates the directory where needed and locks it.
    pub fn lock(path: &Path) -> Result<Self, DataPlaneError> {
        let failed = |source: io::Error| DataPlaneError::PinPath {
            path: path.display().to_string(),
            source,
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let file_system = rustix::fs::statfs(parent).map_err(|e| failed(e.into()))?;
        if file_system.f_type != BPF_FS_MAGIC {
            return Err(failed(io::Error::other(format!(
                "{} is not on a bpffs",
                parent.display()
            ))));
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(DataPlaneError::PinsInUse(path.display().to_string()))
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Where `name` is pinned.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of everything pinned.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// Removes every pin, and the directory.
    pub fn remove_all(&self) -> io::Result<()> {
        for name in self.names() {
            fs::remove_file(self.path(&name))?;
        }
        fs::remove_dir(&self.path)
    }

    /// Removes every pin but leaves the directory, and with it the lock.
    pub fn clear(&self) -> io::Result<()> {
        self.names()
            .iter()
            .try_for_each(|name| fs::remove_file(self.path(name)))
    }
}
