//! Mail through a real server: keepalived's subjects, encryption, and servers that do not work.

use std::{
    fs,
    time::{Duration, Instant},
};

use lab::{
    Director, Guide,
    guide::{self, Settings},
    mail::{Authority, MailServer, Settings as Server},
    wait,
};
use lb_user::model::VrrpState::{Backup, Master};

/// The client's address, where mail servers are.
const HOST: &str = "10.1.15.1";

/// The guide's configuration with mail.
fn config(priority: u8, port: u16, more: &str) -> String {
    format!(
        "{}\n[mail]\nserver = \"{HOST}\"\nport = {port}\nfrom = \"lbd@example.net\"\n\
         to = [\"ops@example.net\", \"night@example.net\"]\nhello = \"node1.example.net\"\n{more}\n",
        guide::config(&Settings::of(priority))
    )
}

fn problems(lbd: &Director) -> Vec<String> {
    let all = lbd.status().unwrap().problems;
    all.into_iter()
        .filter(|p| p.starts_with("mail: "))
        .collect()
}

#[test]
fn keepaliveds_subjects() {
    let mut guide = Guide::prepare().unwrap();
    let server = MailServer::start(&guide.lab, &guide.client, 2501, &Server::default()).unwrap();
    let text = config(100, server.port, "tls = \"none\"");
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", Master).unwrap();
    let [backup, master] =
        ["BACKUP", "MASTER"].map(|s| format!("[node1] VRRP Instance VI_1 - Entering {s} state"));
    server.wait_for(&[&backup, &master]).unwrap();
    let mail = server.mails().unwrap().pop().unwrap();
    assert_eq!(mail.from, "lbd@example.net");
    assert_eq!(mail.to, ["ops@example.net", "night@example.net"]);
    assert_eq!(mail.headers["to"], "ops@example.net, night@example.net");
    assert_eq!(mail.headers["auto-submitted"], "auto-generated");
    assert_eq!(
        mail.body.trim(),
        "=> VRRP Instance is now owning VRRP VIPs <="
    );
    assert_eq!(mail.hello, "node1.example.net");
    assert!(!mail.encrypted);

    // A real server goes and returns.
    let rs = "[node1] Realserver [10.1.15.46]:tcp:80 of virtual server [10.1.15.50]:tcp:80";
    let (down, up) = (format!("{rs} - DOWN"), format!("{rs} - UP"));
    guide.rs2.stop().unwrap();
    server.wait_for(&[&backup, &master, &down]).unwrap();
    let body = server.mails().unwrap().pop().unwrap().body;
    assert!(body.starts_with("=> CHECK failed on service <="), "{body}");
    assert!(body.contains("Connection refused"), "{body}");
    guide.rs2.resume(&guide.lab).unwrap();
    server.wait_for(&[&backup, &master, &down, &up]).unwrap();

    // Nobody is told of what nobody wants to know.
    let quiet = text.replacen("[[service]]", "mail = false\n[[service]]", 1);
    guide.node1.configure(&quiet).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    guide.node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
    guide.node1.wait_for("VI_1", Backup).unwrap();
    guide.node1.configure(&text).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    guide.node1.ctl(&["vrrp", "reset", "VI_1"]).unwrap();
    guide.node1.wait_for("VI_1", Master).unwrap();
    server
        .wait_for(&[&backup, &master, &down, &up, &master])
        .unwrap();
    let status = guide.node1.status().unwrap().mail.unwrap();
    assert_eq!((status.sent, status.failed, status.waiting), (5, 0, 0));
    let text = guide.node1.ctl(&["status"]).unwrap();
    let line = format!("mail        {HOST}:2501: 5 sent, 0 failed, 0 dropped, 0 wait");
    assert!(text.contains(&line), "{text}");

    // The last words leave before the process ends.
    guide.node1.stop().unwrap();
    let stopping = "[node1] VRRP Instance VI_1 - Stopping";
    server
        .wait_for(&[&backup, &master, &down, &up, &master, stopping])
        .unwrap();
}

/// A quorum lost and gained has a mail, behind that of the real server that did it. One that is there at the
/// start has none.
#[test]
fn a_quorum_is_told_of() {
    let mut guide = Guide::prepare().unwrap();
    let server = MailServer::start(&guide.lab, &guide.client, 2507, &Server::default()).unwrap();
    let text = config(100, server.port, "tls = \"none\"");
    let text = text.replacen("sorry_server", "quorum = 2\nsorry_server", 1);
    guide.node1.configure(&text).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", Master).unwrap();
    guide.rs2.stop().unwrap();
    let [backup, master] =
        ["BACKUP", "MASTER"].map(|s| format!("[node1] VRRP Instance VI_1 - Entering {s} state"));
    let rs = "[node1] Realserver [10.1.15.46]:tcp:80 of virtual server [10.1.15.50]:tcp:80";
    let vs = "[node1] Virtualserver [10.1.15.50]:tcp:80";
    let mut subjects = vec![
        backup,
        master,
        format!("{rs} - DOWN"),
        format!("{vs} - DOWN"),
    ];
    let wait = |subjects: &[String]| {
        let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
        server.wait_for(&subjects).unwrap();
        server.mails().unwrap().pop().unwrap().body
    };
    let body = wait(&subjects);
    assert_eq!(body.trim(), "=> Lost quorum 2-0=2 > 1 <=");
    guide.rs2.resume(&guide.lab).unwrap();
    subjects.extend([format!("{rs} - UP"), format!("{vs} - UP")]);
    let body = wait(&subjects);
    assert_eq!(body.trim(), "=> Gained quorum 2+0=2 <= 2 <=");
}

#[test]
fn encryption_and_login() {
    let mut guide = Guide::prepare().unwrap();
    let (lab, client) = (&guide.lab, &guide.client);
    let right = Authority::new(lab, "right", HOST).unwrap();
    let wrong = Authority::new(lab, "wrong", HOST).unwrap();
    let secured = |tls| Server {
        tls,
        certificate: Some(right.certificate.clone()),
        key: Some(right.key.clone()),
        user: Some("lbd"),
        password: Some("s3cret pass"),
        ..Server::default()
    };
    let password = lab.directory().join("mail-password");
    fs::write(&password, "s3cret pass\n").unwrap();
    let login = format!("user = \"lbd\"\npassword_file = \"{}\"", password.display());
    let starttls = MailServer::start(lab, client, 2502, &secured("starttls")).unwrap();
    let tls = MailServer::start(lab, client, 2503, &secured("tls")).unwrap();
    let plain = MailServer::start(lab, client, 2504, &Server::default()).unwrap();

    // A server that another authority vouches for gets nothing, least of all the password.
    let way = |port, tls: &str, authority: &Authority| {
        let ca = authority.ca.display();
        config(
            100,
            port,
            &format!("tls = \"{tls}\"\nca_file = \"{ca}\"\n{login}"),
        )
    };
    guide
        .node1
        .configure(&way(starttls.port, "starttls", &wrong))
        .unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", Master).unwrap();
    let told = |part: &str| {
        wait::until_true(part, Duration::from_secs(10), || {
            Ok(problems(&guide.node1).iter().any(|p| p.contains(part)))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", problems(&guide.node1)));
    };
    told("certificate");
    assert!(starttls.mails().unwrap().is_empty());
    let go = |text: &str| {
        guide.node1.configure(text).unwrap();
        guide.node1.ctl(&["reload"]).unwrap();
    };
    // Nor does one that knows no encryption.
    go(&way(plain.port, "starttls", &right));
    told("STARTTLS is not supported");
    assert!(plain.mails().unwrap().is_empty());

    // What waits goes the right way at once.
    go(&way(starttls.port, "starttls", &right));
    let [backup, master] =
        ["BACKUP", "MASTER"].map(|s| format!("[node1] VRRP Instance VI_1 - Entering {s} state"));
    starttls.wait_for(&[&backup, &master]).unwrap();
    go(&way(tls.port, "tls", &right));
    guide.node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
    tls.wait_for(&[&backup]).unwrap();
    for mail in starttls
        .mails()
        .unwrap()
        .iter()
        .chain(&tls.mails().unwrap())
    {
        assert!(mail.encrypted && mail.authenticated, "{mail:?}");
    }
    assert!(problems(&guide.node1).is_empty());

    // A wrong password is told, and is in no log.
    fs::write(&password, "wr0ng pass").unwrap();
    go(&way(tls.port, "tls", &right));
    guide.node1.ctl(&["vrrp", "reset", "VI_1"]).unwrap();
    told("535");
    let log = guide.node1.log();
    assert!(!log.contains("s3cret") && !log.contains("wr0ng"), "{log}");
    assert_eq!(tls.subjects().unwrap().len(), 1);
    // A file that is missing, or has no certificate, refuses the configuration.
    let missing = way(tls.port, "tls", &right).replace("right-ca.pem", "no-ca.pem");
    guide.node1.configure(&missing).unwrap();
    assert_eq!(
        guide.node1.lbctl(&["reload"]).unwrap().status.code(),
        Some(1)
    );
    let empty = way(tls.port, "tls", &right).replace("right-ca.pem", "mail-password");
    guide.node1.configure(&empty).unwrap();
    assert_eq!(
        guide.node1.lbctl(&["reload"]).unwrap().status.code(),
        Some(4)
    );
}

/// What a director does while mail does not work: everything.
#[test]
fn a_server_that_does_not_work_delays_nothing() {
    let mut guide = Guide::prepare().unwrap();
    let silent = Server {
        silent: true,
        ..Server::default()
    };
    let silent = MailServer::start(&guide.lab, &guide.client, 2505, &silent).unwrap();
    let rejecting = Server {
        reject: Some("night@example.net"),
        ..Server::default()
    };
    let rejecting = MailServer::start(&guide.lab, &guide.client, 2506, &rejecting).unwrap();
    let more = "tls = \"none\"\ntimeout = \"2s\"";
    guide
        .node1
        .configure(&config(100, silent.port, more))
        .unwrap();
    // Nobody listens there: the connection is refused.
    guide.node2.configure(&config(98, 2507, more)).unwrap();
    guide.start_directors().unwrap();
    let told = |lbd: &Director, part: &str| {
        wait::until_true(part, Duration::from_secs(15), || {
            Ok(problems(lbd).iter().any(|p| p.contains(part)))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", problems(lbd)));
    };
    told(&guide.node1, "no answer within 2s");
    told(&guide.node2, "Connection refused");

    // Priority 0 to takeover is the skew of 0.617 s, as without mail.
    let began = Instant::now();
    guide.node1.ctl(&["vrrp", "failover", "VI_1"]).unwrap();
    guide.node2.wait_for("VI_1", Master).unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1200), "{took:?}");
    guide.node1.ctl(&["vrrp", "reset", "VI_1"]).unwrap();
    guide.node1.wait_for("VI_1", Master).unwrap();
    guide.node2.wait_for("VI_1", Backup).unwrap();
    for _ in 0..10 {
        let began = Instant::now();
        guide.node1.status().unwrap();
        assert!(began.elapsed() < Duration::from_millis(500));
    }
    let began = Instant::now();
    guide.rs2.stop().unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "down", "draining"])
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
    let status = guide.node1.status().unwrap().mail.unwrap();
    assert!(
        status.sent == 0 && status.waiting >= 3 && status.failed_attempts >= 1,
        "{status:?}"
    );

    // One recipient that is refused keeps the mail from nobody else.
    let text = config(100, rejecting.port, more);
    guide.node1.configure(&text).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    wait::until_true("all that waited is sent", Duration::from_secs(10), || {
        let status = guide.node1.status()?.mail.unwrap();
        Ok(status.waiting == 0 && status.sent >= 4)
    })
    .unwrap();
    let mails = rejecting.mails().unwrap();
    assert!(mails.iter().all(|mail| mail.to == ["ops@example.net"]));
    told(
        &guide.node1,
        "night@example.net is refused: permanent error (550)",
    );
    let down =
        "[node1] Realserver [10.1.15.46]:tcp:80 of virtual server [10.1.15.50]:tcp:80 - DOWN";
    assert!(rejecting.subjects().unwrap().iter().any(|s| s == down));

    // A stop does not wait for a server that is known not to work.
    let began = Instant::now();
    guide.node2.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
}
