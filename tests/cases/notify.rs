//! Scripts, and the FIFO of notifications, of a sync group whose network breaks and heals; the same lines
//! as keepalived writes.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lab::{Director, Lab, Node, Process, network::INTERFACE, peer, wait};
use lb_user::model::VrrpState::{Backup, Fault, Master};
use nix::sys::signal::Signal;

/// Two instances of one group on the switch, with lines for each instance and for the group.
fn config(runtime: &str, instance: &str, group: &str) -> String {
    let one = |name: &str, vrid: u8| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\n\
             priority = 100\naddresses = [\"10.1.15.{vrid}/16\"]\nsync_group = \"VG_1\"\n{instance}"
        )
    };
    let table = format!("[[sync_group]]\nname = \"VG_1\"\n{group}");
    // The lines of [runtime] come first: its table is open there.
    format!("{runtime}\n{}{}{table}", one("VI_1", 51), one("VI_2", 52))
}

/// A laboratory whose directory the account of scripts may use.
fn lab() -> (Lab, Node) {
    let lab = Lab::new().unwrap();
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    (lab, node)
}

fn script(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.directory().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    let what = format!("{count} lines in {}", path.display());
    wait::until_true(&what, Duration::from_secs(15), || {
        Ok(lines(path).len() >= count)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", lines(path)));
    lines(path)
}

fn both(lbd: &Director, state: lb_user::model::VrrpState) {
    for instance in ["VI_1", "VI_2"] {
        lbd.wait_for(instance, state).unwrap();
    }
}

/// A cable that goes and returns, while both instances are master.
fn break_and_heal(lbd: &Director, node: &Node) {
    both(lbd, Master);
    node.cable(false).unwrap();
    both(lbd, Fault);
    node.cable(true).unwrap();
    both(lbd, Backup);
    both(lbd, Master);
}

/// Events of a state in a row, sorted within it: keepalived's instances have no order among each other,
/// and its group comes first at the start.
fn by_state(lines: &[String]) -> Vec<Vec<String>> {
    let state = |line: &String| line.split(' ').nth(2).unwrap_or_default().to_owned();
    let mut blocks: Vec<Vec<String>> = lines
        .chunk_by(|a, b| state(a) == state(b))
        .map(<[String]>::to_vec)
        .collect();
    for block in &mut blocks {
        block.sort();
    }
    blocks
}

#[test]
fn the_fifo_has_keepaliveds_lines_in_order() {
    let (lab, node) = lab();
    let fifo = lab.directory().join("events");
    let runtime = format!("notify_fifo = \"{}\"", fifo.display());
    let mut lbd = Director::new(&lab, &node, &config(&runtime, "", "")).unwrap();
    lbd.start(&lab).unwrap();
    both(&lbd, Master);
    let metadata = fs::symlink_metadata(&fifo).unwrap();
    assert!(metadata.file_type().is_fifo());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // Whoever comes late misses nothing.
    let cat = Process::start(
        &lab,
        &node,
        "reader",
        "/bin/cat".as_ref(),
        &[&fifo.display().to_string()],
    )
    .unwrap();
    break_and_heal(&lbd, &node);
    lbd.stop().unwrap();
    let mut cat = cat;
    assert!(
        cat.wait(Duration::from_secs(5)).unwrap().success(),
        "it sees the end"
    );
    assert!(!fifo.exists(), "what lbd made is removed");
    let ours: Vec<String> = cat.log().lines().map(str::to_owned).collect();
    let states = ["BACKUP", "MASTER", "FAULT", "BACKUP", "MASTER", "STOP"];
    for (block, state) in ours.chunks(3).zip(states) {
        let mut instances = block[..2].to_vec();
        instances.sort();
        assert_eq!(
            instances,
            [1, 2].map(|n| format!("INSTANCE \"VI_{n}\" {state} 100")),
            "{ours:?}"
        );
        assert_eq!(block[2], format!("GROUP \"VG_1\" {state} 0"), "{ours:?}");
    }
    assert_eq!(ours.len(), 3 * states.len());

    // The same from keepalived.
    let theirs_fifo = lab.directory().join("theirs");
    let reader = script(
        &lab,
        "read.sh",
        &format!("exec cat \"$1\" > {}/theirs.log", lab.directory().display()),
    );
    let global = format!(
        "  script_user root\n  notify_fifo {}\n  notify_fifo_script {reader}",
        theirs_fifo.display()
    );
    let instance = |name: &str, vrid: u8| {
        format!(
            "vrrp_instance {name} {{\n  state BACKUP\n  interface {INTERFACE}\n  virtual_router_id {vrid}\n  \
             priority 100\n  advert_int 1\n  virtual_ipaddress {{\n    10.1.15.{vrid}/16\n  }}\n}}\n"
        )
    };
    let text = format!(
        "vrrp_sync_group VG_1 {{\n  group {{\n    VI_1\n    VI_2\n  }}\n}}\n{}{}",
        instance("VI_1", 51),
        instance("VI_2", 52)
    );
    let keepalived = peer::keepalived(&lab, &node, &global, &text).unwrap();
    let log = lab.directory().join("theirs.log");
    wait_for_lines(&log, 6);
    node.cable(false).unwrap();
    wait_for_lines(&log, 9);
    node.cable(true).unwrap();
    wait_for_lines(&log, 15);
    keepalived.stop().unwrap();
    let theirs = lines(&log);
    // Its reader is ended before it has read of the end.
    let (ours, theirs) = (by_state(&ours), by_state(&theirs));
    assert_eq!(ours[..5], theirs[..5]);
}

#[test]
fn a_reader_of_its_own_is_kept_running_and_a_missing_one_stops_nobody() {
    let (lab, node) = lab();
    let fifo = lab.directory().join("events");
    let log = lab.directory().join("read");
    let reader = script(
        &lab,
        "reader.sh",
        &format!(
            "echo $$ > {0}.pid\nwhile read -r line; do echo \"$line\" >> {0}; done < \"$2\"\necho end >> {0}",
            log.display()
        ),
    );
    let fifo_line = format!("notify_fifo = \"{}\"\n", fifo.display());
    let runtime = format!("{fifo_line}notify_fifo_script = \"{reader} argument\"");
    let mut lbd = Director::new(&lab, &node, &config(&runtime, "", "")).unwrap();
    lbd.start(&lab).unwrap();
    both(&lbd, Master);
    wait_for_lines(&log, 6);
    let shown = || lbd.status().unwrap().fifo.unwrap().reader.unwrap();
    let first = shown();
    let pid: i32 = lines(&log.with_extension("pid"))[0].parse().unwrap();
    assert_eq!((first.pid, first.starts), (Some(pid.unsigned_abs()), 1));
    assert_eq!(
        first.command,
        format!("{reader} argument {}", fifo.display()),
        "the path is the last argument"
    );
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait::until_true("it runs again", Duration::from_secs(5), || {
        let reader = shown();
        Ok(reader.starts == 2 && reader.pid.is_some() && reader.last_end.is_some())
    })
    .unwrap();
    node.cable(false).unwrap();
    both(&lbd, Fault);
    assert!(wait_for_lines(&log, 9)[8].contains("FAULT"));
    let text = lbd.ctl(&["status"]).unwrap();
    assert!(
        text.contains("9 lines written, 0 wait, 0 dropped"),
        "{text}"
    );
    let second = shown().pid.unwrap();
    lbd.stop().unwrap();
    let all = wait_for_lines(&log, 13);
    assert_eq!(all[11..], ["GROUP \"VG_1\" STOP 0", "end"], "{all:?}");
    assert!(!Path::new(&format!("/proc/{second}")).exists());
    assert!(!fifo.exists());

    // A path that something else has is refused before anything is changed.
    fs::write(&fifo, "precious").unwrap();
    lbd.launch(&lab).unwrap();
    let status = lbd
        .process()
        .unwrap()
        .wait(Duration::from_secs(10))
        .unwrap();
    assert!(!status.success());
    assert!(lbd.log().contains("exists and is no FIFO"), "{}", lbd.log());
    assert!(!lbd.node.has_xdp().unwrap());
}

/// An entry of the log of scripts: when, and what.
fn entries(log: &Path) -> Vec<(f64, String)> {
    let entry = |line: String| {
        let (at, what) = line.split_once(' ').unwrap();
        (at.parse().unwrap(), what.to_owned())
    };
    lines(log).into_iter().map(entry).collect()
}

#[test]
fn scripts_keep_their_order_and_are_killed_with_their_group() {
    let (lab, node) = lab();
    let log = lab.directory().join("scripts");
    let sleeper = lab.directory().join("sleeper");
    let path = log.display();
    // One of MASTER takes longer than everything that follows.
    let slow = script(
        &lab,
        "slow.sh",
        &format!("sleep 3; echo \"$(date +%s.%N) slow\" >> {path}"),
    );
    let any = script(
        &lab,
        "any.sh",
        &format!("echo \"$(date +%s.%N) $*\" >> {path}"),
    );
    let hang = script(
        &lab,
        "hang.sh",
        &format!("sleep 1000 & echo $! > {}; wait", sleeper.display()),
    );
    let fail = script(&lab, "fail.sh", "echo no space >&2; exit 5");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
    let instance = format!("notify_master = \"{slow}\"\nnotify = \"{any}\"\n");
    let group = format!(
        "notify_master = \"{fail}\"\nnotify_fault = \"{hang}\"\nnotify = \"{any}\"\nnotify_timeout = \"1s\"\n"
    );
    let mut lbd = Director::new(&lab, &node, &config("", &instance, &group)).unwrap();
    lbd.start(&lab).unwrap();
    both(&lbd, Master);
    let began = Instant::now();
    node.cable(false).unwrap();
    both(&lbd, Fault);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "nobody waits for scripts"
    );
    wait::until_true("the scripts have run", Duration::from_secs(15), || {
        Ok(entries(&log)
            .iter()
            .any(|(_, what)| what == "GROUP VG_1 FAULT 0"))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", entries(&log)));
    let seen = entries(&log);
    for name in ["VI_1", "VI_2"] {
        let of_instance: Vec<&str> = seen
            .iter()
            .map(|(_, what)| what.as_str())
            .filter(|what| what.contains(name))
            .collect();
        let expected =
            ["BACKUP", "MASTER", "FAULT"].map(|state| format!("INSTANCE {name} {state} 100"));
        assert_eq!(of_instance, expected, "{seen:?}");
    }
    // Those of the group come after those of both instances, the slow ones included.
    let all: Vec<&str> = seen.iter().map(|(_, what)| what.as_str()).collect();
    let place = |what: &str| all.iter().position(|other| *other == what).unwrap();
    for state in ["BACKUP", "MASTER", "FAULT"] {
        let group = place(&format!("GROUP VG_1 {state} 0"));
        for name in ["VI_1", "VI_2"] {
            let member = place(&format!("INSTANCE {name} {state} 100"));
            assert!(member < group, "{all:?}");
        }
    }
    assert_eq!(all.iter().filter(|what| **what == "slow").count(), 2);

    // What hung is gone, with the child of its own.
    let pid = lines(&sleeper)[0].clone();
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    wait::until_true("the child is killed", Duration::from_secs(3), || {
        let text = fs::read_to_string(&stat).unwrap_or_default();
        Ok(text.is_empty() || text.contains(") Z "))
    })
    .unwrap();
    let status = lbd.status().unwrap();
    let group = &status.sync_groups[0];
    assert_eq!((group.name.as_str(), group.state), ("VG_1", Some(Fault)));
    let counts = &group.scripts;
    assert_eq!(
        (counts.runs, counts.failed, counts.timed_out),
        (5, 1, 1),
        "{counts:?}"
    );
    assert_eq!(
        counts.last_failure.as_ref().unwrap().what,
        "killed after 1s"
    );
    let counts = &status.instances[0].scripts;
    assert_eq!((counts.runs, counts.failed, counts.failing), (4, 0, false));
    let text = lbd.ctl(&["vrrp"]).unwrap();
    let line =
        "notify scripts: 5 run, 1 failed, 1 killed at the limit, 0 dropped, 0 wait; last failure ";
    assert!(text.contains(line), "{text}");
    assert!(text.contains(&format!("{hang}: killed after 1s")), "{text}");
    assert!(lbd.log().contains("no space"), "{}", lbd.log());
    lbd.stop().unwrap();
}
