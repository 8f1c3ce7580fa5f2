//! What happens when real servers fail, in the configuration.

use std::time::Duration;

use super::{GUIDE, errors, parse};
use crate::model::{OnDown, PoolRules, Target, VirtualService};

/// The guide's file with more keys of the service.
fn with(keys: &str) -> String {
    GUIDE.replacen("sorry_server = \"local\"\n", &format!("{keys}\n"), 1)
}

fn service(text: &str) -> VirtualService {
    let config = parse("lbd.toml", text, "host").unwrap();
    config.services[0].clone()
}

#[test]
fn the_defaults_are_keepaliveds() {
    let service = service(GUIDE);
    assert_eq!(service.pool, PoolRules::default());
    assert_eq!((service.pool.quorum, service.pool.hysteresis), (1, 0));
    assert!(!service.pool.alpha && !service.pool.omega && service.pool.check_on_backup);
    assert!(!service.backends[0].member.inhibit);
}

#[test]
fn everything_given() {
    let text = with(
        "sorry_server = [\"10.1.15.47\", \"local\"]
quorum = 3
hysteresis = 1
quorum_up = \"/sbin/up a\"
quorum_down = [\"/sbin/down\", \"b c\"]
alpha = true
omega = true
inhibit_on_failure = true
panic_threshold = 50
panic_window = \"10s\"
slow_start = \"30s\"
on_down = \"keep\"
check_on_backup = false
notify_up = \"/etc/up\"
notify_down = \"/etc/down\"
notify = \"/etc/any\"
notify_timeout = \"5s\"",
    );
    let text = format!("{text}inhibit_on_failure = false\nnotify_up = \"/etc/own\"\n");
    let service = service(&text);
    let sorry = Target::Host([10, 1, 15, 47].into());
    assert_eq!(service.sorry, [sorry, Target::Local]);
    let pool = &service.pool;
    assert_eq!((pool.quorum, pool.hysteresis), (3, 1));
    assert!(pool.alpha && pool.omega && !pool.check_on_backup);
    assert_eq!(pool.on_down, OnDown::Keep);
    let second = Duration::from_secs(1);
    assert_eq!(pool.panic_threshold, Some(50));
    assert_eq!(
        (pool.panic_window, pool.slow_start, pool.notify.timeout),
        (10 * second, 30 * second, 5 * second)
    );
    let words = |command: &Option<Vec<String>>| command.clone().unwrap().join("|");
    assert_eq!(words(&pool.notify.quorum_up), "/sbin/up|a");
    assert_eq!(words(&pool.notify.quorum_down), "/sbin/down|b c");
    assert_eq!(words(&pool.notify.any), "/etc/any");
    let [one, two] = &service.backends[..] else {
        panic!("{service:?}");
    };
    // What a real server says of itself goes before what the service says of all.
    assert!(one.member.inhibit && !two.member.inhibit);
    assert_eq!(words(&one.member.notify_up), "/etc/up");
    assert_eq!(words(&two.member.notify_up), "/etc/own");
    assert_eq!(words(&two.member.notify_down), "/etc/down");
}

/// Keys, and what the error must say about them.
#[test]
fn what_is_refused_and_how() {
    let rows = [
        ("quorum = 0", "`quorum` is 0"),
        (
            "quorum = 2\nhysteresis = 2",
            "`hysteresis` 2 is not below `quorum` 2",
        ),
        ("hysteresis = 1", "`hysteresis` 1 is not below `quorum` 1"),
        (
            "quorum = 5",
            "need a live weight of 5, and all weights together are 4",
        ),
        ("quorum = 4\nhysteresis = 1", "need a live weight of 5"),
        ("panic_threshold = 100", "`panic_threshold` is 100"),
        (
            "panic_window = \"5s\"",
            "`panic_window` without `panic_threshold`",
        ),
        ("on_down = \"drop\"", "`on_down` cannot be \"drop\""),
        ("on_down = \"reset\"", "valid"),
        (
            "protocol = \"sctp\"\non_down = \"reset\"",
            "`on_down` \"reset\" with protocol SCTP",
        ),
        (
            "scheduler = \"mh\"\nslow_start = \"5s\"",
            "`slow_start` needs weights",
        ),
        ("scheduler = \"mh\"\nslow_start = \"0s\"", "valid"),
        ("scheduler = \"wlc\"\nslow_start = \"5s\"", "valid"),
        (
            "sorry_server = [\"local\", \"127.0.0.1\"]",
            "duplicate sorry server 127.0.0.1",
        ),
        ("sorry_server = [\"local\", \"10.1.15.47\"]", "valid"),
        ("quorum_up = 5", "`quorum_up` must be a command"),
    ];
    for (keys, expected) in rows {
        let said = errors(&with(keys));
        assert!(said.contains(expected), "{keys}: {said}");
    }
    let one = GUIDE.replacen(
        "[[service.backend]]\naddress = \"10.1.15.46:80\"\nweight = 3\n",
        "",
        1,
    );
    let said = errors(&one.replacen("sorry_server", "panic_threshold = 50\nsorry_server", 1));
    assert!(
        said.contains("`panic_threshold` with a single real server"),
        "{said}"
    );
}

#[test]
fn sorry_servers_may_be_checked() {
    let check = |sorry: &str| {
        let keys = format!("sorry_server = {sorry}\n[[service.sorry_check]]\ntype = \"tcp\"\n");
        GUIDE.replacen("sorry_server = \"local\"\n", &keys, 1)
    };
    let service = service(&check("[\"10.1.15.47\", \"local\"]"));
    assert_eq!(service.sorry_checks.len(), 1);
    for (sorry, said) in [
        (
            "\"local\"",
            "`sorry_check` without a sorry server on another host",
        ),
        (
            "\"10.1.15.45\"",
            "10.1.15.45 is a real server of the service too",
        ),
    ] {
        let errors = errors(&check(sorry));
        assert!(errors.contains(said), "{sorry}: {errors}");
    }
    let odd = check("\"10.1.15.47\"").replacen("type = \"tcp\"", "type = \"tcp\"\npath = \"/\"", 1);
    assert!(errors(&odd).contains("path"), "{}", errors(&odd));
}

#[test]
fn a_status_may_ask_to_be_drained() {
    let check = "type = \"http\"\nstatus_drain = [404, \"510-511\"]\n";
    let text = GUIDE.replacen("type = \"http\"\n", check, 1);
    let service = service(&text);
    let crate::model::CheckKind::Http(http) = &service.backends[0].checks[0].kind else {
        panic!("{service:?}");
    };
    assert_eq!(http.requests[0].drain, [(404, 404), (510, 511)]);
    assert_eq!(http.requests[0].status, [(200, 200)]);
    let bad = GUIDE.replacen(
        "type = \"http\"\n",
        "type = \"http\"\nstatus_drain = 99\n",
        1,
    );
    assert!(errors(&bad).contains("`status_drain` cannot be 99"));
}
