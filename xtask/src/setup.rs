//! What a fresh machine lacks.

use std::path::Path;

use anyhow::Result;

use crate::{apt, ebpf, run};

/// Programs of the laboratory, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 15] = [
    ("nginx", "nginx"),
    ("tcpdump", "tcpdump"),
    ("keepalived", "keepalived"),
    // FRR, whose daemons lie elsewhere.
    ("vtysh", "frr"),
    ("ethtool", "ethtool"),
    ("curl", "curl"),
    ("socat", "socat"),
    ("dnsmasq", "dnsmasq-base"),
    ("aiosmtpd", "python3-aiosmtpd"),
    ("openssl", "openssl"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("gcc", "gcc"),
    ("git", "git"),
];

/// What is no program: where it lies, and the Debian packages that have it.
const LIBRARIES: [(&str, &str); 1] = [
    // Prometheus's own parser, which reads the metrics in a test.
    (
        "/usr/lib/python3/dist-packages/prometheus_client",
        "python3-prometheus-client",
    ),
];

/// Everything that `demo` and `test` need.
pub fn everything() -> Result<()> {
    laboratory()?;
    ebpf::toolchain().map(|_| ())
}

/// Programs that the tests run.
fn laboratory() -> Result<()> {
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| run::find_program(program).is_none())
        .map(|(_, package)| (*package).to_owned())
        .collect();
    let libraries = LIBRARIES
        .iter()
        .filter(|(path, _)| !Path::new(path).exists());
    missing.extend(libraries.map(|(_, package)| (*package).to_owned()));
    missing.dedup();
    if missing.is_empty() {
        Ok(())
    } else {
        apt::install(&missing)
    }
}

/// Programs that are missing, for a run that goes on without them.
pub fn missing_programs() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .map(|(program, _)| *program)
        .filter(|p| run::find_program(p).is_none())
        .collect()
}
