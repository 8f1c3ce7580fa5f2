//! What instances watch, right and wrong.

use std::time::Duration;

use super::{GUIDE, errors, parse};
use crate::model::{InitialValue, LinkDamping, ProcessPattern, Rest, TrackRoute, Tracked};

/// The guide's file with something in front of the service.
fn with(text: &str) -> String {
    GUIDE.replacen("[[service]]", &format!("{text}\n[[service]]"), 1)
}

#[test]
fn defaults() {
    let text = with(
        "link_up_delay = \"2s\"
        [[vrrp.track]]
        process = \"web\"
        [[vrrp.track]]
        file = \"fit\"
        [[vrrp.track]]
        file = \"heavy\"
        weight = -254
        [[vrrp.track]]
        route = \"2001:db8::/32\"
        [[vrrp.track]]
        service = \"10.1.15.50:80\"
        quorum = 2
        weight = -5
        [[track_process]]
        name = \"web\"
        process = \"nginx\"
        delay = \"2s\"
        fork_delay = \"100ms\"
        restart = \"start it\"
        [[track_process]]
        name = \"none\"
        process = \"sh -c\"
        param_match = \"initial\"
        quorum_max = 0
        [[track_file]]
        name = \"fit\"
        file = \"/run/fit\"
        [[track_file]]
        name = \"heavy\"
        file = \"/run/heavy\"
        weight = 7
        init_file = -3",
    );
    let config = parse("lbd.toml", &text, "host").unwrap_or_else(|e| panic!("{e}"));
    let instance = &config.instances[0];
    assert_eq!(
        instance.damping,
        LinkDamping {
            up_delay: Duration::from_secs(2),
            ..LinkDamping::default()
        }
    );
    let watches: Vec<(String, i16)> = instance
        .watches
        .iter()
        .map(|watch| (watch.what.to_string(), watch.weight))
        .collect();
    let expected = [
        ("process web", 0),
        ("file fit", 1),
        ("file heavy", -254),
        ("route 2001:db8::/32", 0),
        ("service TCP 10.1.15.50:80 (quorum 2)", -5),
    ];
    assert_eq!(
        watches,
        expected.map(|(what, weight)| (what.to_owned(), weight))
    );
    let Tracked::Route(route) = &instance.watches[3].what else {
        panic!("a route");
    };
    assert_eq!(route.table, TrackRoute::MAIN);

    let [web, none] = &config.track_processes[..] else {
        panic!("two");
    };
    assert_eq!(web.pattern, ProcessPattern::Name("nginx".into()));
    assert_eq!((web.quorum, web.quorum_max), (1, None));
    assert_eq!(web.fork_delay, Duration::from_millis(100));
    assert_eq!(web.terminate_delay, Duration::from_secs(2));
    let restart = web.restart.as_ref().unwrap();
    assert_eq!(restart.command, ["start", "it"]);
    assert_eq!(
        (restart.tries, restart.interval),
        (3, Duration::from_secs(5))
    );
    let words = vec!["sh".to_owned(), "-c".to_owned()];
    let rest = Rest::Letters;
    assert_eq!(none.pattern, ProcessPattern::CommandLine { words, rest });
    assert_eq!((none.quorum, none.quorum_max), (0, Some(0)));

    let [fit, heavy] = &config.track_files[..] else {
        panic!("two");
    };
    assert_eq!((fit.weight, fit.init), (1, None));
    let init = InitialValue {
        value: -3,
        overwrite: false,
    };
    assert_eq!((heavy.weight, heavy.init), (7, Some(init)));
}

/// What is wrong, and what the error must say.
#[test]
fn errors_are_found() {
    let web = "[[track_process]]\nname = \"web\"\nprocess = \"nginx\"\n";
    let rows: [(&str, &[&str]); 33] = [
        (
            "[[vrrp.track]]\nscript = \"chk\"",
            &["there is no [[track_script]] `chk`"],
        ),
        (
            "[[vrrp.track]]\nprocess = \"x\"",
            &["there is no [[track_process]] `x`"],
        ),
        (
            "[[vrrp.track]]\nfile = \"x\"",
            &["there is no [[track_file]] `x`"],
        ),
        (
            "[[vrrp.track]]\nweight = 5",
            &["names one thing", "a `route`"],
        ),
        (
            "[[vrrp.track]]\ninterface = \"a\"\nscript = \"b\"",
            &["names one thing"],
        ),
        (
            "[[vrrp.track]]\ninterface = \"eth1\"\nweight = 254",
            &["`weight` is 254", "-253 to 253"],
        ),
        (
            "[[vrrp.track]]\ninterface = \"eth1\"\nvia = \"10.1.0.1\"",
            &["`via` belongs to a `route`"],
        ),
        (
            "[[vrrp.track]]\ninterface = \"eth1\"\nquorum = 2",
            &["`quorum` belongs to a `service`"],
        ),
        (
            "[[vrrp.track]]\ninterface = \"eth1\"\n[[vrrp.track]]\ninterface = \"eth1\"",
            &["interface eth1 is watched twice"],
        ),
        (
            "[[vrrp.track]]\nroute = \"10.0.0.1/8\"",
            &["not the destination of a route", "host bits"],
        ),
        (
            "[[vrrp.track]]\nroute = \"::1/127\"",
            &["not the destination of a route"],
        ),
        (
            "[[vrrp.track]]\nroute = \"10.0.0.0\"",
            &["not the destination of a route"],
        ),
        (
            "[[vrrp.track]]\nroute = \"10.0.0.0/33\"",
            &["not the destination of a route"],
        ),
        (
            "[[vrrp.track]]\nroute = \"0.0.0.0/0\"\ntable = 0",
            &["`table` is 0", "1 to 4294967295"],
        ),
        (
            "[[vrrp.track]]\nroute = \"0.0.0.0/0\"\ndev = \"a/b\"",
            &["cannot be an interface name"],
        ),
        (
            "[[vrrp.track]]\nservice = \"10.1.15.50:81\"",
            &["there is no service `10.1.15.50:81`", "TCP 10.1.15.50:80"],
        ),
        (
            "[[vrrp.track]]\nservice = \"10.1.15.50:80\"\nquorum = 3",
            &["`quorum` 3 is never met", "has 2 real servers"],
        ),
        (
            "[[track_process]]\nname = \"web\"",
            &["`track_process` needs `process`"],
        ),
        (
            "[[track_process]]\nprocess = \"web\"",
            &["`track_process` needs `name`"],
        ),
        (
            "[[track_process]]\nname = \"web\"\nprocess = \"nginx -g\"",
            &["more than a name", "command_line = true"],
        ),
        (
            "[[track_process]]\nname = \"web\"\nprocess = \"/bin/sh\"",
            &["cannot be a name of a program"],
        ),
        (
            &format!("{web}quorum = 3\nquorum_max = 2"),
            &["`quorum_max` 2 is below `quorum` 3"],
        ),
        (&format!("{web}quorum = 0"), &["`quorum = 0` is always met"]),
        (
            &format!("{web}restart_tries = 3"),
            &["nothing is restarted without `restart`"],
        ),
        (
            &format!("{web}param_match = \"some\""),
            &["`param_match` cannot be \"some\"", "\"partial\""],
        ),
        (
            &format!("{web}command_line = false\nparam_match = \"partial\""),
            &["`param_match` without `command_line`"],
        ),
        (&format!("{web}{web}"), &["duplicate track process `web`"]),
        (
            "[[track_file]]\nname = \"f\"\nfile = \"rel\"",
            &["`file` must be an absolute path"],
        ),
        (
            "[[track_file]]\nname = \"f\"\nfile = \"/f\"\nweight = 255",
            &["-254 to 254"],
        ),
        (
            "[[track_file]]\nname = \"f\"\nfile = \"/f\"\ninit_overwrite = true",
            &["`init_overwrite` without `init_file`"],
        ),
        (
            "link_hold = \"3s\"",
            &["losses of the link are not counted without `link_flaps`"],
        ),
        (
            "link_flaps = 3\nlink_hold = \"3s\"\nlink_hold_max = \"2s\"",
            &["`link_hold_max` is below `link_hold`"],
        ),
        (
            "[[track_script]]\nname = \"chk\"",
            &["`command`", "a program with its arguments"],
        ),
    ];
    for (text, expected) in rows {
        let found = errors(&with(text));
        for part in expected {
            assert!(found.contains(part), "{text}\n{part}\n{found}");
        }
    }
}

#[test]
fn a_watched_service_must_be_named_exactly_and_be_checked() {
    let udp = "[[service]]\naddress = \"10.1.15.50:80\"\nprotocol = \"udp\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n";
    let two = |name: &str| {
        let watch = format!("[[vrrp.track]]\nservice = \"{name}\"\n{udp}");
        errors(&with(&watch))
    };
    let found = two("10.1.15.50:80");
    assert!(
        found.contains("more than one service is called so"),
        "{found}"
    );
    assert!(found.contains("\"TCP 10.1.15.50:80\""), "{found}");
    assert_eq!(two("TCP 10.1.15.50:80"), "valid");
    let found = two("udp 10.1.15.50:80");
    assert!(
        found.contains("has no check: it would always be up"),
        "{found}"
    );
}
