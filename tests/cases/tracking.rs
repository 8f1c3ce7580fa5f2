//! A pair that watches more than its own interface: a script with a weight, another interface whose
//! loss is a fault.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use lab::{
    Guide,
    guide::{self, Settings},
    wait,
};
use lb_user::model::VrrpState;

/// node1 watches a script that fails while a file exists, and the cable to the client beside the
/// switch.
fn watching(guide: &mut Guide) -> PathBuf {
    let director = &guide.node1.node;
    guide
        .lab
        .second_network(director, [172, 20, 0, 43], &guide.client, [172, 20, 0, 1])
        .unwrap();
    let flag = guide.lab.directory().join("unfit");
    let script = guide.lab.directory().join("check.sh");
    let text = format!(
        "#!/bin/sh\n[ -e {} ] || exit 0\necho the flag is there >&2\nexit 7\n",
        flag.display()
    );
    fs::write(&script, text).unwrap();
    for path in [&script, guide.lab.directory()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let base = guide::config(&Settings::of(100));
    let (instance, services) = base.split_once("\n[[service]]").unwrap();
    let config = format!(
        "{instance}
[[vrrp.track]]
script = \"chk\"
weight = -5
[[vrrp.track]]
interface = \"eth1\"
[[track_script]]
name = \"chk\"
command = \"{}\"
interval = \"200ms\"
fall = 2
[[service]]{services}",
        script.display()
    );
    guide.node1.configure(&config).unwrap();
    flag
}

#[test]
fn a_script_moves_the_priority_and_an_interface_is_a_fault() {
    let mut guide = Guide::prepare().unwrap();
    let flag = watching(&mut guide);
    guide.start_directors().unwrap();
    let (node1, node2) = (&guide.node1, &guide.node2);

    // 100 - 5 is below node2's 98.
    fs::write(&flag, "").unwrap();
    node2.wait_for("VI_1", VrrpState::Master).unwrap();
    node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    let status = node1.status().unwrap();
    assert_eq!(status.instances[0].priority, 95);
    let problem = "VI_1: script chk is down (priority -5): exit status: 7: the flag is there";
    assert!(
        status.problems.iter().any(|p| p == problem),
        "{:?}",
        status.problems
    );
    let shown = node1.ctl(&["vrrp"]).unwrap();
    assert!(
        shown.contains("script chk (weight -5): down for ")
            && shown.contains("priority -5: exit status: 7: the flag is there"),
        "{shown}"
    );
    assert!(
        shown.contains("interface eth1 (weight 0): up for "),
        "{shown}"
    );
    fs::remove_file(&flag).unwrap();
    node1.wait_for("VI_1", VrrpState::Master).unwrap();
    node2.wait_for("VI_1", VrrpState::Backup).unwrap();

    // A fault says priority 0: node2 need not wait for three intervals.
    guide.client.ip(&["link", "set", "eth1", "down"]).unwrap();
    let within = Duration::from_secs(2);
    wait::until_true("node2 follows a fault", within, || {
        Ok(node2.state("VI_1")? == VrrpState::Master)
    })
    .unwrap();
    node1.wait_for("VI_1", VrrpState::Fault).unwrap();
    let reason = node1.status().unwrap().instances[0].reason.clone();
    assert_eq!(reason, "something that it watches is down");
    guide.client.ip(&["link", "set", "eth1", "up"]).unwrap();
    node1.wait_for("VI_1", VrrpState::Master).unwrap();
    node2.wait_for("VI_1", VrrpState::Backup).unwrap();
}

/// A director that is unfit from the start never speaks, and a script that hangs is one that fails.
#[test]
fn unfit_from_the_start() {
    let mut guide = Guide::prepare().unwrap();
    watching(&mut guide);
    let text = fs::read_to_string(&guide.node1.config).unwrap();
    let text = text.replacen("weight = -5", "weight = 0", 1);
    let text = text.replacen("fall = 2", "initial = \"down\"\nrise = 3", 1);
    let text = text.replacen(
        "command = \"",
        "timeout = \"100ms\"\ncommand = \"/bin/sleep 10 ",
        1,
    );
    fs::write(&guide.node1.config, text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node2.start(&guide.lab).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    let status = guide.node1.status().unwrap();
    assert_eq!(status.instances[0].state, VrrpState::Fault);
    assert_eq!(status.instances[0].sent, 0, "not even priority 0");
    // A reload that stops watching makes it fit.
    guide
        .node1
        .configure(&guide::config(&Settings::of(100)))
        .unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
}

/// Each script may have an account of its own, which must exist.
#[test]
fn a_script_runs_as_its_own_user() {
    let mut guide = Guide::prepare().unwrap();
    let seen = guide.lab.directory().join("who");
    fs::write(&seen, "").unwrap();
    for (path, mode) in [(guide.lab.directory(), 0o755), (&seen, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let base = guide::config(&Settings::of(100));
    let configure = |guide: &Guide, user: &str| {
        let command = format!("/bin/sh -c 'id -un > {}'", seen.display());
        let table = format!("[[track_script]]\nname = \"who\"\ncommand = \"{command}\"\n{user}");
        guide.node1.configure(&format!("{table}\n{base}")).unwrap();
    };
    let is = |wanted: &str| {
        wait::until_true(wanted, Duration::from_secs(5), || {
            Ok(fs::read_to_string(&seen)?.trim() == wanted)
        })
        .unwrap();
    };
    configure(&guide, "user = \"daemon\"");
    guide.node1.start(&guide.lab).unwrap();
    is("daemon");
    configure(&guide, "");
    guide.node1.ctl(&["reload"]).unwrap();
    is("nobody");
    configure(&guide, "user = \"no-such-user\"");
    let output = guide.node1.lbctl(&["reload"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("there is no account `no-such-user`"),
        "{said}"
    );
    is("nobody");
}
