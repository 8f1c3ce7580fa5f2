//! Health checks against real nginx: what counts as up, what as down, and what is said about it.

use std::time::{Duration, Instant};

use lab::{
    Director, Guide,
    guide::{self, Settings},
    wait,
};

/// The guide's configuration with another check.
fn checked(check: &str) -> String {
    let config = guide::config(&Settings::of(100));
    let begin = config.find("[service.check]").unwrap();
    let end = config.find("[[service.backend]]").unwrap();
    format!(
        "{}[service.check]\n{check}\n{}",
        &config[..begin],
        &config[end..]
    )
}

/// Waits until rs1 is up or down, and returns what is said about it.
fn wait_for_rs1(director: &Director, up: bool) -> String {
    let what = format!("rs1 is {}", if up { "up" } else { "down" });
    wait::until(&what, Duration::from_secs(15), || {
        let checks = director.status()?.checks;
        let rs1 = checks
            .into_iter()
            .find(|check| check.backend == "10.1.15.45" && check.up == up);
        Ok(rs1.map(|check| check.cause.unwrap_or_default()))
    })
    .unwrap()
}

#[test]
fn what_is_asked_decides() {
    let mut guide = Guide::prepare().unwrap();
    let quick = "interval = \"200ms\"\nconnect_timeout = \"500ms\"\nretries = 1\ndelay_before_retry = \"100ms\"";
    guide
        .node1
        .configure(&checked(&format!("type = \"http\"\n{quick}")))
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    let rows: &[(&str, bool, &str)] = &[
        (
            "type = \"http\"\npath = \"/missing\"",
            false,
            "status 404 instead of 200",
        ),
        (
            "type = \"http\"\npath = \"/missing\"\nstatus = 404",
            true,
            "",
        ),
        ("type = \"http\"\nport = 81", false, "Connection refused"),
        ("type = \"tcp\"", true, ""),
        ("type = \"tcp\"\nport = 81", false, "Connection refused"),
        ("type = \"http\"\nhost = \"www.example.com\"", true, ""),
    ];
    for (check, up, cause) in rows {
        guide
            .node1
            .configure(&checked(&format!("{check}\n{quick}")))
            .unwrap();
        guide.node1.ctl(&["reload"]).unwrap();
        let said = wait_for_rs1(&guide.node1, *up);
        assert!(said.contains(cause), "{check}: {said}");
    }
    // The last row left a check of the guide's kind running: the server goes and returns.
    guide.rs1.stop().unwrap();
    assert!(
        wait_for_rs1(&guide.node1, false).contains("cannot connect to 10.1.15.50:80 on 10.1.15.45")
    );
    guide.rs1.resume(&guide.lab).unwrap();
    assert_eq!(wait_for_rs1(&guide.node1, true), "");
}

/// A server that is cut off answers nothing at all: the connect time-out and every retry pass first.
#[test]
fn silence_costs_the_timeouts_and_retries() {
    let mut guide = Guide::prepare().unwrap();
    let check = "type = \"tcp\"\ninterval = \"200ms\"\nconnect_timeout = \"400ms\"\nretries = 2\ndelay_before_retry = \"300ms\"";
    guide.node1.configure(&checked(check)).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    wait_for_rs1(&guide.node1, true);
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    guide.rs1.node().silently(false).unwrap();
    let said = wait_for_rs1(&guide.node1, false);
    // Three attempts of 400 ms with two delays of 300 ms between them; an attempt may have begun.
    let took = began.elapsed();
    assert!(
        said.contains("did not accept a connection within 400ms"),
        "{said}"
    );
    assert!(took >= Duration::from_millis(1_400), "{took:?}");
    guide.rs1.node().silently(true).unwrap();
    wait_for_rs1(&guide.node1, true);
}

/// A restart forgets nothing: who was down stays down until its check has passed as often as it must.
#[test]
fn a_restart_remembers_who_was_down() {
    let mut guide = Guide::prepare().unwrap();
    let check = "type = \"tcp\"\ninterval = \"200ms\"\nconnect_timeout = \"500ms\"\nretries = 0\nrise = 5\nrising_interval = \"1s\"";
    guide.node1.configure(&checked(check)).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    for killed in [false, true] {
        guide.rs1.stop().unwrap();
        let said = wait_for_rs1(&guide.node1, false);
        let of = |director: &Director, address: &str| {
            let checks = director.status().unwrap().checks;
            checks.into_iter().find(|c| c.backend == address).unwrap()
        };
        let before = of(&guide.node1, "10.1.15.45");
        // What is known is written down within a second, and when the daemon ends in order.
        if killed {
            std::thread::sleep(Duration::from_millis(1_500));
            guide.node1.kill().unwrap();
        } else {
            guide.node1.stop().unwrap();
        }
        guide.rs1.resume(&guide.lab).unwrap();
        guide.node1.start(&guide.lab).unwrap();
        let after = of(&guide.node1, "10.1.15.45");
        assert!(!after.up, "killed {killed}: {after:?}");
        assert_eq!(after.cause.as_deref(), Some(said.as_str()));
        assert_eq!(after.since, before.since);
        assert!(of(&guide.node1, "10.1.15.46").up);
        assert_eq!(wait_for_rs1(&guide.node1, true), "");
    }
    let file = guide.node1.config.with_extension("health");
    std::fs::write(&file, "{}").unwrap();
    guide.node1.stop().unwrap();
    // What cannot be read is not believed, and does not keep the daemon from starting.
    std::fs::write(&file, "{\"version\":1,\"servers\":7}").unwrap();
    guide.node1.start(&guide.lab).unwrap();
    assert!(
        guide.node1.log().contains("is of no use"),
        "{}",
        guide.node1.log()
    );
    wait_for_rs1(&guide.node1, true);
}
