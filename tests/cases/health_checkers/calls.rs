//! gRPC against tonic's health service, SMTP against aiosmtpd.

use std::{sync::atomic::Ordering, time::Duration};

use lab::Process;

use crate::checked::{
    Checked,
    Expect::{self, Down, Up},
    SERVER, Servers,
};

use super::{run, start_nginx, wait_for_port};
use crate::certificates::make_certificates;

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
