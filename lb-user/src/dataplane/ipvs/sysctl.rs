//! The kernel's settings of IPVS in our network namespace (Documentation/networking/ipvs-sysctl.rst):
//! which ones must be how, and making them so. Each is put back when it is not needed any more.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use super::state::StateFile;

/// Where they are; the kernel shows those of the network namespace of the one who asks.
const FOLDER: &str = "/proc/sys/net/ipv4/vs";
/// Where those of IPv4 are.
const IPV4: &str = "/proc/sys/net/ipv4";
/// From this kernel on, reuse of a client's port costs no delay (commit f0a5e4d7a594).
const GOOD_REUSE: (u32, u32) = (5, 9);

/// What the settings depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// There are services of ours.
    pub services: bool,
    /// A service with persistence has a real server that cannot be found on the network.
    pub lost_persistent: bool,
    /// Connections may come that were made while somebody else forwarded them.
    pub takes_over: bool,
    /// The kernel is being told of such connections.
    pub learning: bool,
    /// The kernel's sync daemon learns connections of another director here.
    pub backup: bool,
    /// Real servers are being put into another order.
    pub reorders: bool,
    /// Packets come that the XDP program leaves, of connections that are its.
    pub slow_path: bool,
    /// Kernel version.
    pub kernel: (u32, u32),
}

/// Names and values of everything that matters, given the needs; `None` where the administrator's
/// value stands.
pub fn wanted(needs: Needs) -> [(&'static str, Option<&'static str>); 6] {
    [
        // Connections of a real server that is down or removed go elsewhere with their next packet
        // rather than vanish. Not while one is taken out for a moment.
        (
            "expire_nodest_conn",
            needs
                .services
                .then_some(if needs.reorders { "0" } else { "1" }),
        ),
        // Clients that stick to a real server that cannot be found get another one. Those that an
        // operator drained share that fate meanwhile.
        (
            "expire_quiescent_template",
            needs.lost_persistent.then_some("1"),
        ),
        // Older kernels let a client that uses its port again wait for a second.
        (
            "conn_reuse_mode",
            (needs.services && needs.kernel < GOOD_REUSE).then_some("0"),
        ),
        // Segments of connections that are not known are scheduled as SYNs are; not while it is just being
        // told which real servers they belong to.
        (
            "sloppy_tcp",
            match (needs.learning, needs.takes_over || needs.slow_path) {
                (true, _) => Some("0"),
                (false, true) => Some("1"),
                (false, false) => None,
            },
        ),
        // The same of SCTP.
        ("sloppy_sctp", needs.slow_path.then_some("1")),
        // What the other director sends here because we are a real server too is not sent back.
        ("backup_only", needs.backup.then_some("1")),
    ]
}

/// Sets what is needed, after noting how it was, and puts back the rest. Returns what was changed.
pub fn apply(needs: Needs, state: &mut StateFile) -> io::Result<Vec<String>> {
    let mut changes = Vec::new();
    for (name, value) in wanted(needs) {
        let path = PathBuf::from(FOLDER).join(name);
        let now = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            // Older kernels lack some.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let target = match value {
            Some(value) => {
                if now != value {
                    state.remember(name, &now)?;
                }
                Some(value.to_owned())
            }
            None => state.before(name),
        };
        if let Some(target) = target
            && target != now
        {
            fs::write(&path, &target)?;
            changes.push(format!("{name} {now} -> {target}"));
        }
        // Whoever dies in between leaves a note too many rather than one too few.
        if value.is_none() {
            state.forget(name)?;
        }
    }
    Ok(changes)
}

/// The start and the end of the names under which settings of interfaces are remembered.
const INTERFACE: [&str; 2] = ["conf/", "/accept_local"];

/// Lets answers of health checks in on these interfaces and on no others: they come from a VIP, which may
/// be this host's own, and are martians to the kernel otherwise (IPv4 only; accept_local in
/// Documentation/networking/ip-sysctl.rst). Returns what was changed.
pub fn accept_own(interfaces: &[String], state: &mut StateFile) -> io::Result<Vec<String>> {
    let [begin, end] = INTERFACE;
    let name = |interface: &String| format!("{begin}{interface}{end}");
    let wanted: BTreeSet<String> = interfaces.iter().map(name).collect();
    let is_ours = |name: &String| name.starts_with(begin) && name.ends_with(end);
    let changed: Vec<String> = state.remembered().filter(|n| is_ours(n)).cloned().collect();
    let mut changes = Vec::new();
    let mut set = |name: &str, value: &str| -> io::Result<()> {
        let path = PathBuf::from(IPV4).join(name);
        match fs::write(&path, value) {
            // The interface is gone, and its settings with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }?;
        changes.push(format!("{name} -> {value}"));
        Ok(())
    };
    for name in changed.iter().filter(|name| !wanted.contains(*name)) {
        if let Some(before) = state.before(name) {
            set(name, &before)?;
        }
        state.forget(name)?;
    }
    for name in &wanted {
        let now = fs::read_to_string(PathBuf::from(IPV4).join(name)).unwrap_or_default();
        if now.trim() == "0" {
            state.remember(name, "0")?;
            set(name, "1")?;
        }
    }
    Ok(changes)
}

/// The running kernel's version, as in "6.1.0-56-cloud-amd64"; 0.0 if it says anything else.
pub fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    version(&name.release().to_string_lossy())
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), (6, 1));
        assert_eq!(version("5.15.167.4-microsoft"), (5, 15));
        assert_eq!(version("odd"), (0, 0));
    }

    #[test]
    fn nothing_is_touched_without_need() {
        let idle = Needs {
            kernel: (4, 19),
            ..Needs::default()
        };
        assert!(wanted(idle).iter().all(|(_, value)| value.is_none()));
        let busy = wanted(Needs {
            services: true,
            ..idle
        });
        let set = |name: &str| busy.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(set("expire_nodest_conn"), Some("1"));
        assert_eq!(set("conn_reuse_mode"), Some("0"));
        assert_eq!(set("sloppy_tcp"), None);
    }

    #[test]
    fn strangers_wait_until_the_kernel_was_told_of_them() {
        let sloppy = |learning, takes_over| {
            let needs = Needs {
                learning,
                takes_over,
                ..Needs::default()
            };
            let with_slow_path = Needs {
                slow_path: true,
                ..needs
            };
            let same = wanted(needs) == wanted(with_slow_path);
            assert!(!same, "a slow path needs more than {needs:?}");
            let all = wanted(needs);
            all.iter()
                .find(|(name, _)| *name == "sloppy_tcp")
                .unwrap()
                .1
        };
        assert_eq!(sloppy(true, true), Some("0"));
        assert_eq!(sloppy(false, true), Some("1"));
        assert_eq!(sloppy(true, false), Some("0"));
    }
}
