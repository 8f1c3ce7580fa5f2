//! What a pool does when its real servers fail and return: quorum, panic guard, slow start, with real nginx.

use std::{fs, path::PathBuf, time::Duration};

use lab::{
    Director, Download, Guide, Process,
    guide::{self, Settings, VIP},
    http,
    server::{WebServer, accept_vip},
    wait,
};
use lb_user::{
    api::proto::{CheckStatus, EventPage, PoolStatus},
    model::VrrpState,
};

const LONG: Duration = Duration::from_secs(15);

/// The guide's configuration with weights, more keys of the service, and a quick check of `/health`, which
/// can go while the server goes on. All failures here are told at once; nobody is down for being late.
fn config(priority: u8, weights: [u32; 2], keys: &str) -> String {
    let settings = Settings {
        weights,
        ..Settings::of(priority)
    };
    let text = guide::config(&settings);
    let begin = text.find("[service.check]").unwrap();
    let end = text.find("[[service.backend]]").unwrap();
    format!(
        "{}{keys}\n[service.check]\ntype = \"http\"\npath = \"/health\"\ninterval = \"200ms\"\nconnect_timeout = \"5s\"\nretries = 0\n{}",
        &text[..begin],
        &text[end..]
    )
}

/// A cluster whose node1 is MASTER, with both real servers healthy.
fn start(weights: [u32; 2], keys: &str) -> Guide {
    let mut guide = Guide::prepare().unwrap();
    for server in [&guide.rs1, &guide.rs2] {
        server.publish("health", b"well\n").unwrap();
    }
    let text = config(100, weights, keys);
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    guide
}

fn pool(director: &Director) -> PoolStatus {
    director.status().unwrap().pools.remove(0)
}

/// How many of `count` requests each page answered.
fn answers(guide: &Guide, count: usize, page: &str) -> usize {
    let pages = http::get_many(&guide.client, VIP, count).unwrap();
    pages.iter().filter(|answer| *answer == page).count()
}

fn events(director: &Director) -> String {
    let text = director.ctl(&["--json", "events"]).unwrap();
    let page: EventPage = serde_json::from_str(&text).unwrap();
    let lines = page.events.into_iter().map(|event| event.text + "\n");
    lines.collect()
}

fn lines(log: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn wait_for_lines(log: &PathBuf, expected: &[&str]) {
    let told = wait::until_true("commands ran", LONG, || Ok(lines(log) == expected));
    told.unwrap_or_else(|error| panic!("{error:#}: {:?}", lines(log)));
}

#[test]
fn a_lost_quorum_puts_the_sorry_server_in() {
    let mut guide = Guide::prepare().unwrap();
    let log = guide.notify_log("pool").unwrap();
    let script = log.with_extension("sh");
    let script = script.display();
    let keys = format!(
        "quorum = 3\nhysteresis = 1\nquorum_up = \"{script} up\"\nquorum_down = \"{script} down\"\nnotify = \"{script}\""
    );
    for server in [&guide.rs1, &guide.rs2] {
        server.publish("health", b"well\n").unwrap();
    }
    let text = config(100, [1, 3], &keys);
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    let ready = ["up", "up", "draining"];
    guide.node1.wait_for_backends(&ready).unwrap();
    wait_for_lines(&log, &["up", "VS [10.1.15.50]:tcp:80 UP"]);

    // 1 is below 3 - 1: the one that is alive does not serve alone.
    guide.rs2.withdraw("health").unwrap();
    guide
        .node1
        .wait_for_backends(&["standby", "down", "up"])
        .unwrap();
    assert_eq!(answers(&guide, 10, "sorry"), 10);
    let now = pool(&guide.node1);
    assert_eq!((now.has_quorum, now.live_weight), (false, 1));
    let status = guide.node1.ctl(&["status"]).unwrap();
    assert!(
        status.contains("PROBLEM  TCP 10.1.15.50:80: no quorum: live weight 1, 4 needed"),
        "{status}"
    );
    assert!(status.contains("live weight 1, gained at 4"), "{status}");
    let told = [
        "up",
        "VS [10.1.15.50]:tcp:80 UP",
        "RS [10.1.15.46]:tcp:80 [10.1.15.50]:tcp:80 DOWN",
        "down",
        "VS [10.1.15.50]:tcp:80 DOWN",
    ];
    wait_for_lines(&log, &told);

    // With a weight of 2 from an operator the quorum is 3 + 1 with both, and bears the loss of 1.
    guide.rs2.publish("health", b"well\n").unwrap();
    guide.node1.wait_for_backends(&ready).unwrap();
    let order = ["backend", "weight", "10.1.15.45", "2"];
    guide.node1.ctl(&order).unwrap();
    guide.rs2.withdraw("health").unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "down", "draining"])
        .unwrap();
    assert_eq!(answers(&guide, 10, "rs1"), 10);
    assert!(pool(&guide.node1).has_quorum);
    let told = events(&guide.node1);
    assert!(
        told.contains("quorum lost after") && told.contains("the sorry server answers"),
        "{told}"
    );
    assert!(told.contains("quorum gained after"), "{told}");
}

/// A download whose real server has failed its check in the middle.
struct Torn {
    guide: Guide,
    download: Download,
    /// Which of the two real servers serves it.
    serving: usize,
    /// Packets that the other one had got before.
    before: u64,
}

impl Torn {
    /// With these keys of the service the real server becomes `state`.
    fn new(keys: &str, state: &str) -> Self {
        let guide = start([1, 1], keys);
        let download = Download::start(&guide, 3_000_000).unwrap();
        let serving = serving(&guide);
        let before = packets(&guide, 1 - serving);
        let servers = [&guide.rs1, &guide.rs2];
        servers[serving].withdraw("health").unwrap();
        let mut states = ["up", "up", "draining"];
        states[serving] = state;
        guide.node1.wait_for_backends(&states).unwrap();
        // Weight 0 is how IPVS holds an inhibited one.
        let listed = guide.node1.ctl(&["services"]).unwrap();
        let address = format!("10.1.15.{}:80", 45 + serving);
        let line = listed.lines().find(|line| line.contains(&address));
        let held = line.is_some_and(|line| line.contains("Route   0 "));
        assert_eq!(held, state == "inhibited", "{listed}");
        Self {
            guide,
            download,
            serving,
            before,
        }
    }

    /// The other real server has all new connections; the download goes on to its end.
    fn expect_held(self) {
        assert_eq!(packets(&self.guide, 1 - self.serving), self.before);
        let other = ["rs2", "rs1"][self.serving];
        assert_eq!(answers(&self.guide, 10, other), 10);
        self.download.finish().unwrap();
    }

    /// The client hears that its connection is gone, and the other real server has all new ones. How many packets
    /// of the download that one has got, and the guide.
    fn expect_reset(self) -> (u64, Guide) {
        let error = self.download.finish().unwrap_err().to_string();
        assert!(error.contains("reset by peer"), "{error}");
        let heard = packets(&self.guide, 1 - self.serving) - self.before;
        let other = ["rs2", "rs1"][self.serving];
        assert_eq!(answers(&self.guide, 10, other), 10);
        (heard, self.guide)
    }
}

/// Which real server serves the only connection.
fn serving(guide: &Guide) -> usize {
    let find = || {
        let service = guide.node1.service()?;
        Ok(service.backends.into_iter().position(|b| b.active > 0))
    };
    wait::until("somebody serves the download", LONG, find).unwrap()
}

/// Packets that a real server has got.
fn packets(guide: &Guide, server: usize) -> u64 {
    guide.node1.service().unwrap().backends[server].packets
}

#[test]
fn an_inhibited_server_finishes_a_download() {
    Torn::new("inhibit_on_failure = true", "inhibited").expect_held();
}

#[test]
fn connections_of_a_server_that_is_down_stay() {
    Torn::new("on_down = \"keep\"", "inhibited").expect_held();
}

/// The client hears it from the other real server, which knows nothing of the connection.
#[test]
fn connections_of_a_server_that_is_down_move() {
    let (heard, _guide) = Torn::new("on_down = \"move\"", "down").expect_reset();
    assert!(heard > 0);
}

/// The client hears it from the director, and the other real server hears nothing.
#[test]
fn connections_of_a_server_that_is_down_are_reset() {
    let (heard, guide) = Torn::new("on_down = \"reset\"", "resetting").expect_reset();
    assert_eq!(heard, 0);
    assert!(guide.node1.passed("reset").unwrap() > 0);
}

/// Sorry servers on other hosts are checked: a dead one is a problem before anybody needs it, and does not answer
/// when they do. It is no real server, and the FIFO tells of those.
#[test]
fn a_dead_sorry_server_is_known() {
    let mut guide = Guide::prepare().unwrap();
    for server in [&guide.rs1, &guide.rs2] {
        server.publish("health", b"well\n").unwrap();
    }
    let mut sorry = [47, 48].map(|last| {
        let name = format!("sorry{last}");
        let node = guide.lab.node(&name, [10, 1, 15, last]).unwrap();
        accept_vip(&node, &VIP.to_string()).unwrap();
        WebServer::start(&guide.lab, &node, &name).unwrap()
    });
    let keys = "[[service.sorry_check]]\ntype = \"http\"\ninterval = \"200ms\"\nconnect_timeout = \"5s\"\nretries = 0\n";
    let text = config(100, [1, 1], keys).replacen(
        "sorry_server = \"local\"",
        "sorry_server = [\"10.1.15.47\", \"10.1.15.48\"]",
        1,
    );
    let fifo = guide.lab.directory().join("events").display().to_string();
    // The table [runtime] is open at the beginning.
    let text = format!("notify_fifo = \"{fifo}\"\n{text}");
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    let reader = &guide.node1.node;
    let mut reader =
        Process::start(&guide.lab, reader, "reader", "/bin/cat".as_ref(), &[&fifo]).unwrap();
    let states = |states: &[&str]| guide.node1.wait_for_backends(states).unwrap();
    states(&["up", "up", "draining", "draining"]);
    sorry[0].stop().unwrap();
    let said = "TCP 10.1.15.50:80: sorry server 10.1.15.47 is down: cannot connect to 10.1.15.50:80 on 10.1.15.47";
    wait::until_true("the dead one is known", LONG, || {
        let problems = guide.node1.status()?.problems;
        Ok(problems.iter().any(|problem| problem.starts_with(said)))
    })
    .unwrap();
    let status = guide.node1.ctl(&["status"]).unwrap();
    assert!(status.contains("sorry server; down for "), "{status}");
    assert!(events(&guide.node1).contains("sorry server 10.1.15.47 is down after"));
    for server in [&guide.rs1, &guide.rs2] {
        server.withdraw("health").unwrap();
    }
    states(&["down", "down", "down", "up"]);
    assert_eq!(answers(&guide, 10, "sorry48"), 10);
    sorry[0].resume(&guide.lab).unwrap();
    states(&["down", "down", "up", "up"]);
    assert_eq!(answers(&guide, 10, "sorry47"), 5);
    guide.node1.stop().unwrap();
    assert!(reader.wait(LONG).unwrap().success());
    let log = reader.log();
    let mut told: Vec<&str> = log.lines().filter(|line| line.starts_with("RS ")).collect();
    told.sort_unstable();
    let down = [45, 46].map(|last| format!("RS [10.1.15.{last}]:tcp:80 [10.1.15.50]:tcp:80 DOWN"));
    assert_eq!(told, down, "{log}");
}

/// Which of several checks fails, why and since when.
#[test]
fn every_check_is_told_of() {
    let keys = "[[service.check]]\ntype = \"tcp\"\nport = 81\ntarget = \"address\"\ninterval = \"200ms\"\nretries = 0\n\
                [[service.check]]\ntype = \"icmp\"\ninterval = \"200ms\"\n";
    let mut guide = Guide::prepare().unwrap();
    for server in [&guide.rs1, &guide.rs2] {
        server.publish("health", b"well\n").unwrap();
    }
    let text = config(100, [1, 1], keys).replacen("[service.check]\n", "[[service.check]]\n", 1);
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    let down = ["down", "down", "up"];
    guide.node1.wait_for_backends(&down).unwrap();
    let seen = |text: &str, parts: &[&str]| {
        let mut lines = text.lines();
        lines.any(|line| parts.iter().all(|part| line.contains(part)))
    };
    let failing = [
        "    tcp 10.1.15.45:81  down for ",
        "failed; the last failed: cannot connect to 10.1.15.45:81",
    ];
    let fine = ["    icmp 10.1.15.45  up for ", " attempts, 0 failed"];
    let (mut health, mut status) = (String::new(), String::new());
    let told = wait::until_true("all is told", LONG, || {
        health = guide.node1.ctl(&["health"])?;
        status = guide.node1.ctl(&["status"])?;
        Ok(seen(&health, &failing) && seen(&health, &fine) && seen(&status, &failing))
    });
    assert!(told.is_ok(), "{health}\n{status}");
    // What is well is no line of the status.
    assert!(!seen(&status, &fine), "{status}");
    assert!(
        seen(&health, &["the data plane followed: ", " ms (99 %)"]),
        "{health}"
    );
    let json = guide.node1.ctl(&["--json", "health"]).unwrap();
    let checks: Vec<CheckStatus> = serde_json::from_str(&json).unwrap();
    let kinds: Vec<(&str, bool)> = checks[0]
        .checks
        .iter()
        .map(|c| (c.kind.as_str(), c.up))
        .collect();
    assert_eq!(kinds, [("tcp", false), ("icmp", true), ("http", true)]);
    assert!(
        checks[0].checks[0]
            .cause
            .as_ref()
            .unwrap()
            .contains("Connection refused")
    );
}

#[test]
fn a_broken_check_does_not_empty_the_pool() {
    let mut guide = start([1, 1], "panic_threshold = 50");
    // One of two is not more than half.
    guide.rs1.withdraw("health").unwrap();
    let one_down = ["down", "up", "draining"];
    guide.node1.wait_for_backends(&one_down).unwrap();
    assert_eq!(answers(&guide, 10, "rs2"), 10);
    guide.rs2.withdraw("health").unwrap();
    let kept = || Ok(pool(&guide.node1).kept.len() == 2);
    wait::until_true("both are kept", LONG, kept).unwrap();
    let all_up = ["up", "up", "draining"];
    guide.node1.wait_for_backends(&all_up).unwrap();
    assert_eq!(answers(&guide, 20, "rs1"), 10);
    let status = guide.node1.ctl(&["status"]).unwrap();
    for text in [
        "PROBLEM  TCP 10.1.15.50:80: panic: more than 50 % of the real servers failed at once",
        "kept although its checks fail",
        "kept in use: 10.1.15.45 10.1.15.46",
    ] {
        assert!(status.contains(text), "{status}");
    }
    let socket = guide.lab.directory().join("node1.sock");
    let socket = socket.to_string_lossy();
    let arguments = ["--silent", "--unix-socket", &socket, "http://lbd/metrics"];
    let metrics = guide.node1.node.run("curl", &arguments).unwrap();
    for line in [
        "lbd_service_panic{service=\"TCP 10.1.15.50:80\"} 1",
        "lbd_service_servers_kept{service=\"TCP 10.1.15.50:80\"} 2",
        "lbd_service_quorum{service=\"TCP 10.1.15.50:80\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    // A restart of the director changes nothing of it.
    guide.node1.stop().unwrap();
    guide.node1.start(&guide.lab).unwrap();
    assert_eq!(pool(&guide.node1).kept.len(), 2);
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    assert_eq!(answers(&guide, 20, "rs1"), 10);
    // One passes again: the other one is believed now.
    guide.rs2.publish("health", b"well\n").unwrap();
    guide.node1.wait_for_backends(&one_down).unwrap();
    guide.rs1.publish("health", b"well\n").unwrap();
    guide.node1.wait_for_backends(&all_up).unwrap();
    let told = events(&guide.node1);
    assert!(
        told.contains("panic: 2 of 2 real servers failed at once, more than 50 %"),
        "{told}"
    );
    assert!(told.contains("panic over after"), "{told}");
    assert!(pool(&guide.node1).panic_since.is_none());
}

#[test]
fn alpha_waits_for_the_first_success_and_omega_tells_of_the_end() {
    let mut guide = Guide::prepare().unwrap();
    let log = guide.notify_log("pool").unwrap();
    let script = log.with_extension("sh");
    let script = script.display();
    guide.rs2.publish("health", b"well\n").unwrap();
    let keys = format!(
        "alpha = true\nomega = true\nquorum_up = \"{script} quorum\"\nquorum_down = \"{script} none\"\nnotify_up = \"{script} here\"\nnotify_down = \"{script} gone\""
    );
    guide
        .node1
        .configure(
            &config(100, [1, 1], &keys)
                .replace("interval = \"200ms\"", "interval = \"1s\"\nwarmup = \"3s\""),
        )
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide
        .node1
        .wait_for_backends(&["down", "up", "draining"])
        .unwrap();
    let status = guide.node1.ctl(&["status"]).unwrap();
    assert!(
        status.contains("10.1.15.45      weight 1     down for"),
        "{status}"
    );
    wait_for_lines(&log, &["here", "quorum"]);
    let told = events(&guide.node1);
    assert!(
        !told.contains("real server 10.1.15.45 is down after"),
        "{told}"
    );
    guide.rs1.publish("health", b"well\n").unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    wait_for_lines(&log, &["here", "quorum", "here"]);
    guide.node1.stop().unwrap();
    wait_for_lines(&log, &["here", "quorum", "here", "gone", "gone", "none"]);
}

#[test]
fn a_server_that_returns_gets_its_share_in_steps() {
    // A step lasts eight seconds: nobody may ask for longer than that, on a busy machine either.
    let guide = start([1, 1], "slow_start = \"80s\"");
    assert_eq!(answers(&guide, 10, "rs2"), 5);
    guide.rs2.withdraw("health").unwrap();
    let one_down = ["up", "down", "draining"];
    guide.node1.wait_for_backends(&one_down).unwrap();
    guide.rs2.publish("health", b"well\n").unwrap();
    for (percent, requests, expected) in [(10, 22, 2), (20, 24, 4)] {
        let grown = || {
            let growing = pool(&guide.node1).growing;
            Ok(growing.first().is_some_and(|g| g.percent == percent))
        };
        wait::until_true("its weight grows", LONG, grown).unwrap();
        assert_eq!(answers(&guide, requests, "rs2"), expected, "{percent} %");
        let status = guide.node1.ctl(&["status"]).unwrap();
        let text = format!("{percent} % of its weight so far");
        assert!(status.contains(&text), "{status}");
    }
}

#[test]
fn a_server_may_ask_to_be_drained() {
    let mut guide = start([1, 1], "");
    let text = config(100, [1, 1], "").replace("retries = 0", "retries = 0\nstatus_drain = 404");
    guide.node1.configure(&text).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    guide.rs1.withdraw("health").unwrap();
    let drained = ["draining", "up", "draining"];
    guide.node1.wait_for_backends(&drained).unwrap();
    assert_eq!(answers(&guide, 10, "rs2"), 10);
    let status = guide.node1.ctl(&["status"]).unwrap();
    assert!(status.contains("draining (by its checks)"), "{status}");
    guide.rs1.publish("health", b"well\n").unwrap();
    let ready = ["up", "up", "draining"];
    guide.node1.wait_for_backends(&ready).unwrap();
    guide.rs1.stop().unwrap();
    let down = ["down", "up", "draining"];
    guide.node1.wait_for_backends(&down).unwrap();
}

#[test]
fn a_backup_may_leave_checks_to_the_master() {
    let mut guide = start([1, 1], "");
    let text = config(98, [1, 1], "check_on_backup = false");
    guide.node2.configure(&text).unwrap();
    guide.node2.start(&guide.lab).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
    guide.rs1.withdraw("health").unwrap();
    let down = ["down", "up", "draining"];
    guide.node1.wait_for_backends(&down).unwrap();
    assert!(pool(&guide.node2).checks_paused);
    let attempts = || -> u64 {
        let checks = guide.node2.status().unwrap().checks;
        checks.iter().map(|c| c.checks[0].attempts).sum()
    };
    assert_eq!(attempts(), 0);
    guide.node1.stop().unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for_backends(&down).unwrap();
    assert!(!pool(&guide.node2).checks_paused);
}
