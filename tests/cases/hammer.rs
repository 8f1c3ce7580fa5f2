//! Ten million SYNs, and two CPUs on one flow table: run by the benchmark's program, which can call the data plane in the
//! kernel a million times a second.

use std::process::Command;

use lab::binaries;

/// Packets on each CPU: five seconds.
const PACKETS: &str = "2000000";

#[test]
fn two_cpus_on_one_flow_table() {
    let bench = binaries::find("lbd-bench").unwrap();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(bench)
        .arg(format!("{root}/target/bpf/lb-bench.o"))
        .args(["--hammer", PACKETS])
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(
        stdout.contains("no torn entry, no flow with two real servers"),
        "{stdout}"
    );
    assert!(
        stdout.contains("no connection of 1,024 broke in a flood of 10000000 SYNs"),
        "{stdout}"
    );
    assert!(stdout.contains("verified instructions"), "{stdout}");
}
