//! Pairs that watch processes, files, routes and services, and links that flap.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lab::{
    Guide,
    guide::{self, Settings},
    wait,
};
use lb_user::{api::proto::Watched, model::VrrpState};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Puts keys into node1's instance and tables behind it.
fn configure(guide: &Guide, keys: &str, tables: &str) {
    let base = guide::config(&Settings::of(100));
    let (instance, services) = base.split_once("\n[[service]]").unwrap();
    let config = format!("{instance}\n{keys}\n{tables}\n[[service]]{services}");
    guide.node1.configure(&config).unwrap();
}

/// The only thing that node1 watches.
fn watched(guide: &Guide) -> Watched {
    let status = guide.node1.status().unwrap();
    status.instances[0].watched[0].clone()
}

fn node2_takes_over(guide: &Guide) {
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
}

fn node1_takes_over(guide: &Guide) {
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
}

/// A web server under a name of its own, so that those of others do not count: with it dies what lbd
/// has started.
struct Daemonised {
    program: PathBuf,
    arguments: String,
    pid_file: PathBuf,
}

impl Daemonised {
    fn new(directory: &Path) -> Self {
        let name = format!("web{}", std::process::id());
        let program = directory.join(&name);
        fs::copy("/usr/sbin/nginx", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let pid_file = directory.join("web.pid");
        let conf = directory.join("web.conf");
        let text = format!(
            "pid {0}; error_log {0}.log; worker_processes 2; events {{}}
             http {{ access_log off; server {{ listen 127.0.0.1:8081; return 200 fine; }} }}",
            pid_file.display()
        );
        fs::write(&conf, text).unwrap();
        Self {
            arguments: format!("-p {} -c {}", directory.display(), conf.display()),
            program,
            pid_file,
        }
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap().to_string_lossy().into()
    }

    fn command(&self) -> String {
        format!("{} {}", self.program.display(), self.arguments)
    }

    fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        Some(Pid::from_raw(text.trim().parse().ok()?))
    }

    /// Ends master and workers, which share its process group.
    fn kill(&self) {
        if let Some(pid) = self.pid() {
            let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
            let _ = fs::remove_file(&self.pid_file);
        }
    }
}

impl Drop for Daemonised {
    fn drop(&mut self) {
        // A director that still runs must not start it once more.
        let _ = fs::remove_file(&self.program);
        self.kill();
    }
}

/// What the guide asks for: a web server that dies is started again; a director that cannot do so
/// gives its addresses up.
#[test]
fn a_dead_process_is_started_again_or_costs_the_mastership() {
    let mut guide = Guide::prepare().unwrap();
    let web = Daemonised::new(guide.lab.directory());
    let table = format!(
        "[[track_process]]
name = \"web\"
process = \"{}\"
terminate_delay = \"2s\"
interval = \"200ms\"
restart = \"{}\"
restart_user = \"root\"
restart_interval = \"1s\"
restart_tries = 4",
        web.name(),
        web.command()
    );
    configure(
        &guide,
        "[[vrrp.track]]\nprocess = \"web\"\nweight = -5",
        &table,
    );
    // It does not run yet: the first try starts it.
    guide.start_directors().unwrap();
    let runs = |count: &str| {
        let text = format!("{count} run");
        wait::until_true(
            &format!("lbd says that {text}"),
            Duration::from_secs(10),
            || {
                let watched = watched(&guide);
                Ok(watched.state == "up" && watched.detail.unwrap_or_default().starts_with(&text))
            },
        )
        .unwrap();
    };
    // The master and two workers.
    runs("3");
    let first = web.pid().unwrap();

    // It dies, and is there again before anybody could take over.
    let began = Instant::now();
    web.kill();
    wait::until_true("it runs again", Duration::from_secs(3), || {
        Ok(web
            .pid()
            .is_some_and(|pid| pid != first && kill(pid, None).is_ok()))
    })
    .unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1500), "after {took:?}");
    runs("3");
    assert_eq!(guide.node1.state("VI_1").unwrap(), VrrpState::Master);
    assert_eq!(guide.node1.status().unwrap().instances[0].priority, 100);
    let log = guide.node1.log();
    assert!(log.contains("to start it again"), "{log}");

    // It cannot be started: after two more tries it is left alone, and node2 takes over.
    fs::rename(&web.program, web.program.with_extension("gone")).unwrap();
    web.kill();
    node2_takes_over(&guide);
    wait::until_true("lbd gives up", Duration::from_secs(10), || {
        let detail = watched(&guide).detail.unwrap_or_default();
        Ok(detail.contains("cannot run: No such file") && detail.ends_with("no more tries"))
    })
    .unwrap();
    let seen = watched(&guide);
    assert_eq!((seen.state.as_str(), seen.effect), ("down", Some(-5)));
    let shown = guide.node1.ctl(&["vrrp"]).unwrap();
    assert!(
        shown.contains("process web (weight -5): down for"),
        "{shown}"
    );

    // Somebody starts it by hand.
    fs::rename(web.program.with_extension("gone"), &web.program).unwrap();
    let words: Vec<&str> = web.arguments.split(' ').collect();
    guide
        .node1
        .node
        .run(&web.program.to_string_lossy(), &words)
        .unwrap();
    node1_takes_over(&guide);
}

#[test]
fn a_file_moves_the_priority() {
    let mut guide = Guide::prepare().unwrap();
    let directory = guide.lab.directory().join("fitness");
    let file = directory.join("value");
    let table = format!(
        "[[track_file]]\nname = \"fit\"\nfile = \"{}\"\nweight = -2",
        file.display()
    );
    configure(&guide, "[[vrrp.track]]\nfile = \"fit\"", &table);
    // Neither the file nor its directory is there.
    guide.start_directors().unwrap();
    assert_eq!(watched(&guide).state, "value 0");
    let becomes = |state: &str, within: u64| {
        let began = Instant::now();
        wait::until_true(state, Duration::from_millis(within), || {
            Ok(watched(&guide).state == state)
        })
        .unwrap();
        began.elapsed()
    };
    fs::create_dir(&directory).unwrap();
    fs::write(&file, "1\n").unwrap();
    becomes("value 1", 5_000);
    assert_eq!(guide.node1.status().unwrap().instances[0].priority, 98);

    // Replaced by another file of that name, as careful writers do: much sooner than the next poll.
    let replace = |text: &str| {
        let new = directory.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    let mut took: Vec<Duration> = (10..15)
        .map(|value| {
            replace(&value.to_string());
            becomes(&format!("value {value}"), 5_000)
        })
        .collect();
    took.sort();
    assert!(took[2] < Duration::from_millis(300), "{took:?}");
    replace("3");
    node2_takes_over(&guide);
    let status = guide.node1.status().unwrap();
    assert_eq!(status.instances[0].priority, 94);
    let problem = "VI_1: file fit has value 3 (priority -6)";
    assert!(
        status.problems.iter().any(|p| p == problem),
        "{:?}",
        status.problems
    );

    // Nonsense is complained about once and changes nothing.
    replace("three");
    wait::until_true("the complaint", Duration::from_secs(5), || {
        let detail = watched(&guide).detail.unwrap_or_default();
        Ok(detail.ends_with("holds no whole number: \"three\""))
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(2_200));
    assert_eq!(
        guide.node1.log().matches("holds no whole number").count(),
        1
    );
    assert_eq!(watched(&guide).state, "value 3");

    // A file that is gone is a 0.
    fs::remove_file(&file).unwrap();
    node1_takes_over(&guide);
    assert_eq!(watched(&guide).effect, Some(0));
}

/// With a weight of 0 a number is a fault; a reload leaves what is known alone, and makes no file anew.
#[test]
fn a_file_can_be_a_fault_and_survives_a_reload() {
    let mut guide = Guide::prepare().unwrap();
    let file = guide.lab.directory().join("value");
    fs::write(&file, "9").unwrap();
    let table = format!(
        "[[track_file]]\nname = \"fit\"\nfile = \"{}\"\ninit_file = 0\ninit_overwrite = true",
        file.display()
    );
    let keys = "[[vrrp.track]]\nfile = \"fit\"\nweight = 0";
    configure(&guide, keys, &table);
    guide.start_directors().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "0\n");
    fs::write(&file, "1").unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Fault).unwrap();
    let since = watched(&guide).since;
    configure(
        &guide,
        keys,
        &format!("{table}\n[[track_script]]\nname = \"more\"\ncommand = \"true\""),
    );
    let reload = guide.node1.ctl(&["reload"]).unwrap();
    assert!(reload.contains("track script more added"), "{reload}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    let seen = watched(&guide);
    assert_eq!(
        (seen.state.as_str(), seen.effect, seen.since),
        ("value 1", None, since)
    );
    assert_eq!(guide.node1.state("VI_1").unwrap(), VrrpState::Fault);
    fs::write(&file, "0").unwrap();
    node1_takes_over(&guide);
}

#[test]
fn a_route_is_watched() {
    let mut guide = Guide::prepare().unwrap();
    let director = guide.node1.node.clone();
    let peer = guide.client.clone();
    guide
        .lab
        .second_network(&director, [172, 20, 0, 43], &peer, [172, 20, 0, 1])
        .unwrap();
    configure(
        &guide,
        "[[vrrp.track]]\nroute = \"0.0.0.0/0\"\nvia = \"172.20.0.1\"\ndev = \"eth1\"\nweight = -5",
        "",
    );
    let add: &[&str] = &[
        "route",
        "add",
        "default",
        "via",
        "172.20.0.1",
        "dev",
        "eth1",
    ];
    director.ip(add).unwrap();
    guide.start_directors().unwrap();
    let seen = watched(&guide);
    assert_eq!(seen.what, "route 0.0.0.0/0 via 172.20.0.1 dev eth1");
    assert_eq!(
        (seen.state.as_str(), seen.detail.as_deref()),
        ("up", Some("via 172.20.0.1"))
    );
    let is = |state: &str| {
        let began = Instant::now();
        wait::until_true(state, Duration::from_secs(3), || {
            Ok(watched(&guide).state == state)
        })
        .unwrap();
        began.elapsed()
    };

    // The kernel tells of it: no poll is waited for.
    let mut took = Vec::new();
    for _ in 0..3 {
        director.ip(&["route", "del", "default"]).unwrap();
        took.push(is("down"));
        director.ip(add).unwrap();
        took.push(is("up"));
    }
    assert!(
        took.iter().all(|t| *t < Duration::from_millis(700)),
        "{took:?}"
    );

    director.ip(&["route", "del", "default"]).unwrap();
    node2_takes_over(&guide);
    // Another way is not the wanted one.
    director
        .ip(&["route", "add", "default", "via", "10.1.15.1"])
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(watched(&guide).state, "down");
    director.ip(&["route", "del", "default"]).unwrap();
    director.ip(add).unwrap();
    node1_takes_over(&guide);

    // An interface that goes down takes its routes along without a word.
    director.ip(&["link", "set", "eth1", "down"]).unwrap();
    node2_takes_over(&guide);
    director.ip(&["link", "set", "eth1", "up"]).unwrap();
    director.ip(add).unwrap();
    node1_takes_over(&guide);
    // One without carrier does not count either.
    peer.ip(&["link", "set", "eth1", "down"]).unwrap();
    node2_takes_over(&guide);
}

/// A director that does not reach the real servers lets the other one serve them.
#[test]
fn a_service_without_live_real_servers_costs_the_mastership() {
    let mut guide = Guide::prepare().unwrap();
    let director = guide.node1.node.clone();
    configure(
        &guide,
        "[[vrrp.track]]\nservice = \"10.1.15.50:80\"\nweight = -5",
        "",
    );
    guide.start_directors().unwrap();
    assert_eq!(
        watched(&guide).detail.as_deref(),
        Some("2 of 2 real servers live")
    );
    let block = |server: &str| director.ip(&["route", "add", "blackhole", server]).unwrap();
    block("10.1.15.45/32");
    wait::until_true("one is live", Duration::from_secs(10), || {
        let seen = watched(&guide);
        Ok(seen.detail.as_deref() == Some("1 of 2 real servers live") && seen.state == "up")
    })
    .unwrap();
    block("10.1.15.46/32");
    node2_takes_over(&guide);
    let seen = watched(&guide);
    assert_eq!(seen.what, "service TCP 10.1.15.50:80");
    assert_eq!(seen.detail.as_deref(), Some("0 of 2 real servers live"));
    assert_eq!(guide.node1.status().unwrap().instances[0].priority, 95);
    director
        .ip(&["route", "del", "blackhole", "10.1.15.45/32"])
        .unwrap();
    node1_takes_over(&guide);
}

#[test]
fn a_flapping_link_is_held_down() {
    let mut guide = Guide::prepare().unwrap();
    configure(
        &guide,
        "link_up_delay = \"400ms\"\nlink_flaps = 2\nlink_flap_window = \"30s\"\nlink_hold = \"3s\"",
        "",
    );
    guide.start_directors().unwrap();
    let director = guide.node1.node.clone();
    let flap = || {
        director.cable(false).unwrap();
        guide.node1.wait_for("VI_1", VrrpState::Fault).unwrap();
        director.cable(true).unwrap();
        Instant::now()
    };
    let used_after = |up: Instant| {
        wait::until_true("the link is used", Duration::from_secs(10), || {
            Ok(guide.node1.state("VI_1")? != VrrpState::Fault)
        })
        .unwrap();
        up.elapsed()
    };
    for _ in 0..2 {
        let took = used_after(flap());
        assert!(took > Duration::from_millis(350), "{took:?}");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
    }
    // Once more is too often.
    let up = flap();
    let status = guide.node1.status().unwrap();
    let wait = status.instances[0].link_wait.clone().unwrap();
    assert!(wait.held && wait.needed_ms == 3_000, "{wait:?}");
    assert!(
        status
            .problems
            .iter()
            .any(|p| p.contains("was lost too often")),
        "{:?}",
        status.problems
    );
    let shown = guide.node1.ctl(&["vrrp"]).unwrap();
    assert!(
        shown.contains("the link was lost too often: used once it was up for 3.000 s"),
        "{shown}"
    );
    let took = used_after(up);
    assert!(took > Duration::from_millis(2_900), "{took:?}");
    assert!(took < Duration::from_millis(4_500), "{took:?}");
    node1_takes_over(&guide);
    assert!(
        guide.node1.status().unwrap().instances[0]
            .link_wait
            .is_none()
    );
    assert!(
        guide
            .node1
            .log()
            .contains("the link was lost more than 2 times within 30s")
    );
}
