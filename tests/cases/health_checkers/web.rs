//! HTTP, HTTPS and TCP against nginx, with good and bad certificates.

use std::time::Duration;

use lab::wait;

use crate::checked::{
    Checked,
    Expect::{self, Down, Up},
    TIMING,
};

use super::{run, start_nginx, wait_for_port};
use crate::certificates::make_certificates;

#[test]
fn http_and_https() {
    let mut checked = Checked::prepare().unwrap();
    make_certificates(checked.lab.directory()).unwrap();
    let _nginx = start_nginx(&checked).unwrap();
    wait_for_port(&checked, 8447).unwrap();
    let rows: &[(&str, Expect)] = &[
        ("type = \"tcp\"\nport = 80", Up),
        ("type = \"tcp\"\nport = 81", Down("Connection refused")),
        (
            "type = \"tcp\"\nport = 80\nsource_address = \"10.1.15.43\"",
            Up,
        ),
        ("type = \"tcp\"\nport = 80\naddress = \"2001:db8::45\"", Up),
        ("type = \"http\"\nport = 80\npath = \"/ok\"", Up),
        (
            "type = \"http\"\nport = 80",
            Down("status 404 instead of 200 to GET /"),
        ),
        (
            "type = \"http\"\nport = 80\nstatus = [200, \"400-499\"]",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/moved\"\nstatus = \"300-399\"",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/ok\"\nbody = \"(?m)^all is w[aeiou]ll$\"",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/ok\"\nbody = \"ill\"",
            Down("does not match `ill`"),
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/ok\"\nbody_sha256 = \"PAGE\"",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/ok\"\nbody_sha256 = \"OTHER\"",
            Down("with a body that has sha256 "),
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/host\"\nhost = \"www.example.com\"\nbody = \"(?m)^www.example.com HTTP/1.1 GET$\"",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\npath = \"/post\"\nmethod = \"POST\"\nstatus = 204",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\n[[service.backend.check.url]]\npath = \"/ok\"\n[[service.backend.check.url]]\npath = \"/gone\"",
            Down("status 404 instead of 200 to GET /gone"),
        ),
        (
            "type = \"http\"\nport = 80\n[[service.backend.check.url]]\npath = \"/ok\"\nbody = \"well\"\n[[service.backend.check.url]]\npath = \"/gone\"\nstatus = 404",
            Up,
        ),
        (
            "type = \"http\"\nport = 8081\nhttp_version = \"2\"\npath = \"/host\"\nhost = \"a.example\"\nbody = \"HTTP/2.0 GET\"",
            Up,
        ),
        (
            "type = \"http\"\nport = 80\nhttp_version = \"2\"",
            Down("no HTTP answer"),
        ),
        (
            "type = \"https\"\nport = 8443\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Up,
        ),
        (
            "type = \"https\"\nport = 8443\npath = \"/host\"\nca_file = \"DIR/ca.pem\"\nhttp_version = \"2\"\nbody = \"HTTP/2.0\"",
            Up,
        ),
        (
            "type = \"https\"\nport = 8446\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"\nhttp_version = \"2\"",
            Down("no TLS session"),
        ),
        (
            "type = \"https\"\nport = 8443\npath = \"/ok\"",
            Down("UnknownIssuer"),
        ),
        (
            "type = \"https\"\nport = 8443\npath = \"/ok\"\nverify = false",
            Up,
        ),
        (
            "type = \"https\"\nport = 8444\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Down("certificate expired"),
        ),
        (
            "type = \"https\"\nport = 8444\npath = \"/ok\"\nverify = false",
            Up,
        ),
        (
            "type = \"https\"\nport = 8445\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Down("not valid for"),
        ),
        (
            "type = \"https\"\nport = 8445\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"\nserver_name = \"other.example.com\"",
            Up,
        ),
        (
            "type = \"https\"\nport = 8447\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"\nhost = \"www.example.com\"",
            Up,
        ),
        (
            "type = \"https\"\nport = 8447\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Down("not valid for"),
        ),
        (
            "type = \"https\"\nport = 8448\npath = \"/ok\"\nca_file = \"DIR/own.pem\"",
            Up,
        ),
        (
            "type = \"https\"\nport = 8448\npath = \"/ok\"\nca_file = \"DIR/own.pem\"\nhost = \"other.example.com\"",
            Down("not valid for"),
        ),
        (
            "type = \"https\"\nport = 8448\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Down("no TLS session"),
        ),
        (
            "type = \"https\"\nport = 8449\npath = \"/ok\"\nca_file = \"DIR/own-expired.pem\"",
            Down("certificate expired"),
        ),
        (
            "type = \"https\"\nport = 80\npath = \"/ok\"\nca_file = \"DIR/ca.pem\"",
            Down("no TLS session"),
        ),
        (
            "type = \"https\"\nport = 8443\nca_file = \"DIR/missing.pem\"",
            Down("cannot read the certificates"),
        ),
    ];
    let (page, other) = (sha256(b"all is well\n"), sha256(b""));
    let text = |check: &str| check.replace("PAGE", &page).replace("OTHER", &other);
    let rows: Vec<(String, Expect)> = rows.iter().map(|(c, e)| (text(c), *e)).collect();
    let rows: Vec<(&str, Expect)> = rows.iter().map(|(c, e)| (c.as_str(), *e)).collect();
    run(&mut checked, &rows).unwrap();
}

/// An authority that is exchanged is believed without a reload or a restart, and the one before is not any more.
#[test]
fn an_exchanged_authority_is_believed() {
    let mut checked = Checked::prepare().unwrap();
    make_certificates(checked.lab.directory()).unwrap();
    let _nginx = start_nginx(&checked).unwrap();
    wait_for_port(&checked, 8448).unwrap();
    let directory = checked.lab.directory().to_owned();
    let file = |name: &str| directory.join(name);
    let exchange = |name: &str| {
        let new = file("new.pem");
        std::fs::copy(file(name), &new).unwrap();
        std::fs::rename(new, file("used.pem")).unwrap();
    };
    exchange("own.pem");
    let check = "type = \"https\"\nport = 8443\npath = \"/ok\"\nca_file = \"DIR/used.pem\"";
    let check = check.replace("DIR", &directory.display().to_string());
    checked.start(TIMING, std::slice::from_ref(&check)).unwrap();
    for (name, up) in [("own.pem", false), ("ca.pem", true), ("own.pem", false)] {
        exchange(name);
        let what = format!("{name} is believed");
        wait::until_true(&what, Duration::from_secs(10), || {
            let seen = checked.status(0)?;
            Ok(seen.up == up && seen.checks[0].attempts > 0)
        })
        .unwrap();
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
