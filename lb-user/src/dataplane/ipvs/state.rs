//! What the daemon must not forget when it dies: which services in the kernel are ours, and how the
//! kernel was set before us. A small file beside the API's socket.
//!
//! A service is ours if the configuration has it, or if this file says so. Everything else in IPVS
//! belongs to somebody else and is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    codec::{Key, SyncState},
    slow::is_slow,
};

/// Differs from boot to boot: what was before a boot is not in the kernel.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The file and what it says.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: State,
    left: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    boot: String,
    services: BTreeSet<String>,
    sysctls: BTreeMap<String, String>,
    /// TCP, TCP after a FIN, UDP, in seconds.
    timeouts: Option<[u32; 3]>,
    /// The sync daemons that are ours: of each kind there is at most one in the kernel.
    sync_daemons: BTreeSet<SyncState>,
    /// Earlier versions wrote no more than that some are.
    #[serde(skip_serializing)]
    sync: bool,
    /// Those of the services that only took what the XDP program left.
    slow: BTreeSet<String>,
    /// IPVS does not know XDP's connections yet.
    telling: bool,
}

impl State {
    /// Either may be ours where nobody noted which.
    fn of_this_version(mut self) -> Self {
        if std::mem::take(&mut self.sync) {
            self.sync_daemons = [SyncState::Master, SyncState::Backup].into();
        }
        self
    }

    /// Whether IPVS forwarded: there is more than what XDP left, and it knew the connections.
    fn has_forwarded(&self) -> bool {
        !self.telling && self.has_served()
    }

    fn has_served(&self) -> bool {
        self.services.difference(&self.slow).next().is_some()
    }
}

impl StateFile {
    /// Where the file of a daemon with this socket is.
    pub fn path_of(socket: &Path) -> PathBuf {
        let mut name = socket.as_os_str().to_owned();
        name.push(".ipvs");
        name.into()
    }

    /// Reads what an earlier daemon left. A file that cannot be read, or of another boot, says nothing.
    pub fn open(socket: &Path) -> Self {
        let path = Self::path_of(socket);
        let boot = fs::read_to_string(BOOT).unwrap_or_default();
        let boot = boot.trim();
        let left: Option<State> = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|state: &State| state.boot == boot)
            .map(State::of_this_version);
        Self {
            left: left.as_ref().is_some_and(State::has_forwarded),
            state: left.unwrap_or_else(|| State {
                boot: boot.to_owned(),
                ..State::default()
            }),
            path,
        }
    }

    /// Whether an earlier daemon left services behind that forwarded, rather than only took what its XDP program left.
    pub const fn was_left(&self) -> bool {
        self.left
    }

    /// Whether there are services of ours that take packets of clients, whether or not IPVS knew the connections.
    pub fn has_served(&self) -> bool {
        self.state.has_served()
    }

    /// Whether anything in the kernel is ours or as it was not.
    pub fn is_empty(&self) -> bool {
        let State {
            boot: _,
            services,
            sysctls,
            timeouts,
            sync_daemons,
            sync: _,
            slow: _,
            telling: _,
        } = &self.state;
        services.is_empty() && sysctls.is_empty() && timeouts.is_none() && sync_daemons.is_empty()
    }

    /// Whether a service was programmed by us.
    pub fn has(&self, key: &Key) -> bool {
        self.state.services.contains(&key.to_string())
    }

    /// Notes that these services, and those noted before, are ours. Comes before the kernel is told.
    pub fn claim(&mut self, keys: impl Iterator<Item = Key>) -> io::Result<()> {
        self.change(|state| {
            for key in keys {
                if is_slow(&key) {
                    state.slow.insert(key.to_string());
                }
                state.services.insert(key.to_string());
            }
        })
    }

    /// Notes that this one is not ours any more. Comes after it was removed.
    pub fn forget_service(&mut self, key: &Key) -> io::Result<()> {
        let name = key.to_string();
        self.change(|state| {
            state.services.remove(&name);
            state.slow.remove(&name);
        })
    }

    /// Notes that only these are ours. Comes after the others were removed.
    pub fn keep(&mut self, keys: impl Iterator<Item = Key>) -> io::Result<()> {
        self.change(|state| {
            state.services = keys.map(|key| key.to_string()).collect();
            state.slow.retain(|key| state.services.contains(key));
        })
    }

    /// Notes whether IPVS does not know yet the connections of what forwarded before.
    pub fn set_telling(&mut self, telling: bool) -> io::Result<()> {
        self.change(|state| state.telling = telling)
    }

    /// Notes how a sysctl was before us, unless that is known.
    pub fn remember(&mut self, name: &str, value: &str) -> io::Result<()> {
        self.change(|state| {
            let entry = state.sysctls.entry(name.to_owned());
            entry.or_insert_with(|| value.to_owned());
        })
    }

    /// Names of the sysctls that are as they were not.
    pub fn remembered(&self) -> impl Iterator<Item = &String> {
        self.state.sysctls.keys()
    }

    /// How a sysctl was before us, if that is noted.
    pub fn before(&self, name: &str) -> Option<String> {
        self.state.sysctls.get(name).cloned()
    }

    /// Forgets how a sysctl was before us. Comes after it was put back.
    pub fn forget(&mut self, name: &str) -> io::Result<()> {
        self.change(|state| drop(state.sysctls.remove(name)))
    }

    /// Notes the time-outs before us, unless they are known.
    pub fn remember_timeouts(&mut self, timeouts: [u32; 3]) -> io::Result<()> {
        self.change(|state| {
            state.timeouts.get_or_insert(timeouts);
        })
    }

    /// The time-outs before us, if they were changed.
    pub const fn timeouts(&self) -> Option<[u32; 3]> {
        self.state.timeouts
    }

    /// Which of the kernel's sync daemons are ours, if they run.
    pub const fn sync_daemons(&self) -> &BTreeSet<SyncState> {
        &self.state.sync_daemons
    }

    /// Notes that this one is ours as well. Comes before it is started.
    pub fn claim_sync(&mut self, which: SyncState) -> io::Result<()> {
        self.change(|state| {
            state.sync_daemons.insert(which);
        })
    }

    /// Notes that no other one is ours than this. Comes after the others were stopped.
    pub fn keep_sync(&mut self, which: Option<SyncState>) -> io::Result<()> {
        self.change(|state| state.sync_daemons.retain(|ours| Some(*ours) == which))
    }

    /// Notes that this one is not ours any more. Comes after it was stopped.
    pub fn forget_sync(&mut self, which: SyncState) -> io::Result<()> {
        self.change(|state| {
            state.sync_daemons.remove(&which);
        })
    }

    /// Removes the file: nothing of ours is in the kernel. But it says on which sync daemons could not be stopped.
    pub fn remove(&mut self) -> io::Result<()> {
        if !self.state.sync_daemons.is_empty() {
            return self.change(|state| {
                *state = State {
                    boot: std::mem::take(&mut state.boot),
                    sync_daemons: std::mem::take(&mut state.sync_daemons),
                    ..State::default()
                };
            });
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => {
                self.state = State {
                    boot: std::mem::take(&mut self.state.boot),
                    ..State::default()
                };
                Ok(())
            }
        }
    }

    /// Writes the file if it changes; as a whole or not at all.
    fn change(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state.clone();
        change(&mut state);
        if state == self.state {
            return Ok(());
        }
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        fs::write(&new, serde_json::to_vec(&state)?)?;
        fs::rename(&new, &self.path)?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn key(port: u16) -> Key {
        Key::Address(6, IpAddr::from([10, 1, 15, 50]), port)
    }

    #[test]
    fn the_next_daemon_knows_what_the_last_one_did() {
        let folder = std::env::temp_dir().join(format!("lbd-state-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("lbd.sock");
        let mut first = StateFile::open(&socket);
        assert!(!first.was_left());
        first.claim([key(80), key(81)].into_iter()).unwrap();
        first.keep([key(80)].into_iter()).unwrap();
        first.remember("sloppy_tcp", "0").unwrap();
        first.remember("sloppy_tcp", "1").unwrap();
        drop(first);

        let mut second = StateFile::open(&socket);
        assert!(second.was_left());
        assert_eq!((second.has(&key(80)), second.has(&key(81))), (true, false));
        assert_eq!(second.before("sloppy_tcp").as_deref(), Some("0"));
        second.forget("sloppy_tcp").unwrap();
        assert_eq!(second.before("sloppy_tcp"), None);
        assert!(!second.is_empty());
        // Until IPVS knows the connections of what forwarded before, it has not.
        assert!(StateFile::open(&socket).was_left());
        second.set_telling(true).unwrap();
        let told = StateFile::open(&socket);
        assert_eq!((told.was_left(), told.has_served()), (false, true));
        second.set_telling(false).unwrap();
        assert!(StateFile::open(&socket).was_left());
        second.forget_service(&key(80)).unwrap();
        assert!(!second.has(&key(80)));
        second.keep([].into_iter()).unwrap();
        assert!(second.is_empty());
        second.remember_timeouts([900, 120, 300]).unwrap();
        assert!(!second.is_empty());
        second.claim([key(80)].into_iter()).unwrap();

        // What took only what XDP left has not forwarded.
        let mark = Key::Mark {
            mark: lb_common::slow::MARK | 1,
            v6: false,
        };
        second.claim([mark].into_iter()).unwrap();
        assert!(StateFile::open(&socket).was_left());
        second.keep([mark].into_iter()).unwrap();
        let third = StateFile::open(&socket);
        assert_eq!((third.was_left(), third.is_empty()), (false, false));
        assert!(third.has(&mark));
        second.claim([key(80)].into_iter()).unwrap();

        let text = fs::read_to_string(&second.path).unwrap();
        let other_boot = text.replace("\"boot\":\"", "\"boot\":\"other");
        fs::write(&second.path, other_boot).unwrap();
        assert!(!StateFile::open(&socket).was_left());
        fs::write(&second.path, "nonsense").unwrap();
        assert!(!StateFile::open(&socket).was_left());
        second.remove().unwrap();
        second.remove().unwrap();
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn whose_each_sync_daemon_is() {
        use SyncState::{Backup, Master};
        let folder = std::env::temp_dir().join(format!("lbd-sync-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("lbd.sock");
        let ours = || -> Vec<SyncState> {
            let file = StateFile::open(&socket);
            assert_eq!(file.is_empty(), file.sync_daemons().is_empty());
            file.sync_daemons().iter().copied().collect()
        };
        let mut file = StateFile::open(&socket);
        assert_eq!(ours(), []);
        file.claim_sync(Backup).unwrap();
        assert_eq!(ours(), [Backup]);
        file.claim_sync(Master).unwrap();
        assert_eq!(ours(), [Master, Backup]);
        file.forget_sync(Backup).unwrap();
        file.forget_sync(Backup).unwrap();
        assert_eq!(ours(), [Master]);
        file.claim_sync(Backup).unwrap();
        file.keep_sync(Some(Backup)).unwrap();
        assert_eq!(ours(), [Backup]);

        // One that runs on stays ours when all else is gone.
        file.claim([key(80)].into_iter()).unwrap();
        file.remove().unwrap();
        assert_eq!(ours(), [Backup]);
        assert!(!StateFile::open(&socket).has(&key(80)));
        file.keep_sync(None).unwrap();
        assert_eq!(ours(), []);

        // What earlier versions wrote.
        let boot = fs::read_to_string(BOOT).unwrap();
        for (said, expected) in [("true", &[Master, Backup][..]), ("false", &[])] {
            let text = format!("{{\"boot\":\"{}\",\"sync\":{said}}}", boot.trim());
            fs::write(&file.path, text).unwrap();
            assert_eq!(ours(), expected);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
