//! Every type of health check against a real server of its kind: nginx with good and bad certificates,
//! tonic's health service, aiosmtpd, dnsmasq, socat.

mod calls;
mod datagrams;
mod web;
mod words;

use std::time::Duration;

use anyhow::Result;
use lab::{Process, server, wait};

use crate::checked::{Checked, Expect, TIMING};

fn start_nginx(checked: &Checked) -> Result<Process> {
    let d = checked.lab.directory().display().to_string();
    let tls =
        |name: &str| format!("ssl_certificate {d}/{name}.pem; ssl_certificate_key {d}/{name}.key;");
    let (good, expired, other) = (tls("good"), tls("expired"), tls("other"));
    let (own, own_expired) = (tls("own"), tls("own-expired"));
    let page =
        "location = /ok { return 200 \"all is well\\n\"; } location = /moved { return 302 /ok; }
      location = /host { return 200 \"$http_host $server_protocol $request_method\\n\"; }
      location = /post { if ($request_method != POST) { return 405; } return 204; }
      location / { return 404; }";
    let servers = format!(
        "  server {{ listen 80; listen [::]:80; {page} }}
  server {{ listen 8081 http2; {page} }}
  server {{ listen 8443 ssl http2; {good} {page} location /grpc.health.v1.Health/ {{ grpc_pass grpc://127.0.0.1:50051; }} }}
  server {{ listen 8444 ssl; {expired} {page} }}
  server {{ listen 8445 ssl; {other} {page} }}
  server {{ listen 8446 ssl; {good} {page} }}
  server {{ listen 8448 ssl; {own} {page} }}
  server {{ listen 8449 ssl; {own_expired} {page} }}
  server {{ listen 8447 ssl default_server; {other} {page} }}
  server {{ listen 8447 ssl; server_name www.example.com; {good} {page} }}"
    );
    let directory = checked.path("nginx");
    server::start_nginx(&checked.lab, &checked.server, &directory, &servers)
}

/// Waits until somebody listens on a TCP port of the real server.
fn wait_for_port(checked: &Checked, port: u16) -> Result<()> {
    let what = format!("port {port} is open");
    wait::until_true(&what, Duration::from_secs(15), || {
        let sockets = checked.server.run("ss", &["-Hltn"])?;
        Ok(sockets.contains(&format!(":{port} ")))
    })
}

fn rows_of(checked: &Checked, rows: &[(&str, Expect)]) -> Vec<(String, Expect)> {
    let directory = checked.lab.directory().display().to_string();
    rows.iter()
        .map(|(check, expect)| (check.replace("DIR", &directory), *expect))
        .collect()
}

/// Runs all rows at once.
fn run(checked: &mut Checked, rows: &[(&str, Expect)]) -> Result<()> {
    let rows = rows_of(checked, rows);
    let checks: Vec<String> = rows.iter().map(|(check, _)| check.clone()).collect();
    checked.start(TIMING, &checks)?;
    checked.wait_for(&rows, Duration::from_secs(20))
}
