//! What the states of a pool are in the kernel's table, as ipvsadm shows it: slow start, inhibition, draining.

use std::time::Duration;

use lab::{
    Guide,
    guide::{self, Settings},
    wait,
};
use lb_user::model::VrrpState;

use crate::with_modules;

const LONG: Duration = Duration::from_secs(60);

/// Weights of both real servers in the kernel; `None`: it is not there.
fn weights(guide: &Guide) -> anyhow::Result<[Option<u32>; 2]> {
    let text = guide.node1.node.run("ipvsadm", &["-Ln"])?;
    // The service's own, not those of its health checks.
    let service = text.lines().skip_while(|line| !line.starts_with("TCP "));
    let servers: Vec<&str> = service
        .skip(1)
        .take_while(|line| line.starts_with("  ->"))
        .collect();
    Ok(["10.1.15.45:80", "10.1.15.46:80"].map(|address| {
        let line = servers.iter().find(|line| line.contains(address))?;
        line.split_whitespace().nth(3)?.parse().ok()
    }))
}

fn wait_for(guide: &Guide, what: &str, expected: [Option<u32>; 2]) {
    let mut seen = [None; 2];
    let same = wait::until_true(what, LONG, || {
        seen = weights(guide)?;
        Ok(seen == expected)
    });
    assert!(same.is_ok(), "{what}: {seen:?} instead of {expected:?}");
}

#[test]
fn the_programmed_weights() {
    let _modules = with_modules();
    let mut guide = Guide::prepare().unwrap();
    for server in [&guide.rs1, &guide.rs2] {
        server.publish("health", b"well\n").unwrap();
    }
    let settings = Settings {
        weights: [4, 6],
        ..Settings::of(100)
    };
    let text = guide::config(&settings)
        .replacen("path = \"/\"", "path = \"/health\"", 1)
        .replacen(
            "sorry_server",
            "slow_start = \"30s\"\ninhibit_on_failure = true\nsorry_server",
            1,
        )
        .replacen("weight = 4", "weight = 4\ninhibit_on_failure = false", 1);
    let text = format!("[dataplane]\nmode = \"ipvs\"\n{text}");
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    let full = [Some(4), Some(6)];
    wait_for(&guide, "both have their weights", full);

    let steer = |word: &str| guide.node1.ctl(&["backend", word, "10.1.15.45"]).unwrap();
    steer("drain");
    wait_for(&guide, "a drained one has none", [Some(0), Some(6)]);
    steer("enable");
    wait_for(&guide, "it has its own again", full);

    guide.rs2.withdraw("health").unwrap();
    wait_for(&guide, "an inhibited one stays", [Some(4), Some(0)]);
    guide.rs2.publish("health", b"well\n").unwrap();
    // 4 stands for forty tenths, and of sixty tenths there are six more at each step.
    let mut steps: Vec<u32> = Vec::new();
    wait::until_true("the weight grows", LONG, || {
        let [Some(one), Some(two)] = weights(&guide)? else {
            return Ok(false);
        };
        if two > 0 {
            assert_eq!(two * 40 % (one * 6), 0, "{two} of {one}");
            let step = two * 40 / (one * 6);
            if steps.last() != Some(&step) {
                steps.push(step);
            }
        }
        Ok(steps.last() == Some(&10))
    })
    .unwrap();
    assert!(steps.len() >= 5 && steps[0] <= 3, "{steps:?}");
    assert!(steps.is_sorted(), "{steps:?}");
    wait_for(&guide, "all of it", full);

    // One that is not inhibited goes.
    guide.rs1.withdraw("health").unwrap();
    wait_for(&guide, "one that is down is gone", [None, Some(6)]);
}
