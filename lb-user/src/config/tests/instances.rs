//! Keys of an instance's trailers, and when it announces.

use std::time::Duration;

use super::*;
use crate::model::{AnnounceTiming, HmacMode, Instance};

const KEY: &str = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn text(lines: &str, tables: &str) -> String {
    format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 20\n\
         addresses = [\"10.1.15.50/16\"]\n{lines}\n{tables}"
    )
}

fn read(lines: &str, tables: &str) -> Instance {
    let text = text(lines, tables);
    let mut config = parse("lbd.toml", &text, "host").unwrap_or_else(|error| panic!("{error}"));
    config.instances.remove(0)
}

fn hmac(more: &str) -> String {
    format!(
        "[vrrp.auth_hmac]\nactive_key = 1\n{more}\n[[vrrp.auth_hmac.key]]\nid = 1\nvalue = \"{KEY}\"\n"
    )
}

#[test]
fn trailers() {
    let Auth::Hmac(auth) = read("version = 3\nadvert_interval = \"100ms\"", &hmac("")).auth else {
        panic!("no hmac");
    };
    assert_eq!(auth.mode, HmacMode::Enforce);
    assert_eq!(auth.window, Some(Duration::from_secs(5)), "the least");
    assert_eq!(auth.sending().unwrap().secret.bytes()[31], 31);
    let shown = format!("{auth:?}");
    assert!(
        shown.contains("32 bytes") && !shown.contains("1, 2, 3"),
        "{shown}"
    );

    let Auth::Hmac(auth) = read("advert_interval = \"20s\"", &hmac("mode = \"permissive\"")).auth
    else {
        panic!("no hmac");
    };
    assert_eq!(auth.window, Some(Duration::from_secs(60)));
    assert_eq!(auth.mode, HmacMode::Permissive);
    let Auth::Hmac(auth) = read("", &hmac("anti_replay = \"monotonic\"")).auth else {
        panic!("no hmac");
    };
    assert_eq!(auth.window, None);
}

#[test]
fn trailers_that_are_refused() {
    let second = "[[vrrp.auth_hmac.key]]\nid = 1\nfile = \"/etc/lbd/key\"\n";
    let rows = [
        ("password = \"x\"", hmac(""), "`password` and `auth_hmac`"),
        (
            "",
            hmac("").replace("active_key = 1", "active_key = 2"),
            "no key has that id",
        ),
        (
            "",
            hmac("").replace("active_key = 1", ""),
            "needs `active_key`",
        ),
        ("", hmac("") + second, "two keys have the id 1"),
        (
            "",
            hmac("").replace(KEY, "secret"),
            "a key has 32 to 64 bytes, this one has 6",
        ),
        ("", hmac("").replace(KEY, "hex:xy"), "hexadecimal digits"),
        ("", hmac("").replace("value =", "file ="), "absolute path"),
        (
            "",
            hmac("") + "file = \"/etc/lbd/key\"",
            "`value` and `file`",
        ),
        ("", hmac("time_window = \"301s\""), "out of range"),
        ("", hmac("time_window = \"1500ms\""), "whole seconds"),
        (
            "",
            hmac("anti_replay = \"monotonic\"\ntime_window = \"5s\""),
            "without clocks",
        ),
        (
            "",
            hmac("mode = \"off\""),
            "this version has: \"enforce\", \"permissive\"",
        ),
        (
            "",
            "[vrrp.auth_hmac]\nactive_key = 1\n".to_owned(),
            "needs `key`",
        ),
    ];
    for (lines, tables, expected) in rows {
        let message = errors(&text(lines, &tables));
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let many: String = (2..=17)
        .map(|id| format!("[[vrrp.auth_hmac.key]]\nid = {id}\nvalue = \"{KEY}\"\n"))
        .collect();
    assert!(errors(&text("", &(hmac("") + &many))).contains("more than 16 keys"));
}

#[test]
fn announcements() {
    assert_eq!(read("", "").announce, AnnounceTiming::default());
    assert_eq!(read("", "").announce.refresh, Duration::from_secs(60));
    let timing = read(
        "garp_master_repeat = 2\ngarp_master_delay = \"3s\"\ngarp_interval = \"1ms\"",
        "",
    )
    .announce;
    assert_eq!(timing.lower_prio_repeat, 2, "as the master's");
    assert_eq!(timing.lower_prio_delay, Duration::from_secs(3));
    assert_eq!(timing.arp_interval, Duration::from_millis(1));
    let none = read(
        "garp_master_refresh = \"0s\"\ngarp_lower_prio_repeat = 0",
        "",
    )
    .announce;
    assert_eq!((none.refresh, none.lower_prio_repeat), (Duration::ZERO, 0));
    for (line, expected) in [
        ("garp_master_repeat = 0", "1 to 100"),
        ("garp_lower_prio_repeat = 101", "0 to 100"),
        ("gna_interval = \"2s\"", "`gna_interval` is out of range"),
        (
            "garp_master_delay = \"2days\"",
            "`garp_master_delay` is out of range",
        ),
    ] {
        let message = errors(&text(line, ""));
        assert!(message.contains(expected), "{expected}: {message}");
    }
}
