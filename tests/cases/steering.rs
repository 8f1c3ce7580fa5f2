//! What operators do and ask at run time: drain, weigh, list flows, ask why.

use std::time::Duration;

use lab::{
    Guide,
    guide::{self, Settings, VIP},
    http, wait,
};

fn weights_and_states(guide: &Guide) -> Vec<(u32, String)> {
    let backends = guide.node1.service().unwrap().backends;
    let real = backends.into_iter().filter(|b| !b.sorry);
    real.map(|b| (b.weight, b.state)).collect()
}

#[test]
fn a_real_server_is_drained_weighed_and_enabled() {
    let guide = Guide::start().unwrap();
    let lbd = &guide.node1;
    let text = lbd.ctl(&["backend", "drain", "10.1.15.45"]).unwrap();
    assert!(
        text.contains("TCP 10.1.15.50:80: 10.1.15.45 drained"),
        "{text}"
    );
    assert_eq!(http::get_many(&guide.client, VIP, 6).unwrap(), ["rs2"; 6]);
    let status = lbd.ctl(&["status"]).unwrap();
    assert!(
        status.contains("10.1.15.45 is drained by an operator"),
        "{status}"
    );
    assert_eq!(
        weights_and_states(&guide),
        [(1, "draining".to_owned()), (1, "up".to_owned())]
    );
    lbd.ctl(&["backend", "enable", "10.1.15.45"]).unwrap();
    lbd.ctl(&[
        "backend",
        "weight",
        "10.1.15.46",
        "3",
        "--service",
        "10.1.15.50:80",
    ])
    .unwrap();
    let pages = http::get_many(&guide.client, VIP, 40).unwrap();
    let count = |name| pages.iter().filter(|p| *p == name).count();
    assert_eq!((count("rs1"), count("rs2")), (10, 30), "{pages:?}");
    assert!(
        lbd.ctl(&["status"])
            .unwrap()
            .contains("10.1.15.46 has weight 3 from an operator")
    );
    // A reload is a new beginning.
    lbd.configure(&guide::config(&Settings::of(100))).unwrap();
    lbd.ctl(&["reload"]).unwrap();
    assert_eq!(
        weights_and_states(&guide),
        [(1, "up".to_owned()), (1, "up".to_owned())]
    );
    assert!(!lbd.ctl(&["status"]).unwrap().contains("operator"));
    for (arguments, words) in [
        (
            &["backend", "drain", "10.1.15.99"][..],
            "10.1.15.99 is no real server of any service",
        ),
        (
            &["backend", "drain", "nonsense"],
            "`nonsense` is not an IP address",
        ),
        (
            &["backend", "weight", "10.1.15.45", "70000"],
            "weight 70000 is out of range: 0 to 65535",
        ),
        (
            &[
                "backend",
                "drain",
                "10.1.15.45",
                "--service",
                "10.1.15.50:81",
            ],
            "of 10.1.15.50:81",
        ),
        (&["flows", "--client", "nobody"], "`nobody` is no client"),
        (
            &["why", "10.1.15.1", "10.1.15.50:80"],
            "`10.1.15.1` is no client",
        ),
    ] {
        let output = lbd.lbctl(arguments).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}

#[test]
fn flows_and_reasons_are_shown() {
    let guide = Guide::start().unwrap();
    let lbd = &guide.node1;
    http::get_many(&guide.client, VIP, 6).unwrap();
    wait::until_true("all flows are closing", Duration::from_secs(5), || {
        let text = lbd.ctl(&["flows", "--service", "tcp 10.1.15.50:80"])?;
        Ok(text.matches("closing").count() == 6 && text.contains("1 to 6 of 6 flows"))
    })
    .unwrap();
    let page = lbd
        .ctl(&["flows", "--limit", "4", "--offset", "1"])
        .unwrap();
    assert!(
        page.contains("2 to 5 of 6 flows; more with --offset 5"),
        "{page}"
    );
    let of_one = lbd.ctl(&["flows", "--backend", "10.1.15.45"]).unwrap();
    assert!(
        of_one.contains("of 3 flows") && !of_one.contains("10.1.15.46"),
        "{of_one}"
    );
    let none = lbd.ctl(&["flows", "--client", "192.0.2.0/24"]).unwrap();
    assert!(none.contains("none of 0 flows"), "{none}");

    let why = |client: &str, vip: &str| lbd.ctl(&["why", client, vip]).unwrap();
    let new = why("192.0.2.9:40000", "10.1.15.50:80");
    assert!(
        new.contains("ring slot") && new.contains("because: ring"),
        "{new}"
    );
    let client = of_one
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let known = why(&client, "10.1.15.50:80");
    assert!(known.contains("10.1.15.45, because: flow"), "{known}");
    let other = why(&client, "10.1.15.50:81");
    assert!(
        other.contains("no real server, because: not_a_service"),
        "{other}"
    );
    let backup = guide.node2.ctl(&["why", &client, "10.1.15.50:80"]).unwrap();
    assert!(backup.contains("because: not_master"), "{backup}");
    let json = lbd
        .ctl(&["--json", "why", &client, "10.1.15.50:80"])
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["backend"], "10.1.15.45");
}

/// A capture is read by tcpdump, which knows the format, and by this test, which looks for comments.
#[test]
fn a_capture_tells_what_became_of_packets() {
    let guide = Guide::start().unwrap();
    let lbd = &guide.node1;
    let file = guide.lab.directory().join("capture.pcapng");
    let path = file.to_string_lossy().into_owned();
    let captured = |arguments: &[&str], traffic: &dyn Fn()| {
        let head = ["capture", "--write", &path];
        std::thread::scope(|scope| {
            let capture = scope.spawn(|| lbd.ctl(&[&head[..], arguments].concat()).unwrap());
            wait::until_true("the capture runs", Duration::from_secs(5), || {
                Ok(lbd.dump("control")?.entries[0]["capture"] == true)
            })
            .unwrap();
            traffic();
            capture.join().unwrap();
        });
        std::fs::read(&file).unwrap()
    };
    let requests = || drop(http::get_many(&guide.client, VIP, 10).unwrap());
    let bytes = captured(&["--only", "forwarded", "--count", "20"], &requests);
    let contains =
        |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    for text in [
        "XDP_TX: forwarded; real server 10.1.15.45; service TCP 10.1.15.50:80; client 10.1.15.1",
        "real server 10.1.15.46",
        "eno16777736",
    ] {
        assert!(contains(&bytes, text), "{text}");
    }
    assert!(!contains(&bytes, "XDP_PASS"));
    let listed = guide
        .client
        .run("tcpdump", &["-n", "-e", "-r", &path])
        .unwrap();
    assert_eq!(listed.lines().count(), 20, "{listed}");
    let rs1 = guide.rs1.node().mac().unwrap();
    assert!(
        listed.contains(&rs1) && listed.contains("10.1.15.50.80: Flags [S]"),
        "{listed}"
    );

    let ping = || {
        let _ = guide
            .client
            .run("curl", &["-s", "--max-time", "1", "http://10.1.15.43:81/"]);
    };
    let arguments = [
        "--only",
        "not_a_service",
        "--client",
        "10.1.15.0/24",
        "--count",
        "1",
    ];
    let bytes = captured(&arguments, &ping);
    assert!(contains(
        &bytes,
        "XDP_PASS: not_a_service; client 10.1.15.1"
    ));
    wait::until_true(
        "the program is told of the end",
        Duration::from_secs(5),
        || Ok(lbd.dump("control")?.entries[0]["capture"] == false),
    )
    .unwrap();
    let refused = lbd
        .lbctl(&["capture", "--only", "nonsense", "-w", &path])
        .unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        stderr.contains("`nonsense` is no outcome: forwarded, passed, dropped"),
        "{stderr}"
    );
}
