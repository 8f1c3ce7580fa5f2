//! A greeting over SMTP, as a client would begin: 220, EHLO, perhaps STARTTLS, QUIT. RFC 5321.

use std::{io, net::SocketAddr};

use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{
    Late, Place,
    exchange::Transport,
    tcp::{self, ConnectError},
    tls::{Connector, TlsError},
};
use crate::model::SmtpCheck;

/// Longest line of a reply, in bytes: twice what RFC 5321 allows (4.5.3.1.5).
const MAX_LINE: u64 = 1_024;
/// Lines of a reply: servers list a dozen extensions, and an endless list is no reply.
const MAX_LINES: usize = 100;

/// Why the greeting went wrong.
#[derive(Debug, Error)]
pub enum SmtpError {
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS session.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// The connection broke.
    #[error("{target} broke the SMTP connection at {step}: {source}")]
    Broken {
        /// Address asked.
        target: SocketAddr,
        /// What had been sent.
        step: &'static str,
        /// What failed.
        source: io::Error,
    },
    /// What came is not SMTP.
    #[error("{target} sent what is no SMTP reply at {step}: {begin:?}")]
    Garbage {
        /// Address asked.
        target: SocketAddr,
        /// What had been sent.
        step: &'static str,
        /// The beginning of it.
        begin: String,
    },
    /// The server says no.
    #[error("{target} answered {step} with {reply:?}")]
    Refused {
        /// Address asked.
        target: SocketAddr,
        /// What had been sent.
        step: &'static str,
        /// Its last line.
        reply: String,
    },
}

/// The greetings of one check.
pub(super) struct Smtp {
    check: SmtpCheck,
    connector: Option<Connector>,
}

impl Smtp {
    pub(super) fn new(check: &SmtpCheck) -> Self {
        Self {
            connector: check.tls.as_ref().map(|tls| Connector::new(tls, None)),
            check: check.clone(),
        }
    }

    pub(super) async fn attempt(&mut self, place: &Place) -> Result<(), SmtpError> {
        let stream = tcp::connect(place).await?;
        let name = self.name(place, &stream);
        match &mut self.connector {
            None => {
                let mut dialogue = Dialogue::new(stream, place);
                dialogue.greet(&name).await?;
                dialogue.quit().await
            }
            Some(connector) if self.check.starttls => {
                let mut dialogue = Dialogue::new(stream, place);
                dialogue.greet(&name).await?;
                dialogue.say("STARTTLS", "STARTTLS\r\n", "220").await?;
                // What came before the handshake is not believed: RFC 3207, 5.
                let stream = dialogue.reader.into_inner();
                let stream = connector.wrap(stream, place, None).await?;
                let mut dialogue = Dialogue::new(stream, place);
                dialogue.hello(&name).await?;
                dialogue.quit().await
            }
            Some(connector) => {
                let stream = connector.wrap(stream, place, None).await?;
                let mut dialogue = Dialogue::new(stream, place);
                dialogue.greet(&name).await?;
                dialogue.quit().await
            }
        }
    }

    /// Who we say we are: without a name, our address in brackets (RFC 5321, 4.1.3).
    fn name(&self, place: &Place, stream: &TcpStream) -> String {
        let own = || match stream.local_addr().unwrap_or(place.target) {
            SocketAddr::V4(own) => format!("[{}]", own.ip()),
            SocketAddr::V6(own) => format!("[IPv6:{}]", own.ip()),
        };
        self.check.helo.clone().unwrap_or_else(own)
    }
}

struct Dialogue<'p, S> {
    reader: BufReader<S>,
    place: &'p Place,
}

impl<'p, S: Transport> Dialogue<'p, S> {
    fn new(stream: S, place: &'p Place) -> Self {
        Self {
            reader: BufReader::new(stream),
            place,
        }
    }

    async fn greet(&mut self, name: &str) -> Result<(), SmtpError> {
        self.say("the connection", "", "220").await?;
        self.hello(name).await
    }

    async fn hello(&mut self, name: &str) -> Result<(), SmtpError> {
        match self.say("EHLO", &format!("EHLO {name}\r\n"), "250").await {
            // A server without extensions says that it does not know the command.
            Err(SmtpError::Refused { reply, .. }) if reply.starts_with("50") => {
                self.say("HELO", &format!("HELO {name}\r\n"), "250").await
            }
            other => other,
        }
    }

    async fn quit(&mut self) -> Result<(), SmtpError> {
        self.say("QUIT", "QUIT\r\n", "221").await
    }

    /// Sends a command, and waits for a reply with this code.
    async fn say(
        &mut self,
        step: &'static str,
        command: &str,
        code: &str,
    ) -> Result<(), SmtpError> {
        let place = self.place;
        place
            .within(place.limits.answer, "answer over SMTP", async {
                let broken = |source| SmtpError::Broken {
                    target: place.target,
                    step,
                    source,
                };
                self.reader
                    .write_all(command.as_bytes())
                    .await
                    .map_err(broken)?;
                self.reader.flush().await.map_err(broken)?;
                let reply = self.reply(step).await?;
                if reply.starts_with(code) {
                    return Ok(());
                }
                Err(SmtpError::Refused {
                    target: place.target,
                    step,
                    reply,
                })
            })
            .await?
    }

    /// The last line of a reply. Those before it have a hyphen behind the code (RFC 5321, 4.2.1).
    async fn reply(&mut self, step: &'static str) -> Result<String, SmtpError> {
        let target = self.place.target;
        let mut line = Vec::new();
        for _ in 0..MAX_LINES {
            line.clear();
            let mut first = (&mut self.reader).take(MAX_LINE);
            first
                .read_until(b'\n', &mut line)
                .await
                .map_err(|source| SmtpError::Broken {
                    target,
                    step,
                    source,
                })?;
            if line.is_empty() {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(SmtpError::Broken {
                    target,
                    step,
                    source,
                });
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            let well_formed = line.ends_with(b"\n")
                && line.len() >= 4
                && line[..3].iter().all(u8::is_ascii_digit);
            match text.as_bytes().get(3) {
                Some(b'-') if well_formed => {}
                Some(b' ') | None if well_formed => return Ok(text.to_owned()),
                _ => break,
            }
        }
        let text = String::from_utf8_lossy(&line);
        Err(SmtpError::Garbage {
            target,
            step,
            begin: text.chars().take(40).collect(),
        })
    }
}
