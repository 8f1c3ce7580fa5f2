//! Settings of interfaces under /proc/sys/net.

use std::{fs, io};

/// Version of IP that a setting is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// net.ipv4
    V4,
    /// net.ipv6
    V6,
}

fn path(family: Family, interface: &str, key: &str) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("/proc/sys/net/{family}/conf/{interface}/{key}")
}

/// A setting's number. `None` where the kernel has no such setting.
pub fn read(family: Family, interface: &str, key: &str) -> Option<i32> {
    let text = fs::read_to_string(path(family, interface, key)).ok()?;
    text.trim().parse().ok()
}

/// Changes a setting. A host without the version of IP has nothing to change.
pub fn write(family: Family, interface: &str, key: &str, value: i32) -> io::Result<()> {
    match fs::write(path(family, interface, key), value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
