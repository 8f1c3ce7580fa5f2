//! Health checks in the configuration.

use std::time::Duration;

use super::{GUIDE, errors, parse};
use crate::model::{BodyRule, Check, CheckKind, HttpVersion};

/// The guide's file with another check of the service.
fn with(check: &str) -> String {
    let text = GUIDE.replacen("type = \"http\"\ninterval = \"1s\"\n", check, 1);
    assert_ne!(text, GUIDE);
    text
}

fn checks_of(text: &str) -> [Vec<Check>; 2] {
    let config = parse("lbd.toml", text, "host").unwrap();
    let backends = &config.services[0].backends;
    [backends[0].checks.clone(), backends[1].checks.clone()]
}

#[test]
fn a_check_has_defaults() {
    let [one, two] = checks_of(GUIDE);
    assert_eq!(one, two);
    let check = &one[0];
    let CheckKind::Http(http) = &check.kind else {
        panic!("{check:?}");
    };
    let request = &http.requests[0];
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("GET", "/")
    );
    assert_eq!((http.version, &request.body), (HttpVersion::One, &None));
    assert_eq!(request.status, [(200, 200)]);
    let second = Duration::from_secs(1);
    let timing = check.timing;
    let intervals = (
        timing.interval,
        timing.rising_interval,
        timing.down_interval,
    );
    assert_eq!(intervals, (second, second, second));
    assert_eq!((timing.rise, timing.fall, timing.retries), (1, 1, 1));
    assert_eq!((timing.warmup, timing.jitter), (second, 0));
}

#[test]
fn several_checks_and_own_ones() {
    let text = with("type = \"tcp\"\n[[service.check]]\ntype = \"http\"\n").replacen(
        "[service.check]",
        "[[service.check]]",
        1,
    );
    let [one, two] = checks_of(&text);
    assert_eq!((one.len(), two.len()), (2, 2));
    let text = format!("{text}[[service.backend.check]]\ntype = \"tcp\"\nport = 81\n");
    let [one, two] = checks_of(&text);
    assert_eq!((one.len(), two.len(), two[0].port), (2, 1, Some(81)));
}

#[test]
fn requests_and_what_they_expect() {
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let text = with(&format!(
        "type = \"https\"\nhttp_version = \"2\"\nserver_name = \"a.example\"\n[[service.check.url]]\nmethod = \"OPTIONS\"\nstatus = [204, \"300-399\"]\nbody = \"^a+$\"\n[[service.check.url]]\npath = \"/b\"\nhost = \"b.example\"\nstatus = \"200-299\"\nbody_sha256 = \"{digest}\"\n"
    ));
    let [one, _] = checks_of(&text);
    let CheckKind::Http(http) = &one[0].kind else {
        panic!("{one:?}");
    };
    assert_eq!(one[0].kind.name(), "https");
    assert_eq!(http.version, HttpVersion::Two);
    assert_eq!(http.requests[0].status, [(204, 204), (300, 399)]);
    assert_eq!(
        http.requests[0].body,
        Some(BodyRule::Matches("^a+$".into()))
    );
    assert_eq!(http.requests[1].status, [(200, 299)]);
    let Some(BodyRule::Sha256(bytes)) = http.requests[1].body else {
        panic!("{http:?}");
    };
    assert_eq!((bytes[0], bytes[31]), (0x9f, 0x08));
}

/// A check, and what the error must say about it.
#[test]
fn what_is_refused_and_how() {
    let rows = [
        (
            "type = \"tcp\"\nverify = false",
            "`verify` belongs to checks of type \"https\"",
        ),
        (
            "type = \"http\"\nca_file = \"/a\"",
            "`ca_file` belongs to checks of type \"https\"",
        ),
        (
            "type = \"https\"\nca_file = \"/a\"\nverify = false",
            "`ca_file` is of no use",
        ),
        (
            "type = \"https\"\nca_file = \"a\"",
            "`ca_file` must be an absolute path",
        ),
        (
            "type = \"http\"\nstatus = \"200-\"",
            "`status` cannot be 200-",
        ),
        (
            "type = \"http\"\nstatus = [200, \"299-200\"]",
            "`status` cannot be 299-200",
        ),
        ("type = \"http\"\nstatus = []", "`status` is empty"),
        (
            "type = \"http\"\nstatus = true",
            "`status` must be a number, a string, or a list",
        ),
        (
            "type = \"http\"\nbody = \"(\"",
            "`body` is not a regular expression: error: unclosed group",
        ),
        (
            "type = \"http\"\nbody_sha256 = \"9f86\"",
            "`body_sha256` is no SHA-256",
        ),
        (
            "type = \"http\"\nbody = \"a\"\nmethod = \"HEAD\"",
            "answers to HEAD have no body",
        ),
        ("type = \"http\"\npath = \"a\"", "`path` must begin with /"),
        ("type = \"http\"\nhost = \"a b\"", "`host` cannot be sent"),
        (
            "type = \"http\"\npath = \"/a\"\n[[service.check.url]]\npath = \"/b\"",
            "`path` beside [[service.check.url]]",
        ),
        ("type = \"tcp\"\nrise = 0", "`rise` is 0"),
        ("type = \"tcp\"\njitter = 51", "`jitter` is 51"),
        (
            "type = \"tcp\"\ninterval = \"50ms\"",
            "`interval` is out of range",
        ),
        (
            "type = \"tcp\"\nsource_address = \"2001:db8::1\"",
            "10.1.15.45 cannot be asked from 2001:db8::1",
        ),
        (
            "type = \"tcp\"\naddress = \"224.0.0.1\"",
            "224.0.0.1 is a multicast address",
        ),
        (
            "type = \"tcp\"\nanswer_timeout = \"1s\"",
            "`answer_timeout` belongs to checks of type \"http\", \"https\", \"grpc\"",
        ),
        (
            "type = \"icmp\"\nconnect_timeout = \"1s\"",
            "`connect_timeout` belongs to checks",
        ),
        (
            "type = \"grpc\"\nverify = false",
            "`verify` needs `tls = true`",
        ),
        (
            "type = \"grpc\"\ngrpc_service = \"a b\"",
            "`grpc_service` cannot be sent",
        ),
        ("type = \"dns\"", "a check of type \"dns\" needs `name`"),
        (
            "type = \"dns\"\nname = \"a\"\nrecord = \"AXFR\"",
            "`record` cannot be \"AXFR\"",
        ),
        ("type = \"udp\"\npayload = \"6?\"", "`payload` has a `?`"),
        (
            "type = \"udp\"\npayload = \"616\"",
            "`payload` is not hexadecimal",
        ),
        (
            "type = \"udp\"\nreply = \"xx\"",
            "`reply` is not hexadecimal",
        ),
        (
            "type = \"exec\"",
            "a check of type \"exec\" needs `command`",
        ),
        (
            "type = \"exec\"\ncommand = \"true\"",
            "`command` must begin with an absolute path",
        ),
        ("type = \"agent\"", "a check of type \"agent\" needs `port`"),
        (
            "type = \"agent\"\nport = 9001\non_silence = \"up\"",
            "`on_silence` cannot be \"up\"",
        ),
        ("type = \"file\"", "a check of type \"file\" needs `file`"),
        (
            "type = \"file\"\nfile = \"a\"",
            "`file` must be an absolute path",
        ),
    ];
    for (check, expected) in rows {
        let message = errors(&with(&format!("{check}\n")));
        assert!(
            message.contains(expected),
            "{check}: no `{expected}` in\n{message}"
        );
    }
}
