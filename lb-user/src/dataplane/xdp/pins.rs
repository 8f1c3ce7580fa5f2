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
        let existing = path
            .ancestors()
            .find(|p| p.exists())
            .unwrap_or(Path::new("/"));
        let file_system = rustix::fs::statfs(existing).map_err(|e| failed(e.into()))?;
        if file_system.f_type != BPF_FS_MAGIC {
            return Err(failed(io::Error::other(format!(
                "{} is not on a bpffs",
                existing.display()
            ))));
        }
        fs::create_dir_all(path).map_err(failed)?;
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

    /// Removes every pin, and the directory unless it is the bpffs itself.
    pub fn remove_all(&self) -> io::Result<()> {
        let cleared = self.clear();
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => cleared,
            removed => cleared.and(removed.or_else(absent_is_fine)),
        }
    }

    /// Removes every pin but leaves the directory, and with it the lock.
    pub fn clear(&self) -> io::Result<()> {
        let mut result = Ok(());
        for name in self.names() {
            result = result.and(fs::remove_file(self.path(&name)).or_else(absent_is_fine));
        }
        result
    }
}

/// What is to be removed may be gone already.
pub fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}
