//! Processes as /proc shows them: those of our process namespace and of all below it, so the
//! processes of this host's containers too. Zombies are not there any more.

use std::fs;

/// What is known of one process.
pub struct Process {
    /// The kernel's name for it.
    pub name: Vec<u8>,
    /// Its words, each ended by a NUL.
    pub command_line: Vec<u8>,
}

/// One process; `None` when it has ended.
pub fn read(pid: u32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // "1234 (name) S ..."; a name may hold parentheses and blanks itself.
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let name = stat.get(open + 1..close)?.to_vec();
    if matches!(stat.get(close + 2)?, b'Z' | b'X') {
        return None;
    }
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process { name, command_line })
}

/// The ids of all processes.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
