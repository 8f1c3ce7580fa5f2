//! `lbctl events`: what happened, and disagreements told once and counted.

use std::time::Duration;

use lab::{Guide, binaries, guide::VIP, wait};
use lb_user::{
    api::proto::{Event, EventPage},
    events::Kind,
    model::{Auth, VrrpState},
};

use crate::adverts;

fn page(guide: &Guide) -> EventPage {
    let text = guide.node1.ctl(&["--json", "events"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn of_kind(guide: &Guide, kind: Kind) -> Vec<Event> {
    let all = page(guide).events.into_iter();
    all.filter(|event| event.kind == kind).collect()
}

fn wait_for(guide: &Guide, kind: Kind, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
    wait::until(what, Duration::from_secs(10), || {
        Ok(of_kind(guide, kind).into_iter().find(|event| is_it(event)))
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", page(guide).events))
}

#[test]
fn events_tell_what_happened() {
    let guide = Guide::start().unwrap();
    let became = wait_for(&guide, Kind::Vrrp, "a transition", |event| {
        event.text.starts_with("BACKUP -> MASTER")
    });
    assert_eq!((became.subject.as_str(), became.peer), ("VI_1", None));
    wait_for(&guide, Kind::Daemon, "the start", |_| true);
    wait_for(&guide, Kind::DataPlane, "a generation", |_| true);

    // What `lbctl vrrp` says of a master, and of a backup.
    let shown = guide.node1.ctl(&["vrrp"]).unwrap();
    for part in [
        "VI_1  MASTER since 20",
        ": no advert from a master\n",
        "  next advert in ",
        "  no peer heard yet\n",
        "  adverts: ",
        "; at worst ",
        "  states entered: ",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = guide.node2.ctl(&["vrrp"]).unwrap();
    for part in [
        "VI_1  BACKUP since 20",
        "  master is down in ",
        "  peer 10.1.15.43 with priority 100, heard ",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    // Five adverts with another password are one event, and one line in the log.
    for _ in 0..5 {
        guide
            .client
            .within(|| adverts::send(&adverts::advert(|i| i.auth = Auth::Pass(*b"guessed!"))))
            .unwrap();
    }
    let odd = wait_for(&guide, Kind::Disagreement, "five of them", |event| {
        event.count == 5
    });
    assert_eq!(odd.subject, "VI_1");
    assert_eq!(odd.peer.as_deref(), Some("10.1.15.1"));
    assert!(odd.text.starts_with("wrong_password: "), "{}", odd.text);
    assert_eq!(of_kind(&guide, Kind::Disagreement).len(), 1);
    assert_eq!(guide.node1.log().matches("has another password").count(), 1);
    let text = guide.node1.ctl(&["events"]).unwrap();
    assert!(
        text.contains("VI_1: [10.1.15.1] wrong_password: has another password (5 times"),
        "{text}"
    );
    let text = guide.node1.ctl(&["vrrp"]).unwrap();
    assert!(
        text.contains("10.1.15.1 has another password (5 times)"),
        "{text}"
    );

    // One that goes on as master too.
    for _ in 0..3 {
        guide
            .client
            .within(|| {
                let mut advert = adverts::advert(|_| {});
                advert[22] = 50;
                adverts::send(&adverts::sealed(advert));
            })
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    let rival = wait_for(&guide, Kind::Disagreement, "a second master", |event| {
        event.text.starts_with("second_master")
    });
    assert_eq!(rival.peer.as_deref(), Some("10.1.15.1"));

    guide
        .node1
        .ctl(&["backend", "drain", "10.1.15.45"])
        .unwrap();
    wait_for(&guide, Kind::Operator, "an order", |event| {
        event.subject == format!("TCP {VIP}:80") && event.text.contains("drained")
    });
    guide.node1.ctl(&["reload"]).unwrap();
    wait_for(&guide, Kind::Reload, "a reload", |event| {
        event.text.starts_with("reloaded")
    });
    guide.node1.configure("nonsense = 1\n").unwrap();
    assert!(!guide.node1.lbctl(&["reload"]).unwrap().status.success());
    wait_for(&guide, Kind::Reload, "a refused one", |event| {
        event.text.starts_with("refused: ")
    });
    let reloads = guide.node1.status().unwrap().reloads;
    assert_eq!((reloads.applied, reloads.refused), (1, 1));

    // Who follows gets what comes, a line each, and nothing twice.
    let latest = page(&guide).latest;
    let lbctl = binaries::find("lbctl").unwrap();
    let socket = guide.lab.directory().join("node1.sock");
    let mut follower = std::process::Command::new("timeout");
    follower.arg("3").arg(lbctl).arg("--socket").arg(socket);
    follower.args([
        "--json",
        "events",
        "--follow",
        "--since",
        &latest.to_string(),
    ]);
    let follower = follower
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    guide.node1.ctl(&["vrrp", "announce", "VI_1"]).unwrap();
    let output = String::from_utf8(follower.wait_with_output().unwrap().stdout).unwrap();
    let events: Vec<Event> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let announced = events.iter().filter(|e| e.text == "addresses announced");
    assert_eq!(announced.count(), 1, "{output}");
    assert!(events.iter().all(|event| event.id > latest));

    guide.node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
    wait_for(&guide, Kind::Vrrp, "the failover", |event| {
        event.text.starts_with("MASTER -> BACKUP: an operator")
    });
}
