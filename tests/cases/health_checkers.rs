//! Every type of health check against a real server of its kind: nginx with good and bad certificates,
//! tonic's health service, aiosmtpd, dnsmasq, socat.

mod calls;
mod datagrams;
mod web;
mod words;

use std::time::Duration;

use anyhow::Result;
use lab::{Process, wait};

use crate::checked::{Checked, Expect};

const TIMING: &str = "interval = \"200ms\"\nretries = 0\nwarmup = \"100ms\"\n";

fn start_nginx(checked: &Checked) -> Result<Process> {
    let d = checked.lab.directory().display().to_string();
    let tls =
        |name: &str| format!("ssl_certificate {d}/{name}.pem; ssl_certificate_key {d}/{name}.key;");
    let (good, expired, other) = (tls("good"), tls("expired"), tls("other"));
    let page =
        "location = /ok { return 200 \"all is well\\n\"; } location = /moved { return 302 /ok; }
      location = /host { return 200 \"$http_host $server_protocol $request_method\\n\"; }
      location = /post { if ($request_method != POST) { return 405; } return 204; }
      location / { return 404; }";
    let config = format!(
        "daemon off; worker_processes 1; pid {d}/nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; default_type text/plain;
  client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3;
  uwsgi_temp_path {d}/t4; scgi_temp_path {d}/t5;
  server {{ listen 80; listen [::]:80; {page} }}
  server {{ listen 8081 http2; {page} }}
  server {{ listen 8443 ssl http2; {good} {page} location /grpc.health.v1.Health/ {{ grpc_pass grpc://127.0.0.1:50051; }} }}
  server {{ listen 8444 ssl; {expired} {page} }}
  server {{ listen 8445 ssl; {other} {page} }}
  server {{ listen 8446 ssl; {good} {page} }}
  server {{ listen 8447 ssl default_server; {other} {page} }}
  server {{ listen 8447 ssl; server_name www.example.com; {good} {page} }}
}}
"
    );
    let file = checked.path("nginx.conf");
    std::fs::write(&file, config)?;
    let file = file.to_string_lossy().into_owned();
    let arguments = ["-p", &d, "-c", &file, "-e", "stderr"];
    let program = "/usr/sbin/nginx".as_ref();
    Process::start(&checked.lab, &checked.server, "nginx", program, &arguments)
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
