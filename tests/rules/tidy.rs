//! Architecture and style, as docs/architecture.md promises them.

use crate::source::{code, files, root};

/// Files that hold logic only: time and randomness come in, effects go out.
const PURE: &[&str] = &[
    "lb-user/src/model/",
    "lb-user/src/config/",
    "lb-user/src/schedule/",
    "lb-user/src/vrrp/packet",
    "lb-user/src/vrrp/replay.rs",
    "lb-user/src/vrrp/oddities.rs",
    "lb-user/src/events.rs",
    "lb-user/src/vrrp/fsm.rs",
    "lb-user/src/vrrp/pace.rs",
    "lb-user/src/health/state.rs",
    "lb-user/src/health/paths.rs",
    "lb-user/src/health/board.rs",
    "lb-user/src/health/lateness.rs",
    "lb-user/src/health/memory.rs",
    "lb-user/src/health/plan.rs",
    "lb-user/src/health/pool",
    "lb-user/src/health/words.rs",
    "lb-user/src/track/state.rs",
    "lb-user/src/track/process.rs",
    "lb-user/src/track/proc_event.rs",
    "lb-user/src/track/file.rs",
    "lb-user/src/track/damping.rs",
    "lb-user/src/net/ndisc.rs",
    "lb-user/src/net/announcing.rs",
    "lb-user/src/net/nft.rs",
    "lb-user/src/dataplane/plan.rs",
    "lb-user/src/dataplane/rate.rs",
    "lb-user/src/dataplane/carried.rs",
    "lb-user/src/dataplane/silence.rs",
    "lb-user/src/dataplane/genetlink",
    "lb-user/src/dataplane/switching/pace.rs",
    "lb-user/src/dataplane/ipvs/codec",
    "lb-user/src/dataplane/ipvs/desired.rs",
    "lb-user/src/dataplane/ipvs/probes.rs",
    "lb-user/src/dataplane/ipvs/reconcile.rs",
    "lb-user/src/dataplane/ipvs/sync.rs",
    "lb-user/src/dataplane/ipvs/slow.rs",
    "lb-user/src/dataplane/ipvs/unanswered.rs",
    "lb-user/src/dataplane/xdp/ids.rs",
    "lb-user/src/dataplane/xdp/image",
    "lb-user/src/dataplane/xdp/placement.rs",
    "lb-user/src/dataplane/xdp/refusals.rs",
    "lb-user/src/net/arp.rs",
    "lb-user/src/net/interfaces.rs",
    "lb-user/src/api/proto",
    "lb-user/src/api/metrics",
    "lb-user/src/api/page.rs",
    "lb-user/src/daemon/roles.rs",
    "lb-user/src/daemon/succession.rs",
    "lb-user/src/daemon/unsent.rs",
    "lb-user/src/notify/event.rs",
    "lb-user/src/notify/groups.rs",
];

/// What such a file never touches.
const IMPURE: [&str; 14] = [
    "tokio",
    "aya::",
    "aya_obj",
    "socket2",
    "rustix",
    "libc::",
    "nix::",
    "std::fs",
    "std::io",
    "std::process",
    "Instant::now",
    "SystemTime",
    "tracing",
    "unsafe",
];

#[test]
fn pure_files_stay_pure() {
    for prefix in PURE {
        let of_prefix = |(name, _): &(String, String)| name.starts_with(prefix);
        let list: Vec<_> = files("lb-user/src", ".rs")
            .into_iter()
            .filter(of_prefix)
            .collect();
        assert!(!list.is_empty(), "{prefix} is gone; change the list");
        for (name, text) in list {
            for word in IMPURE {
                assert!(
                    !code(&text).contains(word),
                    "{name} is pure and must not use `{word}`"
                );
            }
        }
    }
}

/// Folder, and what its code must not name.
#[test]
fn subsystems_meet_in_the_daemon_only() {
    let rows: [(&str, &[&str]); 9] = [
        (
            "lb-user/src/track/",
            &[
                "crate::vrrp",
                "crate::health",
                "crate::dataplane",
                "crate::daemon",
                "crate::api",
                "crate::net",
                "crate::notify",
            ],
        ),
        (
            "lb-user/src/vrrp/",
            &[
                "crate::health",
                "crate::dataplane",
                "crate::daemon",
                "crate::api",
                "crate::net",
                "crate::notify",
            ],
        ),
        (
            "lb-user/src/health/",
            &[
                "crate::vrrp",
                "crate::dataplane",
                "crate::daemon",
                "crate::api",
                "crate::net",
                "crate::notify",
            ],
        ),
        (
            "lb-user/src/dataplane/",
            &[
                "crate::vrrp",
                "crate::health",
                "crate::daemon",
                "crate::api",
                "crate::net",
                "crate::notify",
            ],
        ),
        (
            "lb-user/src/net/",
            &[
                "crate::vrrp",
                "crate::health",
                "crate::daemon",
                "crate::api",
                "crate::dataplane",
                "crate::notify",
            ],
        ),
        (
            "lb-user/src/config/",
            &[
                "crate::vrrp",
                "crate::health",
                "crate::daemon",
                "crate::api",
                "crate::dataplane",
                "crate::net",
            ],
        ),
        (
            "lb-user/src/api/",
            &[
                "crate::vrrp",
                "crate::health",
                "crate::daemon",
                "crate::net",
                "crate::notify",
            ],
        ),
        ("lb-user/src/schedule/", &["crate::"]),
        (
            "lb-user/src/bin/lbctl/",
            &[
                "lb_user::config",
                "lb_user::daemon",
                "lb_user::dataplane",
                "lb_user::health",
                "lb_user::model",
                "lb_user::net",
                "lb_user::vrrp",
                "api::server",
            ],
        ),
    ];
    for (folder, forbidden) in rows {
        for (name, text) in files(folder, ".rs") {
            for word in forbidden {
                assert!(!code(&text).contains(word), "{name} must not use `{word}`");
            }
        }
    }
}

#[test]
fn only_the_xdp_data_plane_and_its_benchmarks_know_aya() {
    for (name, text) in files(".", ".rs") {
        let users = [
            "lb-user/src/dataplane/xdp/",
            "lb-ebpf/",
            "tests/bench/",
            "tests/instructions/",
        ];
        let allowed = users.iter().any(|folder| name.starts_with(folder));
        let own_words = name.starts_with("tests/rules/");
        if !allowed && !own_words {
            assert!(!code(&text).contains("aya::"), "{name} must not use aya");
        }
    }
}

/// The wall clock jumps when somebody sets it. Those that name it show it, and wait for nothing.
#[test]
fn only_what_is_shown_has_a_wall_clock() {
    let showing = [
        "lb-user/src/daemon/", // Since when something is so, in status and log.
        "lb-user/src/vrrp/driver/thread.rs", // And the stamps of HMAC.
        "lb-user/src/vrrp/round.rs",
        "lb-user/src/vrrp/runner.rs",
        "lb-user/src/dataplane/ipvs/upkeep.rs", // When it was repaired last.
        "lb-user/src/dataplane/xdp/capture.rs", // Time stamps of packets.
        "lb-user/src/notify/", // The date of a mail, and when something failed last.
        "lb-user/src/bin/lbctl/print.rs",
    ];
    // What begins or measures a wait, beside the wall clock on one line.
    let waits = ["sleep", "timeout", "deadline", "interval", "Instant"];
    for (name, text) in files("lb-user/src", ".rs") {
        for line in code(&text).lines().filter(|l| l.contains("SystemTime")) {
            let allowed = showing.iter().any(|place| name.starts_with(place));
            assert!(
                allowed,
                "{name}: use Instant, or add the file to the list: {line}"
            );
            let is_import = line.trim_start().starts_with("use ") || line.contains("time::{");
            let waits = waits.iter().any(|word| line.contains(word));
            assert!(
                is_import || !waits,
                "{name} waits by the wall clock: {line}"
            );
        }
        assert!(
            !code(&text).contains("CLOCK_REALTIME"),
            "{name} uses the wall clock"
        );
    }
}

/// Joining a group and closing a socket wait for locks of the kernel; the thread that sends adverts must not.
#[test]
fn the_advert_thread_opens_and_closes_nothing() {
    for (name, text) in files("lb-user/src/vrrp/driver", ".rs") {
        for word in [
            "VrrpSocket::open",
            "open_frames",
            ".join(",
            ".leave(",
            "Socket::new",
        ] {
            assert!(
                !code(&text).contains(word),
                "{name} must leave `{word}` to `vrrp::ports`"
            );
        }
    }
}

#[test]
fn only_the_ipvs_data_plane_speaks_its_netlink() {
    for (name, text) in files("lb-user/src", ".rs") {
        let allowed = name.starts_with("lb-user/src/dataplane/ipvs/");
        let asks = allowed || name == "lb-user/src/dataplane/xdp/ways.rs";
        for (word, allowed) in [("NETLINK_GENERIC", asks), ("ip_vs", allowed)] {
            assert!(
                allowed || !code(&text).contains(word),
                "{name} must not use `{word}`"
            );
        }
    }
}

#[test]
fn only_the_entry_names_xdp_actions() {
    for (name, text) in files("lb-ebpf/src", ".rs") {
        if name != "lb-ebpf/src/main.rs" {
            let code = code(&text);
            assert!(
                !code.contains("xdp_action"),
                "{name} must return a reason or a way, not an XDP action"
            );
        }
    }
}

#[test]
fn crates_depend_as_designed() {
    let manifest =
        |name: &str| std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let dependencies = |name: &str| {
        let text = manifest(name);
        text.split("[dependencies]")
            .nth(1)
            .map(|rest| rest.split("\n[").next().unwrap().to_owned())
    };
    assert_eq!(
        dependencies("lb-common"),
        None,
        "lb-common depends on nothing"
    );
    let names =
        |crate_name: &str, word: &str| dependencies(crate_name).is_some_and(|d| d.contains(word));
    for name in ["lb-common", "lb-user", "tests", "xtask"] {
        assert!(!names(name, "lb-ebpf"), "{name} must not depend on lb-ebpf");
        assert!(!names(name, "lb-fuzz"), "{name} must not depend on lb-fuzz");
    }
    for word in ["lb-common", "lb-user", "lb-tests"] {
        assert!(!names("xtask", word), "xtask must not depend on {word}");
    }
}

#[test]
fn the_top_level_is_as_designed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "config",
        "docs",
        "lb-common",
        "lb-ebpf",
        "lb-user",
        "target",
        "tests",
        "xtask",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name} does not belong at the top level"
        );
    }
}

/// Style says 600; tests do not count.
#[test]
fn no_file_is_too_long() {
    for (name, text) in files(".", ".rs") {
        let lines = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        assert!(
            lines <= 600 || name.contains("tests"),
            "{name} has {lines} lines"
        );
    }
}

#[test]
fn files_begin_with_what_they_are() {
    for (name, text) in files(".", ".rs") {
        let test_of_a_file = name.ends_with("/tests.rs");
        assert!(
            text.starts_with("//!") || test_of_a_file,
            "{name} does not say what it is"
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
    ];
    for (name, text) in files(".", ".rs") {
        for word in words {
            assert!(!text.contains(word), "{name} contains `{word}`");
        }
    }
}

/// Operators find every name that a counter has, with its verdict.
#[test]
fn the_documentation_has_every_reason() {
    let text = std::fs::read_to_string(root().join("docs/verdicts.md")).unwrap();
    for reason in lb_common::Reason::ALL {
        let verdict = format!("{:?}", reason.verdict()).to_lowercase();
        let row = format!("| `{}` | {verdict} | ", reason.label());
        assert!(
            text.contains(&row),
            "docs/verdicts.md has no row that begins {row}"
        );
    }
    let rows = text.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, lb_common::Reason::ALL.len());
}
