//! Servers that are slow, silent, endless or insane: every one is told from a good one in time, and none
//! costs the director more than it should.

use std::{io::Write, net::TcpStream, thread::sleep, time::Duration};

use lab::{
    servers::{Serve, drip, flood, flood_datagrams, heard, reset, say, silent},
    wait,
};

use crate::checked::{Checked, Expect, Servers, TIMING};
use Expect::{Down, Up};

/// Ports, and what is done to who connects there. Those of HTTP listen first: what a client hears before it has asked
/// is an error to it if it comes in time, so that only 1007, which says nothing of use in any case, speaks at once.
const SERVERS: [(u16, Serve); 19] = [
    (1001, silent),
    (1002, reset),
    (1003, |_| ()),
    (1004, |stream| {
        if heard(stream) {
            drip(stream, b"HTTP/1.1 200 OK\r\nX: ", b"x");
        }
    }),
    (1005, |stream| {
        if heard(stream) {
            flood(stream, b"HTTP/1.1 200 OK\r\n", b"X-Header: 0123456789\r\n");
        }
    }),
    (1006, |stream| {
        if heard(stream) {
            flood(stream, b"HTTP/1.1 200 OK\r\n\r\n", &[b'b'; 1024]);
        }
    }),
    (1007, |stream| {
        flood(stream, b"", b"\x00\xff\x16\x03garbage\r\n");
    }),
    (1008, |stream| {
        answer_after(stream, Duration::from_millis(200));
    }),
    (1009, |stream| answer_after(stream, Duration::from_secs(2))),
    (1010, |stream| {
        if heard(stream) {
            drip(stream, b"HTTP/1.1 200 OK\r\n\r\n", b"b");
        }
    }),
    (1011, |stream| {
        if heard(stream) {
            say(
                stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
            );
        }
    }),
    // SMTP.
    (1021, |stream| say(stream, b"421 too busy\r\n")),
    (1022, |stream| flood(stream, b"220", b"-again")),
    (1023, |stream| flood(stream, b"", b"220-again\r\n")),
    (1024, |stream| drip(stream, b"220 ", b"x")),
    (1025, |stream| say(stream, b"220 hello\r\nwhat?\r\n")),
    // Agents.
    (1031, |stream| flood(stream, b"", b"up")),
    (1032, |stream| say(stream, b"hello world\n")),
    // HTTP/2: SETTINGS, and then nothing.
    (1041, |stream| {
        if stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).is_ok() {
            silent(stream);
        }
    }),
];

#[test]
fn nobody_fools_a_check_or_keeps_it() {
    let mut checked = Checked::prepare().unwrap();
    let mut servers = Servers::new(&checked.server);
    for (port, serve) in SERVERS {
        servers.tcp(port, serve).unwrap();
    }
    servers
        .spawn(|ended| drop(flood_datagrams(1053, &ended)))
        .unwrap();
    let rows: &[(&str, Expect)] = &[
        // A connection is all that is asked for.
        ("type = \"tcp\"\nport = 1001", Up),
        (
            "type = \"tcp\"\nport = 1001\naddress = \"10.1.15.99\"",
            Down("10.1.15.99:1001"),
        ),
        (
            "type = \"http\"\nport = 1001",
            Down("did not answer within 600ms"),
        ),
        (
            "type = \"http\"\nport = 1001\nanswer_timeout = \"5s\"\ntimeout = \"300ms\"",
            Down("did not pass the check within 300ms"),
        ),
        ("type = \"http\"\nport = 1002", Down("10.1.15.45:1002")),
        (
            "type = \"http\"\nport = 1003",
            Down("no HTTP answer from 10.1.15.45:1003"),
        ),
        (
            "type = \"http\"\nport = 1004",
            Down("did not answer within 600ms"),
        ),
        (
            "type = \"http\"\nport = 1005",
            Down("no HTTP answer from 10.1.15.45:1005"),
        ),
        // The status decides; a body that nobody asked for is not waited for.
        ("type = \"http\"\nport = 1006", Up),
        (
            "type = \"http\"\nport = 1006\nbody = \"x\"",
            Down("with a body that is longer than 262144 bytes"),
        ),
        (
            "type = \"http\"\nport = 1006\nbody_sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
            Down("is longer than"),
        ),
        // An answer, of a kind, to what nobody has asked.
        ("type = \"http\"\nport = 1007", Down("no HTTP answer")),
        ("type = \"http\"\nport = 1008", Up),
        (
            "type = \"http\"\nport = 1009",
            Down("did not answer within 600ms"),
        ),
        ("type = \"http\"\nport = 1009\nanswer_timeout = \"4s\"", Up),
        (
            "type = \"http\"\nport = 1010\nbody = \"x\"",
            Down("did not answer within 600ms"),
        ),
        (
            "type = \"http\"\nport = 1011\nbody = \"short\"",
            Down("no HTTP answer"),
        ),
        (
            "type = \"http\"\nport = 1001\nhttp_version = \"2\"",
            Down("did not answer within 600ms"),
        ),
        (
            "type = \"http\"\nport = 1006\nhttp_version = \"2\"",
            Down("no HTTP answer"),
        ),
        (
            "type = \"http\"\nport = 1041\nhttp_version = \"2\"",
            Down("did not answer within 600ms"),
        ),
        (
            "type = \"grpc\"\nport = 1041",
            Down("did not answer within 600ms"),
        ),
        ("type = \"grpc\"\nport = 1007", Down("no HTTP answer")),
        (
            "type = \"https\"\nport = 1001",
            Down("did not finish the TLS handshake within 600ms"),
        ),
        (
            "type = \"https\"\nport = 1001\ntls_timeout = \"200ms\"",
            Down("within 200ms"),
        ),
        ("type = \"https\"\nport = 1003", Down("no TLS session")),
        ("type = \"https\"\nport = 1007", Down("no TLS session")),
        (
            "type = \"smtp\"\nport = 1001",
            Down("did not answer over SMTP within 600ms"),
        ),
        (
            "type = \"smtp\"\nport = 1003",
            Down("broke the SMTP connection"),
        ),
        (
            "type = \"smtp\"\nport = 1007",
            Down("no SMTP reply at the connection"),
        ),
        (
            "type = \"smtp\"\nport = 1021",
            Down("answered the connection with \"421 too busy\""),
        ),
        (
            "type = \"smtp\"\nport = 1022",
            Down("no SMTP reply at the connection"),
        ),
        (
            "type = \"smtp\"\nport = 1023",
            Down("no SMTP reply at the connection"),
        ),
        (
            "type = \"smtp\"\nport = 1024",
            Down("did not answer over SMTP within 600ms"),
        ),
        (
            "type = \"smtp\"\nport = 1025",
            Down("no SMTP reply at EHLO: \"what?"),
        ),
        (
            "type = \"agent\"\non_silence = \"down\"\nport = 1001",
            Down("did not say a line within 600ms"),
        ),
        (
            "type = \"agent\"\non_silence = \"down\"\nport = 1031",
            Down("sent more than 1024 bytes without an end of line"),
        ),
        (
            "type = \"agent\"\non_silence = \"down\"\nport = 1032",
            Down("says \"hello world\", which is none of"),
        ),
        (
            "type = \"dns\"\nname = \"www.example.com\"\nport = 1053",
            Down("sent what is no answer"),
        ),
        (
            "type = \"udp\"\nport = 1053\npayload = \"61\"\nreply = \"61\"",
            Down("sent 16 replies that do not match"),
        ),
        (
            "type = \"file\"\nfile = \"/dev/zero\"",
            Down("not a regular file"),
        ),
        (
            "type = \"file\"\nfile = \"DIR/endless\"",
            Down("which is none of"),
        ),
        (
            "type = \"file\"\nfile = \"DIR/missing\"",
            Down("No such file"),
        ),
    ];
    std::fs::write(checked.path("endless"), vec![b'u'; 1 << 20]).unwrap();
    let directory = checked.lab.directory().display().to_string();
    let rows: Vec<(String, Expect)> = rows
        .iter()
        .map(|(check, expect)| {
            let has_connection = !check.contains("\"udp\"") && !check.contains("\"file\"");
            let limit = if has_connection {
                "connect_timeout = \"600ms\"\n"
            } else {
                ""
            };
            (
                format!("{limit}{}", check.replace("DIR", &directory)),
                *expect,
            )
        })
        .collect();
    let checks: Vec<String> = rows.iter().map(|(check, _)| check.clone()).collect();
    checked.start(TIMING, &checks).unwrap();
    checked.wait_for(&rows, Duration::from_secs(25)).unwrap();
    // It goes on like this, and costs no more with time: a descriptor for each attempt under way.
    let pid = checked.director.process().unwrap().id();
    let open = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let idle = open() - checks.len().min(open());
    let attempts = |checked: &Checked| -> u64 {
        let all = checked.director.status().unwrap().checks;
        all.iter().map(|c| c.checks[0].attempts).sum()
    };
    let before = attempts(&checked);
    wait::until_true("hundreds of attempts more", Duration::from_secs(30), || {
        let most = idle + 3 * checks.len();
        assert!(open() <= most, "{} descriptors, {most} at most", open());
        Ok(attempts(&checked) >= before + 400)
    })
    .unwrap();
    checked.wait_for(&rows, Duration::from_secs(1)).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(kib < 300 << 10, "{kib} KiB at the most");
}

/// The right answer to a request, some time after it.
fn answer_after(stream: &mut TcpStream, delay: Duration) {
    if heard(stream) {
        sleep(delay);
        say(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/// Nothing of hundreds of checks is left when they end: no descriptor, no process.
#[test]
fn nothing_is_left_of_checks() {
    let seen = lab::hostile::run(Duration::from_secs(6), |_, _| ()).unwrap();
    assert!(seen.attempts >= 500, "{seen:?}");
    assert!(seen.most > seen.before + 20, "{seen:?}");
    assert_eq!((seen.after, seen.children), (seen.before, 0), "{seen:?}");
}
