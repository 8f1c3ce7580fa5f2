use std::net::SocketAddr;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use super::{smtp::tests::mail, *};

const IMPATIENT: Patience = Patience {
    first_pause: Duration::from_millis(20),
    longest_pause: Duration::from_millis(100),
    attempts: 3,
    age: Duration::from_secs(60),
};

async fn until(mailer: &Mailer, what: impl Fn(&MailStatus) -> bool) -> MailStatus {
    for _ in 0..500 {
        let status = mailer.status();
        if what(&status) {
            return status;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("waited too long: {:?}", mailer.status());
}

/// A server that answers every command with what `answer` says, and tells what it was told.
fn server(
    listener: TcpListener,
    answer: impl Fn(usize, &str) -> String + Send + Sync + 'static,
) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    tokio::spawn(async move {
        let mut session = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            session += 1;
            let (reading, mut writing) = stream.split();
            let mut lines = BufReader::new(reading).lines();
            let _ = writing.write_all(b"220 hello\r\n").await;
            let mut in_text = false;
            while let Ok(Some(line)) = lines.next_line().await {
                log.lock().unwrap().push(line.clone());
                if in_text && line != "." {
                    continue;
                }
                in_text = line == "DATA";
                let _ = writing.write_all(answer(session, &line).as_bytes()).await;
            }
        }
    });
    heard
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn well(line: &str) -> String {
    match line {
        "DATA" => "354 go on\r\n".to_owned(),
        _ => "250 fine\r\n".to_owned(),
    }
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_given_up_and_never_waited_for() {
    let (listener, address) = listener().await;
    drop(listener);
    let mailer = Mailer::with_patience(&mail("127.0.0.1", address.port()), IMPATIENT);
    let began = Instant::now();
    for n in 0..300 {
        mailer.push(format!("subject {n}"), "body".to_owned());
    }
    assert!(began.elapsed() < Duration::from_millis(100));
    let status = until(&mailer, |status| status.failed >= 2).await;
    assert!(status.failing && status.sent == 0);
    assert_eq!(status.dropped, 300 - QUEUE as u64);
    assert!(status.failed_attempts >= 6, "{status:?}");
    let error = status.last_error.unwrap();
    assert!(error.contains("Connection refused"), "{error}");
    // Nor does a stop wait for it.
    let began = Instant::now();
    mailer
        .finish(Instant::now() + Duration::from_secs(20))
        .await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_one_time_out() {
    let (silent, address) = listener().await;
    let slow = Mail {
        timeout: Duration::from_millis(200),
        ..mail("127.0.0.1", address.port())
    };
    let mailer = Mailer::with_patience(&slow, IMPATIENT);
    mailer.push("subject".to_owned(), "body".to_owned());
    let status = until(&mailer, |status| status.failed == 1).await;
    assert_eq!(status.failed_attempts, 3);
    let error = status.last_error.unwrap();
    assert!(error.ends_with("no answer within 200ms"), "{error}");
    drop(silent);
}

#[tokio::test]
async fn one_bad_recipient_does_not_stop_the_others() {
    let (listener, address) = listener().await;
    let heard = server(listener, |_, line| match line {
        "RCPT TO:<ops@example.net>" => "550 no such user\r\n".to_owned(),
        line => well(line),
    });
    let mailer = Mailer::with_patience(&mail("127.0.0.1", address.port()), IMPATIENT);
    mailer.push("subject".to_owned(), "body".to_owned());
    let status = until(&mailer, |status| status.sent == 1).await;
    assert_eq!((status.refused_recipients, status.failing), (1, true));
    let error = status.last_error.unwrap();
    assert!(error.starts_with("ops@example.net is refused: "), "{error}");
    assert!(
        error.contains("550") && error.contains("no such user"),
        "{error}"
    );
    let heard = heard.lock().unwrap().clone();
    assert!(heard.contains(&"Subject: subject".to_owned()), "{heard:?}");
    assert_eq!(heard[0], "EHLO node1.example.net");
}

#[tokio::test]
async fn greylisted_recipients_are_tried_again_alone() {
    let (listener, address) = listener().await;
    let heard = server(listener, |session, line| match (session, line) {
        (1, "RCPT TO:<second@example.net>") => "451 come back\r\n".to_owned(),
        (_, line) => well(line),
    });
    let mailer = Mailer::with_patience(&mail("127.0.0.1", address.port()), IMPATIENT);
    mailer.push("subject".to_owned(), "body".to_owned());
    let status = until(&mailer, |status| status.sent == 1).await;
    assert!(!status.failing, "{status:?}");
    let heard = heard.lock().unwrap().clone();
    let asked: Vec<&str> = heard
        .iter()
        .filter_map(|line| line.strip_prefix("RCPT TO:"))
        .collect();
    assert_eq!(
        asked,
        [
            "<ops@example.net>",
            "<second@example.net>",
            "<second@example.net>"
        ]
    );
    let ids: Vec<&String> = heard
        .iter()
        .filter(|l| l.starts_with("Message-ID"))
        .collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
}

#[tokio::test]
async fn a_permanent_refusal_is_not_tried_again() {
    let (listener, address) = listener().await;
    let heard = server(listener, |_, line| match line {
        line if line.starts_with("MAIL FROM") => "553 not you\r\n".to_owned(),
        line => well(line),
    });
    let mailer = Mailer::with_patience(&mail("127.0.0.1", address.port()), IMPATIENT);
    mailer.push("subject".to_owned(), "body".to_owned());
    let status = until(&mailer, |status| status.failed == 1).await;
    assert_eq!(status.failed_attempts, 1);
    let said = |line: &&String| line.starts_with("MAIL FROM");
    assert_eq!(heard.lock().unwrap().iter().filter(said).count(), 1);
}

#[tokio::test]
async fn a_mail_that_waits_goes_the_new_way_at_once() {
    let (silent, address) = listener().await;
    drop(silent);
    let patient = Patience {
        first_pause: Duration::from_secs(1000),
        longest_pause: Duration::from_secs(1000),
        ..IMPATIENT
    };
    let mailer = Mailer::with_patience(&mail("127.0.0.1", address.port()), patient);
    mailer.push("subject".to_owned(), "body".to_owned());
    until(&mailer, |status| status.failed_attempts == 1).await;
    let (listener, address) = listener().await;
    server(listener, |_, line| well(line));
    mailer.configure(&mail("127.0.0.1", address.port()));
    let status = until(&mailer, |status| status.sent == 1).await;
    assert_eq!((status.waiting, status.failing), (0, false));
    mailer.finish(Instant::now() + Duration::from_secs(5)).await;
}

#[test]
fn authorities_are_certificates() {
    assert!(!has_certificates(""));
    assert!(!has_certificates("no certificate"));
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    assert!(!has_certificates(broken));
}
