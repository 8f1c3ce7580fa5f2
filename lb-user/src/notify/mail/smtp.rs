//! One attempt to hand one mail to the server.

use std::time::{Duration, SystemTime};

use lettre::{
    Address, Message,
    message::header::{HeaderName, HeaderValue},
    transport::smtp::{
        self,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters},
        commands::{Data, Mail as MailFrom, Rcpt},
        extension::ClientId,
    },
};
use thiserror::Error;
use tokio::time::timeout;

use crate::model::{Mail, MailTls};

/// How long the server may take for its farewell; the mail is delivered by then.
const FAREWELL: Duration = Duration::from_secs(1);

/// A mail.
#[derive(Clone, Debug)]
pub struct Letter {
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
    /// When the event was.
    pub at: SystemTime,
    /// Unique on this host. The same in every attempt, so that a mail that arrives twice is known as one.
    pub number: u64,
}

/// Why an attempt did not succeed.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// The whole of it took too long.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    /// Connection, encryption, or an answer of the server.
    #[error(transparent)]
    Smtp(#[from] smtp::Error),
    /// The mail cannot be written down.
    #[error("cannot compose the mail: {0}")]
    Compose(#[from] lettre::error::Error),
    /// Certificates could not be read.
    #[error("cannot prepare TLS: {0}")]
    Tls(String),
}

impl AttemptError {
    /// Whether the server will not say anything else next time (RFC 5321 section 4.2.1).
    pub fn is_permanent(&self) -> bool {
        match self {
            AttemptError::Smtp(error) => error.is_permanent(),
            AttemptError::Compose(_) => true,
            AttemptError::Slow(_) | AttemptError::Tls(_) => false,
        }
    }
}

/// What the server took.
#[derive(Debug, Default)]
pub struct Receipt {
    /// Recipients that it took the mail for.
    pub accepted: usize,
    /// Recipients that it does not want, with its words.
    pub refused: Vec<(Address, String)>,
    /// Recipients that it does not want now, such as at greylisting.
    pub later: Vec<(Address, String)>,
}

/// Hands a letter for `recipients` to the server.
pub async fn attempt(
    mail: &Mail,
    tls: Option<TlsParameters>,
    letter: &Letter,
    recipients: &[Address],
) -> Result<Receipt, AttemptError> {
    let (receipt, mut connection) = timeout(mail.timeout, deliver(mail, tls, letter, recipients))
        .await
        .map_err(|_| AttemptError::Slow(mail.timeout))??;
    let _ = timeout(FAREWELL, connection.quit()).await;
    Ok(receipt)
}

async fn deliver(
    mail: &Mail,
    tls: Option<TlsParameters>,
    letter: &Letter,
    recipients: &[Address],
) -> Result<(Receipt, AsyncSmtpConnection), AttemptError> {
    let text = compose(mail, letter)?;
    let hello = client_id(&mail.hello);
    let (at_once, later) = match mail.tls {
        MailTls::Tls => (tls, None),
        MailTls::StartTls => (None, tls),
        MailTls::None => (None, None),
    };
    let server = (mail.server.as_str(), mail.port);
    let mut connection =
        AsyncSmtpConnection::connect_tokio1(server, Some(mail.timeout), &hello, at_once, None)
            .await?;
    if let Some(tls) = later {
        connection.starttls(tls, &hello).await?;
    }
    if let Some(login) = &mail.login {
        let credentials = Credentials::new(login.user.clone(), login.password.0.clone());
        connection
            .auth(&[Mechanism::Plain, Mechanism::Login], &credentials)
            .await?;
    }
    let from = Some(mail.from.email.clone());
    connection.command(MailFrom::new(from, Vec::new())).await?;
    let mut receipt = Receipt::default();
    for recipient in recipients {
        match connection
            .command(Rcpt::new(recipient.clone(), Vec::new()))
            .await
        {
            Ok(_) => receipt.accepted += 1,
            Err(error) if error.is_permanent() => {
                receipt.refused.push((recipient.clone(), error.to_string()));
            }
            Err(error) if error.is_transient() => {
                receipt.later.push((recipient.clone(), error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if receipt.accepted > 0 {
        connection.command(Data).await?;
        connection.message(&text).await?;
    }
    Ok((receipt, connection))
}

/// RFC 5321 section 4.1.3: an address stands in brackets.
fn client_id(name: &str) -> ClientId {
    match name.parse() {
        Ok(std::net::IpAddr::V4(address)) => ClientId::Ipv4(address),
        Ok(std::net::IpAddr::V6(address)) => ClientId::Ipv6(address),
        Err(_) => ClientId::Domain(name.to_owned()),
    }
}

/// The mail as it goes over the wire.
fn compose(mail: &Mail, letter: &Letter) -> Result<Vec<u8>, lettre::error::Error> {
    let seconds = super::super::unix(letter.at);
    let id = format!("<lbd.{seconds}.{}@{}>", letter.number, mail.hello);
    // RFC 3834 section 5: nobody's absence notice answers this.
    let machine = HeaderValue::new(
        HeaderName::new_from_ascii_str("Auto-Submitted"),
        "auto-generated".to_owned(),
    );
    let mut builder = Message::builder()
        .from(mail.from.clone())
        .subject(&letter.subject)
        .date(letter.at)
        .message_id(Some(id))
        .raw_header(machine);
    for recipient in &mail.to {
        builder = builder.to(recipient.clone());
    }
    Ok(builder.body(letter.body.clone())?.formatted())
}

/// Whom to believe that it is the server. Reads the system's authorities from disk where no others are
/// configured.
pub fn tls(mail: &Mail) -> Result<TlsParameters, smtp::Error> {
    let mut builder = TlsParameters::builder(mail.server.clone());
    if let Some(ca) = &mail.ca {
        builder = builder
            .certificate_store(CertificateStore::None)
            .add_root_certificate(Certificate::from_pem(ca.text.as_bytes())?);
    }
    builder.build()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::MailSubjects;

    pub fn mail(server: &str, port: u16) -> Mail {
        Mail {
            server: server.to_owned(),
            port,
            hello: "node1.example.net".to_owned(),
            from: "lbd on node1 <lbd@example.net>".parse().unwrap(),
            to: vec![
                "ops@example.net".parse().unwrap(),
                "second@example.net".parse().unwrap(),
            ],
            tls: MailTls::None,
            ca: None,
            login: None,
            timeout: Duration::from_secs(5),
            faults: true,
            about: MailSubjects::default(),
        }
    }

    pub fn letter(number: u64) -> Letter {
        Letter {
            subject: "[node1] VRRP Instance VI_1 - Entering MASTER state".to_owned(),
            body: "=> VRRP Instance is now owning VRRP VIPs <=\n".to_owned(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            number,
        }
    }

    #[test]
    fn headers_and_body() {
        let text = compose(&mail("192.0.2.25", 25), &letter(7)).unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "From: \"lbd on node1\" <lbd@example.net>\r\n",
            "To: ops@example.net, second@example.net\r\n",
            "Subject: [node1] VRRP Instance VI_1 - Entering MASTER state\r\n",
            "Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n",
            "Message-ID: <lbd.1700000000.7@node1.example.net>\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "\r\n\r\n=> VRRP Instance is now owning VRRP VIPs <=\r\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
