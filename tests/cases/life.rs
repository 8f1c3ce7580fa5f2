//! The daemon's own life: starting again after a crash, reloading, what it leaves behind.

use std::time::Duration;

use lab::{
    Download, Guide,
    guide::{self, Settings, VIP},
    http,
    sniffer::Sniffer,
    wait,
};
use lb_user::model::VrrpState;
use nix::sys::signal::Signal;

#[test]
fn a_stopped_daemon_leaves_nothing() {
    let mut guide = Guide::start().unwrap();
    assert!(guide.node1.node.has_xdp().unwrap());
    assert!(
        !guide
            .node1
            .leftovers(&[&VIP.to_string()])
            .unwrap()
            .is_empty(),
        "the test can see what it looks for"
    );
    guide.node1.stop().unwrap();
    assert_eq!(
        guide.node1.leftovers(&[&VIP.to_string()]).unwrap(),
        Vec::<String>::new()
    );
}

/// After kill -9 the program goes on forwarding; the next daemon takes over its maps and link, and
/// goes on serving. A transfer that was running the whole time ends intact.
#[test]
fn a_killed_daemon_is_followed_by_one_that_takes_over() {
    let mut guide = Guide::start().unwrap();
    guide.node2.stop().unwrap();
    let download = Download::start(&guide, 4_000_000).unwrap();
    let samples = lab::steps::under_requests(&guide.client, VIP, Duration::from_secs(1), || {
        guide.node1.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        guide.node1.start(&guide.lab)?;
        assert_eq!(guide.node1.state("VI_1")?, VrrpState::Backup);
        guide.node1.wait_for("VI_1", VrrpState::Master)
    })
    .unwrap();
    assert_eq!(http::failures(&samples), 0, "of {}", samples.len());
    download.finish().unwrap();
    let log = guide.node1.log();
    assert!(
        log.contains("took over the XDP link")
            && log.contains("taking over from a daemon that died"),
        "{log}"
    );
    guide.node1.stop().unwrap();
    assert_eq!(
        guide.node1.leftovers(&[&VIP.to_string()]).unwrap(),
        Vec::<String>::new()
    );
}

/// A program that somebody detaches is attached again at once where nothing else may forward, and once a
/// second where it is detached again and again. Established connections only pause.
#[test]
fn a_detached_program_is_attached_again() {
    let mut guide = Guide::prepare().unwrap();
    let only_xdp = format!(
        "[dataplane]\nmode = \"xdp\"\n{}",
        guide::config(&Settings::of(100))
    );
    guide.node1.configure(&only_xdp).unwrap();
    guide.start_directors().unwrap();
    let node1 = &guide.node1;
    for turn in 1..=3 {
        node1.detach_xdp().unwrap();
        wait::until_true("the program is back", Duration::from_secs(10), || {
            let lost = "somebody detached the XDP program from eno16777736";
            Ok(node1.node.has_xdp()? && node1.log().matches(lost).count() == turn)
        })
        .unwrap();
        wait::until_true("nothing is wrong", Duration::from_secs(10), || {
            let problems = node1.status()?.problems;
            anyhow::ensure!(problems.is_empty(), "{problems:?}");
            Ok(true)
        })
        .unwrap();
    }
    let pages = http::get_many(&guide.client, VIP, 10).unwrap();
    assert!(pages.iter().all(|page| page.starts_with("rs")), "{pages:?}");
    let status = node1.status().unwrap().data_plane;
    assert_eq!(
        (status.kind.as_str(), status.switching.ready),
        ("xdp", false)
    );
    let refused = node1.lbctl(&["dataplane", "ipvs"]).unwrap();
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        words.contains("there is only xdp: mode = \"xdp\""),
        "{words}"
    );
    guide.node1.stop().unwrap();
    assert_eq!(
        guide.node1.leftovers(&[&VIP.to_string()]).unwrap(),
        Vec::<String>::new()
    );
}

/// While the daemon was dead the other director became master: the next daemon notices and lets go.
#[test]
fn a_daemon_that_takes_over_yields_to_a_master_that_is_there() {
    let mut guide = Guide::prepare().unwrap();
    // Without preemption node1 stays BACKUP after its return.
    let stays = guide::config(&Settings::of(100))
        .replace("priority = 100", "priority = 100\npreempt = false");
    guide.node1.configure(&stays).unwrap();
    guide.start_directors().unwrap();
    let samples = lab::steps::under_requests(&guide.client, VIP, Duration::from_secs(1), || {
        guide.node1.kill()?;
        guide.node2.wait_for("VI_1", VrrpState::Master)?;
        guide.node1.start(&guide.lab)?;
        wait::until_true("node1 lets go of the VIP", Duration::from_secs(5), || {
            Ok(!guide.node1.node.addresses()?.contains(&VIP.to_string()))
        })
    })
    .unwrap();
    assert_eq!(http::failures(&samples), 0, "of {}", samples.len());
    assert_eq!(guide.node1.state("VI_1").unwrap(), VrrpState::Backup);
    assert!(!guide.node1.service().unwrap().serving);
    assert_eq!(guide.node2.state("VI_1").unwrap(), VrrpState::Master);
}

/// A reload that was refused, lists that differ and a service nobody announces are to be seen.
#[test]
fn what_is_wrong_is_said_in_status() {
    let guide = Guide::start().unwrap();
    let problems = |director: &lab::Director| director.status().unwrap().problems.join("\n");
    assert_eq!(problems(&guide.node1), "");
    let more = guide::config(&Settings::of(100)).replace(
        "[\"10.1.15.50/16\"]",
        "[\"10.1.15.50/16\", \"10.1.15.77/16\"]",
    );
    guide.node1.configure(&more).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    wait::until_true("node2 sees another list", Duration::from_secs(3), || {
        Ok(problems(&guide.node2).contains("10.1.15.43 advertises other virtual addresses"))
    })
    .unwrap();
    guide
        .node1
        .configure(&more.replace("weight = 1", "weight = 99999"))
        .unwrap();
    assert_eq!(
        guide.node1.lbctl(&["reload"]).unwrap().status.code(),
        Some(4)
    );
    assert!(
        problems(&guide.node1).contains("the last reload was refused"),
        "{}",
        problems(&guide.node1)
    );
    guide
        .node1
        .configure(&guide::config(&Settings {
            weights: [0, 0],
            ..Settings::of(100)
        }))
        .unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert_eq!(
        problems(&guide.node1),
        "TCP 10.1.15.50:80: no real server takes new connections; the sorry server answers"
    );
}

#[test]
fn a_bad_configuration_on_reload_changes_nothing() {
    let mut guide = Guide::start().unwrap();
    let good = std::fs::read_to_string(&guide.node1.config).unwrap();
    let before = guide.node1.status().unwrap();
    std::fs::write(
        &guide.node1.config,
        good.replace("weight = 1", "weight = -1"),
    )
    .unwrap();
    let output = guide.node1.lbctl(&["reload"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(
        text.contains("node1.toml:") && text.contains("`weight` is -1"),
        "{text}"
    );
    guide
        .node1
        .process()
        .unwrap()
        .signal(Signal::SIGHUP)
        .unwrap();
    wait::until_true("the refusal in the log", Duration::from_secs(3), || {
        Ok(guide
            .node1
            .log()
            .contains("reload refused, the running configuration stays"))
    })
    .unwrap();
    let after = guide.node1.status().unwrap();
    assert_eq!(after.generation.number, before.generation.number);
    assert_eq!(after.instances[0].state, VrrpState::Master);
    http::get_many(&guide.client, VIP, 4).unwrap();
}

/// A reload that touches neither instance nor service of a running connection keeps both.
#[test]
fn a_reload_misses_no_advert_and_no_request() {
    let mut guide = Guide::start().unwrap();
    let since = guide.node1.status().unwrap().instances[0].since;
    let sniffer = Sniffer::start(&guide.client).unwrap();
    let samples = lab::steps::under_requests(&guide.client, VIP, Duration::from_secs(2), || {
        for weights in [[1, 2], [3, 1], [1, 1], [0, 1], [1, 1]] {
            guide.node1.configure(&guide::config(&Settings {
                weights,
                ..Settings::of(100)
            }))?;
            guide.node1.process()?.signal(Signal::SIGHUP)?;
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(http::failures(&samples), 0, "of {}", samples.len());
    let adverts: Vec<Duration> = sniffer
        .stop()
        .unwrap()
        .into_iter()
        .filter(|(_, frame)| {
            frame.len() > 30 && frame[23] == 112 && frame[26..30] == [10, 1, 15, 43]
        })
        .map(|(time, _)| time)
        .collect();
    assert!(adverts.len() >= 2, "{adverts:?}");
    for pair in adverts.windows(2) {
        // One that fell out would leave two seconds.
        let apart = pair[1] - pair[0];
        assert!(apart < Duration::from_millis(1_500), "{adverts:?}");
    }
    let status = guide.node1.status().unwrap();
    assert_eq!(status.instances[0].since, since);
    assert_eq!(guide.node2.state("VI_1").unwrap(), VrrpState::Backup);
    // Of its password, when it came, and not with every reload.
    let warning = "VRRP passwords guard against mistakes, not against people";
    assert_eq!(guide.node1.log().matches(warning).count(), 1);
    assert!(
        status
            .generation
            .reason
            .contains("weight of 10.1.15.45 0 -> 1"),
        "{}",
        status.generation.reason
    );
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let guide = Guide::start().unwrap();
    guide
        .node1
        .configure(&guide::config(&Settings {
            weights: [1, 7],
            ..Settings::of(100)
        }))
        .unwrap();
    let text = guide.node1.ctl(&["reload", "--dry-run"]).unwrap();
    assert_eq!(
        text,
        "would change: TCP 10.1.15.50:80: weight of 10.1.15.46 1 -> 7\n"
    );
    assert_eq!(guide.node1.service().unwrap().backends[1].weight, 1);
}

/// An address that somebody removes by hand comes back.
#[test]
fn a_virtual_address_removed_by_hand_is_put_back() {
    let guide = Guide::start().unwrap();
    let address = format!("{VIP}/16");
    guide
        .node1
        .node
        .ip(&[
            "address",
            "delete",
            &address,
            "dev",
            lab::network::INTERFACE,
        ])
        .unwrap();
    wait::until_true("the address is back", Duration::from_secs(3), || {
        Ok(guide.node1.node.addresses()?.contains(&VIP.to_string()))
    })
    .unwrap();
}

/// A real server that comes back with another network card is followed without a health check's help.
#[test]
fn a_changed_mac_address_of_a_real_server_is_followed() {
    let guide = Guide::start().unwrap();
    let server = "10.1.15.45";
    let mac = || -> Option<String> {
        let service = guide.node1.service().ok()?;
        service
            .backends
            .into_iter()
            .find(|b| b.address == server)?
            .mac
    };
    assert!(mac().is_some());
    let node = &guide.node1.node;
    let wanted = "02:00:00:00:aa:bb";
    node.ip(&[
        "neigh",
        "replace",
        server,
        "lladdr",
        wanted,
        "dev",
        lab::network::INTERFACE,
        "nud",
        "reachable",
    ])
    .unwrap();
    wait::until_true(
        "the new MAC address is in the map",
        Duration::from_secs(1),
        || Ok(mac().as_deref() == Some(wanted)),
    )
    .unwrap();
}

#[test]
fn services_are_printed_as_ipvsadm_prints_them() {
    let guide = Guide::start().unwrap();
    http::get_many(&guide.client, VIP, 4).unwrap();
    let expected = "IP Virtual Server version 1.2.1 (size=262144)\n\
        Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
        TCP  10.1.15.50:80 wrr\n  -> 10.1.15.45:80                Route   1      0          2         \n  \
        -> 10.1.15.46:80                Route   1      0          2         \n";
    // Counts of flows are up to a tenth of a second old.
    wait::until("two connections each", Duration::from_secs(2), || {
        let text = guide.node1.ctl(&["services"])?;
        anyhow::ensure!(text == expected, "{text}");
        Ok(Some(()))
    })
    .unwrap();
    for arguments in [
        &["status"][..],
        &["vrrp"],
        &["map", "list"],
        &["map", "dump"],
        &["services", "--stats"],
    ] {
        let text = guide.node1.ctl(arguments).unwrap();
        assert!(text.lines().count() > 2, "{arguments:?}: {text}");
        let json = guide.node1.ctl(&[&["--json"], arguments].concat()).unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }
    let output = guide.node1.lbctl(&["map", "dump", "nonsense"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no map `nonsense`"));
}

/// A real server that is added by a reload gets connections only once it is found: until then its
/// share would end in the director's own stack.
#[test]
fn an_added_real_server_that_is_absent_gets_nothing() {
    let guide = Guide::start().unwrap();
    let config = guide::config(&Settings::of(100)).replace("10.1.15.46", "10.1.15.99");
    // Without a check it counts as up, and still nothing may be sent to it.
    let check = &config
        [config.find("[service.check]").unwrap()..config.find("[[service.backend]]").unwrap()];
    guide.node1.configure(&config.replace(check, "")).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 20).unwrap(), ["rs1"; 20]);
    let states: Vec<String> = guide
        .node1
        .service()
        .unwrap()
        .backends
        .into_iter()
        .map(|b| b.state)
        .collect();
    assert_eq!(states, ["up", "unresolved", "draining"]);
    let problems = guide.node1.status().unwrap().problems;
    assert!(
        problems
            .iter()
            .any(|p| p.contains("10.1.15.99") && p.contains("MAC")),
        "{problems:?}"
    );
}

/// A running instance that a reload removes ends as if it were stopped.
#[test]
fn a_removed_instance_says_goodbye() {
    let guide = Guide::start().unwrap();
    let log = guide.notify_log("removed").unwrap();
    let with_log = |second| Settings {
        second,
        notify_log: Some(log.clone()),
        ..Settings::of(100)
    };
    guide
        .node1
        .configure(&guide::config(&with_log(Some(100))))
        .unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    guide.node1.wait_for("VI_2", VrrpState::Master).unwrap();
    let second = guide::VIP2.to_string();
    assert!(guide.node1.node.addresses().unwrap().contains(&second));
    guide
        .node1
        .configure(&guide::config(&with_log(None)))
        .unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    assert!(
        !guide.node1.node.addresses().unwrap().contains(&second),
        "gone when lbctl returns"
    );
    wait::until_true("its stop script", Duration::from_secs(3), || {
        Ok(std::fs::read_to_string(&log)?.contains("INSTANCE VI_2 STOP 100"))
    })
    .unwrap();
    assert_eq!(
        guide.node1.state("VI_1").unwrap(),
        VrrpState::Master,
        "the other is not disturbed"
    );
}

/// Ctrl-C, a termination, and what a harness sends to the process alone: the demonstration goes and
/// leaves nothing.
#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    for (signal, patience) in [
        (Signal::SIGINT, 900),
        (Signal::SIGTERM, 3_000),
        (Signal::SIGHUP, 6_000),
    ] {
        let program = lab::binaries::find("lbd-demo").unwrap();
        let mut child = std::process::Command::new(program)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mine = format!("lbd-{}-", child.id());
        std::thread::sleep(Duration::from_millis(patience));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32), "{signal}");
        let namespaces = String::from_utf8(
            std::process::Command::new("ip")
                .arg("netns")
                .output()
                .unwrap()
                .stdout,
        )
        .unwrap();
        assert!(!namespaces.contains(&mine), "{signal}: {namespaces}");
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(
            !mounts.contains(&format!("/run/lbd-lab/{}-", child.id())),
            "{signal}: {mounts}"
        );
        assert!(
            !std::path::Path::new(&format!("/run/lbd-lab/{}-0", child.id())).exists(),
            "{signal}"
        );
    }
}
