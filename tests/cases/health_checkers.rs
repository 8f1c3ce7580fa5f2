//! Every type of health check against a real server of its kind: nginx with good and bad certificates,
//! tonic's health service, aiosmtpd, dnsmasq, socat.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::Result;
use lab::{Process, wait};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::checked::{Checked, Expect, SERVER, SERVER_V6, Servers};
use Expect::{Down, Up};

const TIMING: &str = "interval = \"200ms\"\nretries = 0\nwarmup = \"100ms\"\n";

/// An authority, and certificates by it and by itself.
fn make_certificates(directory: &Path) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    std::fs::write(directory.join("ca.pem"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    let make = |name: &str, names: &[&str], ended: bool| -> Result<()> {
        let names = names.iter().map(|name| (*name).to_owned());
        let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
        if ended {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    };
    make("good", &["www.example.com", SERVER], false)?;
    make("expired", &["www.example.com", SERVER], true)?;
    make("other", &["other.example.com"], false)
}

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

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn grpc() {
    let mut checked = Checked::prepare().unwrap();
    make_certificates(checked.lab.directory()).unwrap();
    let _nginx = start_nginx(&checked).unwrap();
    let mut servers = Servers::new(&checked.server);
    servers
        .spawn(|ended| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (reporter, health) = tonic_health::server::health_reporter();
                use tonic_health::ServingStatus::{NotServing, Serving};
                reporter.set_service_status("good", Serving).await;
                reporter.set_service_status("bad", NotServing).await;
                let ended = async {
                    while !ended.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                let address = "0.0.0.0:50051".parse().unwrap();
                tonic::transport::Server::builder()
                    .add_service(health)
                    .serve_with_shutdown(address, ended)
                    .await
                    .unwrap();
            });
        })
        .unwrap();
    wait_for_port(&checked, 50051).unwrap();
    wait_for_port(&checked, 8447).unwrap();
    let rows: &[(&str, Expect)] = &[
        ("type = \"grpc\"\nport = 50051", Up),
        ("type = \"grpc\"\nport = 50051\ngrpc_service = \"good\"", Up),
        (
            "type = \"grpc\"\nport = 50051\ngrpc_service = \"bad\"",
            Down("says NOT_SERVING of `bad`"),
        ),
        (
            "type = \"grpc\"\nport = 50051\ngrpc_service = \"none\"",
            Down("knows no such service"),
        ),
        (
            "type = \"grpc\"\nport = 8443\ntls = true\nca_file = \"DIR/ca.pem\"\ngrpc_service = \"good\"",
            Up,
        ),
        (
            "type = \"grpc\"\nport = 8443\ntls = true",
            Down("UnknownIssuer"),
        ),
        ("type = \"grpc\"\nport = 8081", Down("HTTP status 404")),
        ("type = \"grpc\"\nport = 80", Down("no HTTP answer")),
    ];
    run(&mut checked, rows).unwrap();
}

#[test]
fn smtp() {
    let mut checked = Checked::prepare().unwrap();
    make_certificates(checked.lab.directory()).unwrap();
    let file = |name: &str| checked.path(name).to_string_lossy().into_owned();
    let (pem, key) = (file("good.pem"), file("good.key"));
    let start = |port: u16, tls: &[&str]| {
        let address = format!("{SERVER}:{port}");
        let mut arguments = vec!["-n", "-l", &address, "-c", "aiosmtpd.handlers.Sink"];
        arguments.extend(tls);
        let name = format!("smtp{port}");
        let program = "/usr/bin/aiosmtpd".as_ref();
        Process::start(&checked.lab, &checked.server, &name, program, &arguments).unwrap()
    };
    let _servers = [
        start(25, &[]),
        start(587, &["--tlscert", &pem, "--tlskey", &key]),
        start(465, &["--smtpscert", &pem, "--smtpskey", &key]),
    ];
    for port in [25, 587, 465] {
        wait_for_port(&checked, port).unwrap();
    }
    let rows: &[(&str, Expect)] = &[
        ("type = \"smtp\"\nport = 25", Up),
        (
            "type = \"smtp\"\nport = 25\nhelo = \"director.example.com\"",
            Up,
        ),
        (
            "type = \"smtp\"\nport = 587\nstarttls = true\nca_file = \"DIR/ca.pem\"",
            Up,
        ),
        (
            "type = \"smtp\"\nport = 587\nstarttls = true\nca_file = \"DIR/ca.pem\"\nserver_name = \"a.example\"",
            Down("not valid for"),
        ),
        (
            "type = \"smtp\"\nport = 25\nstarttls = true\nca_file = \"DIR/ca.pem\"",
            Down("answered STARTTLS with"),
        ),
        (
            "type = \"smtp\"\nport = 465\ntls = true\nca_file = \"DIR/ca.pem\"",
            Up,
        ),
        (
            "type = \"smtp\"\nport = 465\nanswer_timeout = \"500ms\"",
            Down("did not answer over SMTP within 500ms"),
        ),
        ("type = \"smtp\"\nport = 26", Down("Connection refused")),
    ];
    run(&mut checked, rows).unwrap();
}

#[test]
fn dns() {
    let mut checked = Checked::prepare().unwrap();
    let part = "x".repeat(250);
    let long = format!("--txt-record=long.example.com,{part},{part},{part},{part}");
    let arguments = [
        "--keep-in-foreground",
        "--log-facility=-",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file",
        "--conf-file=/dev/null",
        "--local=/example.com/",
        "--host-record=www.example.com,192.0.2.1,2001:db8::1",
        "--host-record=www.example.com,192.0.2.2",
        "--mx-host=example.com,mail.example.com,10",
        "--txt-record=example.com,v=spf1 -all",
        "--srv-host=_sip._udp.example.com,sip.example.com,5060,1,5",
        "--cname=alias.example.com,www.example.com",
        "--ptr-record=9.2.0.192.in-addr.arpa,www.example.com",
        "--caa-record=example.com,0,issue,ca.example.net",
        "--naptr-record=example.com,100,10,u,E2U+sip,!^.*$!sip:a@example.com!",
        &long,
    ];
    let program = "/usr/sbin/dnsmasq".as_ref();
    let _dnsmasq = Process::start(
        &checked.lab,
        &checked.server,
        "dnsmasq",
        program,
        &arguments,
    )
    .unwrap();
    wait_for_port(&checked, 53).unwrap();
    let rows: &[(&str, Expect)] = &[
        ("name = \"www.example.com\"", Up),
        (
            "name = \"www.example.com.\"\nexpect = [\"192.0.2.1\", \"192.0.2.2\"]",
            Up,
        ),
        (
            "name = \"www.example.com\"\nexpect = \"192.0.2.3\"",
            Down("instead of 192.0.2.3"),
        ),
        (
            "name = \"www.example.com\"\nrecord = \"AAAA\"\nexpect = \"2001:db8::1\"",
            Up,
        ),
        ("name = \"alias.example.com\"\nexpect = \"192.0.2.1\"", Up),
        (
            "name = \"alias.example.com\"\nrecord = \"CNAME\"\nexpect = \"www.example.com\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"MX\"\nexpect = \"10 mail.example.com\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"TXT\"\nexpect = \"v=spf1 -all\"",
            Up,
        ),
        (
            "name = \"_sip._udp.example.com\"\nrecord = \"SRV\"\nexpect = \"1 5 5060 sip.example.com\"",
            Up,
        ),
        (
            "name = \"9.2.0.192.in-addr.arpa\"\nrecord = \"PTR\"\nexpect = \"www.example.com.\"",
            Up,
        ),
        ("name = \"example.com\"\nrecord = \"CAA\"", Up),
        ("name = \"example.com\"\nrecord = \"NAPTR\"", Up),
        (
            "name = \"example.com\"\nrecord = \"A\"",
            Down("no record instead of at least one record"),
        ),
        ("name = \"none.example.com\"", Down("to none.example.com A")),
        (
            "name = \"www.example.net\"\nrecursion = false",
            Down("to www.example.net A"),
        ),
        // Too long for a datagram: asked again over TCP.
        ("name = \"long.example.com\"\nrecord = \"TXT\"", Up),
        (
            "name = \"www.example.com\"\nport = 54",
            Down("no DNS over UDP"),
        ),
        ("name = \"www.example.com\"\naddress = \"2001:db8::45\"", Up),
    ];
    let rows: Vec<(String, Expect)> = rows
        .iter()
        .map(|(check, expect)| {
            let port = if check.contains("port = ") {
                ""
            } else {
                "\nport = 53"
            };
            (format!("type = \"dns\"\n{check}{port}"), *expect)
        })
        .collect();
    let rows: Vec<(&str, Expect)> = rows.iter().map(|(c, e)| (c.as_str(), *e)).collect();
    run(&mut checked, &rows).unwrap();
}

#[test]
fn udp_and_icmp() {
    let mut checked = Checked::prepare().unwrap();
    let socat = |name: &str, arguments: &[&str]| {
        let program = "/usr/bin/socat".as_ref();
        Process::start(&checked.lab, &checked.server, name, program, arguments).unwrap()
    };
    let _servers = [
        socat("echo", &["-T2", "UDP4-RECVFROM:7,fork", "EXEC:/bin/cat"]),
        socat(
            "echo6",
            &["-T2", "UDP6-RECVFROM:7,ipv6only=1,fork", "EXEC:/bin/cat"],
        ),
        socat("silent", &["-u", "UDP4-RECV:9", "OPEN:/dev/null"]),
    ];
    wait::until_true("socat listens", Duration::from_secs(10), || {
        let sockets = checked.server.run("ss", &["-Hlun"])?;
        Ok(sockets.contains(":9 ") && sockets.matches(":7 ").count() == 2)
    })
    .unwrap();
    let rows: &[(&str, Expect)] = &[
        ("type = \"udp\"\nport = 7\npayload = \"616263\"", Up),
        (
            "type = \"udp\"\nport = 7\npayload = \"616263\"\nreply = \"61??6?\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 7\naddress = \"2001:db8::45\"\npayload = \"616263\"\nreply = \"61\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 7\npayload = \"616263\"\nreply = \"62\"\nanswer_timeout = \"300ms\"",
            Down("did not reply as expected within 300ms"),
        ),
        // Silence is success only where no reply is expected.
        (
            "type = \"udp\"\nport = 9\npayload = \"61\"\nanswer_timeout = \"200ms\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 9\npayload = \"61\"\nreply = \"61\"\nanswer_timeout = \"300ms\"",
            Down("did not reply"),
        ),
        (
            "type = \"udp\"\nport = 10\npayload = \"61\"",
            Down("Connection refused"),
        ),
        (
            "type = \"udp\"\nport = 10\naddress = \"2001:db8::45\"\npayload = \"61\"",
            Down("Connection refused"),
        ),
        // Nobody has this address, which the director's own kernel finds out.
        (
            "type = \"udp\"\nport = 10\naddress = \"10.1.15.99\"\npayload = \"61\"",
            Down("No route to host"),
        ),
        ("type = \"icmp\"", Up),
        ("type = \"icmp\"\nsource_address = \"10.1.15.43\"", Up),
        ("type = \"icmp\"\naddress = \"2001:db8::45\"", Up),
        (
            "type = \"icmp\"\naddress = \"10.1.15.99\"\nanswer_timeout = \"300ms\"",
            Down("10.1.15.99 did not reply to an echo request within 300ms"),
        ),
        (
            "type = \"icmp\"\naddress = \"2001:db8::99\"\nanswer_timeout = \"300ms\"",
            Down("did not reply"),
        ),
    ];
    assert_eq!(SERVER_V6, "2001:db8::45");
    run(&mut checked, rows).unwrap();
}

#[test]
fn commands() {
    let mut checked = Checked::prepare().unwrap();
    let marker = checked.path("marker");
    let slow = format!(
        "/bin/sh -c 'sleep 1000 & echo $! > {0}; chmod 666 {0}; wait'",
        marker.display()
    );
    std::fs::write(&marker, "").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&marker, std::fs::Permissions::from_mode(0o666)).unwrap();
    let slow = format!("type = \"exec\"\ncommand = \"{slow}\"\nanswer_timeout = \"300ms\"");
    let rows: &[(&str, Expect)] = &[
        ("type = \"exec\"\ncommand = \"/bin/true\"", Up),
        (
            "type = \"exec\"\ncommand = \"/bin/false\"",
            Down("/bin/false ended with exit status: 1"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'test $(id -un) = nobody'\"",
            Up,
        ),
        // Without a shell nothing stands for something else.
        (
            "type = \"exec\"\ncommand = [\"/bin/ls\", \"$HOME\"]",
            Down("$HOME"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'echo no disk >&2; exit 3'\"",
            Down("exit status: 3: no disk"),
        ),
        (
            "type = \"exec\"\ncommand = \"/no/such/program\"",
            Down("cannot run /no/such/program"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 12'\"\ndynamic_weight = true",
            Up,
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 1'\"\ndynamic_weight = true",
            Down("exit status: 1"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 2'\"\ndynamic_weight = true",
            Up,
        ),
        (&slow, Down("/bin/sh was killed after 300ms")),
    ];
    run(&mut checked, rows).unwrap();
    let weights: Vec<Option<u32>> = [0, 6, 8]
        .into_iter()
        .map(|index| checked.status(index).unwrap().advised_weight)
        .collect();
    assert_eq!(weights, [None, Some(10), Some(0)]);
    let services = checked.director.status().unwrap().data_plane.services;
    let backend = |index: usize| &services[index].backends[0];
    assert_eq!(
        (backend(0).weight, backend(6).weight, backend(8).weight),
        (20, 10, 0)
    );
    assert_eq!(backend(8).state, "draining");
    // What was killed was killed with its children.
    let pid = std::fs::read_to_string(&marker).unwrap();
    wait::until_true("the child has ended", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        Ok(stat.map_or(true, |stat| {
            stat.contains(") Z ") || !stat.contains("(sleep)")
        }))
    })
    .unwrap();
}

/// An agent and a file say the same words; what they say is followed while it changes.
#[test]
fn agents_and_files() {
    let mut checked = Checked::prepare().unwrap();
    let words = checked.path("words");
    let say = |text: &str| {
        // Readers must not see it half written.
        let new = words.with_extension("new");
        std::fs::write(&new, format!("{text}\n")).unwrap();
        std::fs::rename(&new, &words).unwrap();
    };
    say("up 100%");
    let command = format!("SYSTEM:cat {}", words.display());
    let program = "/usr/bin/socat".as_ref();
    let arguments = ["TCP-LISTEN:9001,fork,reuseaddr", &command];
    let agent =
        Process::start(&checked.lab, &checked.server, "agent", program, &arguments).unwrap();
    wait_for_port(&checked, 9001).unwrap();
    let checks = [
        "type = \"agent\"\nport = 9001".to_owned(),
        format!("type = \"file\"\nfile = \"{}\"", words.display()),
        "type = \"agent\"\nport = 9001\non_silence = \"down\"".to_owned(),
    ];
    checked.start(TIMING, &checks).unwrap();
    for (said, weight, state) in [
        ("50%", 10, "up"),
        ("7", 7, "up"),
        ("drain", 0, "draining"),
        ("ready up 100%", 20, "up"),
        ("down #disk is full", 20, "down"),
        ("up 25%", 5, "up"),
        ("maint", 20, "down"),
        ("ready up 100%", 20, "up"),
    ] {
        say(said);
        let what = format!("{said} is followed");
        wait::until_true(&what, Duration::from_secs(10), || {
            let services = checked.director.status()?.data_plane.services;
            let seen: Vec<(u32, String)> = services
                .iter()
                .map(|s| (s.backends[0].weight, s.backends[0].state.clone()))
                .collect();
            // Down says nothing of the weight.
            Ok(seen
                .iter()
                .all(|(w, s)| s == state && (state == "down" || *w == weight)))
        })
        .unwrap();
    }
    let text = checked.director.ctl(&["status"]).unwrap();
    assert!(text.contains("up for"), "{text}");
    // An agent that is gone says nothing, which counts only where it is told to.
    agent.stop().unwrap();
    wait::until_true("one is down", Duration::from_secs(10), || {
        Ok(!checked.status(2)?.up)
    })
    .unwrap();
    wait::until_true("the other knows nothing", Duration::from_secs(10), || {
        let silent = checked.status(0)?;
        Ok(silent.up && silent.checks[0].blind)
    })
    .unwrap();
    let problems = checked.director.status().unwrap().problems;
    let said = "the agent check of 10.1.15.45 says nothing: cannot connect to 10.1.15.45:9001";
    assert!(problems.iter().any(|p| p.contains(said)), "{problems:?}");
}
