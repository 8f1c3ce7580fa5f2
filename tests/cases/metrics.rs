//! Metrics and the status page, read by Prometheus's own parser.

use std::{collections::BTreeMap, io::Write, net::TcpStream, process::Stdio, time::Duration};

use lab::{
    Guide,
    guide::{self, Settings},
    http, wait,
};
use lb_user::model::Auth;

use crate::adverts;

const ADDRESS: &str = "127.0.0.1:9112";

/// Reads the exposition with Prometheus's strict parser of OpenMetrics and prints every sample as one line of
/// JSON: name, labels, value.
const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family.name
    assert family.name.startswith('lbd_'), family.name
    for sample in family.samples:
        print(json.dumps([sample.name, dict(sample.labels), sample.value]))
";

type Sample = (String, BTreeMap<String, String>, f64);

fn parsed(text: &str) -> Vec<Sample> {
    let mut python = std::process::Command::new("/usr/bin/python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{text}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The value of the sample with this name and, among others, these labels.
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.0 == name
            && labels
                .iter()
                .all(|(label, value)| sample.1.get(*label).is_some_and(|v| v == value))
    };
    let found: Vec<&Sample> = samples.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].2
}

fn scrape(guide: &Guide, path: &str) -> String {
    let url = format!("http://{ADDRESS}{path}");
    let arguments = ["--silent", "--show-error", "--fail", "--include", &url];
    guide.node1.node.run("curl", &arguments).unwrap()
}

#[test]
fn prometheus_reads_what_lbctl_shows() {
    let mut guide = Guide::prepare().unwrap();
    let plain = guide::config(&Settings::of(100));
    let config = format!("[metrics]\nlisten = \"{ADDRESS}\"\n{plain}");
    guide.node1.configure(&config).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide
        .node1
        .wait_for("VI_1", lb_user::model::VrrpState::Master)
        .unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    http::get_many(&guide.client, guide::VIP, 10).unwrap();
    guide
        .client
        .within(|| adverts::send(&adverts::advert(|i| i.auth = Auth::Pass(*b"guessed!"))))
        .unwrap();
    wait::until_true("it is counted", Duration::from_secs(3), || {
        Ok(!guide.node1.status()?.instances[0].disagreements.is_empty())
    })
    .unwrap();

    let answer = scrape(&guide, "/metrics");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let samples = parsed(text);
    let of = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    assert_eq!(of("lbd_build_info", &[("router_id", "node1")]), 1.0);
    for (state, expected) in [
        ("MASTER", 1.0),
        ("BACKUP", 0.0),
        ("FAULT", 0.0),
        ("INIT", 0.0),
    ] {
        let labels = [("instance", "VI_1"), ("state", state)];
        assert_eq!(of("lbd_vrrp_state", &labels), expected, "{state}");
    }
    let instance = [("instance", "VI_1")];
    assert_eq!(of("lbd_vrrp_priority", &instance), 100.0);
    assert!(of("lbd_vrrp_adverts_sent_total", &instance) >= 1.0);
    assert!(of("lbd_vrrp_announcements_total", &instance) >= 1.0);
    assert!(of("lbd_vrrp_advert_lateness_max_seconds", &instance) < 10.0);
    let entered = [("instance", "VI_1"), ("state", "MASTER")];
    assert_eq!(of("lbd_vrrp_transitions_total", &entered), 1.0);
    let wrong = [("what", "wrong_password"), ("peer", "10.1.15.1")];
    assert_eq!(of("lbd_vrrp_disagreements_total", &wrong), 1.0);
    let service = ("service", "TCP 10.1.15.50:80");
    assert_eq!(of("lbd_service_serving", &[service]), 1.0);
    assert_eq!(of("lbd_service_servers_up", &[service]), 2.0);
    let status = guide.node1.status().unwrap();
    for backend in &status.data_plane.services[0].backends {
        let server = [service, ("server", backend.address.as_str())];
        assert_eq!(
            of("lbd_server_connections_total", &server),
            backend.connections as f64
        );
        assert_eq!(of("lbd_server_bytes_total", &server), backend.bytes as f64);
    }
    let connections: f64 = ["10.1.15.45", "10.1.15.46"]
        .map(|server| {
            of(
                "lbd_server_connections_total",
                &[service, ("server", server)],
            )
        })
        .iter()
        .sum();
    assert_eq!(connections, 10.0);
    assert_eq!(
        of("lbd_server_healthy", &[service, ("server", "10.1.15.45")]),
        1.0
    );
    assert_eq!(of("lbd_flow_table_slots", &[("table", "tcp")]), 262_144.0);
    assert_eq!(of("lbd_reloads_total", &[("result", "applied")]), 0.0);

    // Every name is documented, and no other.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"))
        .unwrap();
    // A histogram is one name on the page and three in the text.
    let parts = ["_bucket", "_sum", "_count"];
    let whole = |name: &str| {
        let mut stems = parts.iter().filter_map(|part| name.strip_suffix(part));
        let stem = stems.find(|stem| page.contains(&format!("`{stem}`")));
        stem.unwrap_or(name).to_owned()
    };
    let names: Vec<String> = samples.iter().map(|(name, ..)| whole(name)).collect();
    for name in &names {
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is not documented"
        );
    }
    for word in page.split('`').filter(|word| word.starts_with("lbd_")) {
        let is_there = names.iter().any(|name| name == word);
        let comes_with_a_peer = word.starts_with("lbd_vrrp_peer_");
        let comes_with_trouble = word == "lbd_service_packets_not_forwarded_total";
        assert!(
            is_there || comes_with_a_peer || comes_with_trouble,
            "{word} does not exist"
        );
    }

    let page = scrape(&guide, "/");
    for word in [
        "no problems",
        "VI_1",
        "MASTER",
        "10.1.15.45",
        "wrong_password",
    ] {
        let is_there = page.contains(word) || (word == "no problems" && page.contains("<ul"));
        assert!(is_there, "{word}: {page}");
    }
    assert!(!page.contains("<script"), "{page}");
    // Nothing else is to be had there, and nothing can be done.
    for path in ["/v1/status", "/v1/reload"] {
        let url = format!("http://{ADDRESS}{path}");
        let code = [
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ];
        let get = [&code[..], &[url.as_str()]].concat();
        assert_eq!(guide.node1.node.run("curl", &get).unwrap(), "404");
        let post = [&code[..], &["--request", "POST", url.as_str()]].concat();
        assert_eq!(guide.node1.node.run("curl", &post).unwrap(), "404");
    }
    // The unix socket has the metrics too.
    let socket = guide.lab.directory().join("node1.sock");
    let socket = socket.to_str().unwrap();
    let arguments = [
        "--silent",
        "--fail",
        "--unix-socket",
        socket,
        "http://lbd/metrics",
    ];
    let over_unix = guide.node1.node.run("curl", &arguments).unwrap();
    assert!(!parsed(&over_unix).is_empty());
    guide.node1.stop().unwrap();
}

/// Whoever connects and says nothing keeps nobody from lbctl, and others from the metrics only while he is
/// there.
#[test]
fn silent_connections_are_bounded() {
    let mut guide = Guide::prepare().unwrap();
    let plain = guide::config(&Settings::of(100));
    let config = format!("[metrics]\nlisten = \"{ADDRESS}\"\n{plain}");
    guide.node1.configure(&config).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    let descriptors = |guide: &mut Guide| {
        let pid = guide.node1.process().unwrap().id();
        let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        all.count()
    };
    let before = descriptors(&mut guide);
    let silent: Vec<TcpStream> = guide
        .node1
        .node
        .within(|| {
            let connect = |_| TcpStream::connect(ADDRESS).unwrap();
            (0..100).map(connect).collect()
        })
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let more = descriptors(&mut guide) - before;
    assert!((60..=70).contains(&more), "64 are let in: {more}");
    guide.node1.status().unwrap();
    let url = format!("http://{ADDRESS}/metrics");
    let ask = ["--silent", "--fail", "--max-time", "1", &url];
    assert!(
        guide.node1.node.run("curl", &ask).is_err(),
        "no place is left"
    );
    drop(silent);
    wait::until_true("they are gone", Duration::from_secs(5), || {
        Ok(guide.node1.node.run("curl", &ask).is_ok())
    })
    .unwrap();
    guide.node1.stop().unwrap();
}
