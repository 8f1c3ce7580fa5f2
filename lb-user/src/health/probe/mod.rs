//! One attempt of a check. Every kind has a file of its own, with its errors.

mod agent;
mod datagram;
mod dns;
mod exchange;
mod exec;
mod file;
pub mod grpc;
mod http;
pub mod icmp;
mod smtp;
mod tcp;
mod tls;
mod udp;

use std::{fmt, io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::time::timeout;

pub use self::{
    agent::AgentError,
    dns::DnsError,
    exchange::{AskError, ExchangeError},
    exec::ExecError,
    file::FileError,
    grpc::GrpcError,
    http::HttpError,
    icmp::IcmpError,
    smtp::SmtpError,
    tcp::ConnectError,
    tls::TlsError,
    udp::UdpError,
};
use super::{
    plan::{Job, Via},
    state::Attempt,
    words::Said,
};
use crate::{
    model::{Advice, CheckKind, DnsCheck, ExecCheck, Limits, UdpCheck},
    script::Account,
};

/// Makes the attempts of one check. Keeps what is costly to make anew.
pub struct Probe {
    place: Place,
    kind: Kind,
}

/// Where an attempt goes, from where, and how long it may take.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Whom the questions are for.
    target: SocketAddr,
    via: Option<Via>,
    source: Option<std::net::IpAddr>,
    limits: Limits,
}

enum Kind {
    Tcp,
    Http(http::Http),
    Grpc(grpc::Grpc),
    Smtp(smtp::Smtp),
    Dns(DnsCheck),
    Udp(UdpCheck),
    Icmp(icmp::Echo),
    Exec(ExecCheck, Account),
    Agent(agent::Agent),
    File(file::WordsFile),
}

/// What an attempt that did not fail showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of the state.
    pub attempt: Attempt,
    /// Of the weight: nothing is the configured one.
    pub advice: Option<Advice>,
    /// Why it is down, where it says so itself.
    pub cause: Option<String>,
}

impl Verdict {
    const fn passed() -> Self {
        Self {
            attempt: Attempt::Passed,
            advice: None,
            cause: None,
        }
    }

    const fn nothing(trouble: String) -> Self {
        Self {
            attempt: Attempt::Nothing,
            advice: None,
            cause: Some(trouble),
        }
    }
}

/// What a real server says of itself is believed at once.
impl From<Said> for Verdict {
    fn from(said: Said) -> Self {
        Self {
            attempt: Attempt::Told(said.health),
            advice: said.advice,
            cause: said.cause,
        }
    }
}

/// Why an attempt failed, in words for the log.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Not the right answers over HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Not what gRPC calls healthy.
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    /// No greeting over SMTP.
    #[error(transparent)]
    Smtp(#[from] SmtpError),
    /// Not the right answer from DNS.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Not the right reply over UDP.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// No echo.
    #[error(transparent)]
    Icmp(#[from] IcmpError),
    /// A command that did not succeed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// No useful word of an agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// No useful word in a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The time for the whole attempt is over.
    #[error(transparent)]
    Late(#[from] Late),
}

/// Something did not happen in time.
#[derive(Debug, Error)]
#[error("{target}{on} did not {what} within {limit:?}")]
pub struct Late {
    /// Who was asked.
    target: Asked,
    /// The real server on which the VIP was asked for.
    on: On,
    /// What was waited for.
    what: &'static str,
    /// For how long.
    limit: Duration,
}

/// Who was asked: an address with its port, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(pub SocketAddr);

/// Names the real server on which a VIP was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct On(Option<std::net::IpAddr>);

impl Probe {
    /// For a job of the plan. Commands run as `account`; `seed` makes what must be hard to guess or
    /// different from others.
    pub fn new(job: &Job, account: Account, seed: u64) -> Self {
        let place = Place {
            target: job.target,
            via: job.via,
            source: job.check.source.or(job.via.and_then(|via| via.source)),
            limits: job.check.limits,
        };
        let kind = match &job.check.kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http(check) => Kind::Http(http::Http::new(check)),
            CheckKind::Grpc(check) => Kind::Grpc(grpc::Grpc::new(check)),
            CheckKind::Smtp(check) => Kind::Smtp(smtp::Smtp::new(check)),
            CheckKind::Dns(check) => Kind::Dns(check.clone()),
            CheckKind::Udp(check) => Kind::Udp(check.clone()),
            CheckKind::Icmp => Kind::Icmp(icmp::Echo::new((seed & 0xffff) as u16)),
            CheckKind::Exec(check) => Kind::Exec(check.clone(), account),
            CheckKind::Agent(check) => Kind::Agent(agent::Agent::new(check)),
            CheckKind::File(path) => Kind::File(file::WordsFile::new(path)),
        };
        Self { place, kind }
    }

    /// Makes one attempt.
    pub async fn attempt(&mut self) -> Result<Verdict, ProbeError> {
        let place = self.place;
        match place.limits.total {
            None => self.kind.attempt(&place).await,
            Some(limit) => {
                place
                    .within(limit, "pass the check", self.kind.attempt(&place))
                    .await?
            }
        }
    }
}

impl Kind {
    async fn attempt(&mut self, place: &Place) -> Result<Verdict, ProbeError> {
        match self {
            Kind::Tcp => drop(tcp::connect(place).await?),
            Kind::Http(http) => {
                return Ok(Verdict {
                    advice: http.attempt(place).await?,
                    ..Verdict::passed()
                });
            }
            Kind::Grpc(grpc) => grpc.attempt(place).await?,
            Kind::Smtp(smtp) => smtp.attempt(place).await?,
            Kind::Dns(check) => dns::attempt(place, check).await?,
            Kind::Udp(check) => udp::attempt(place, check).await?,
            Kind::Icmp(echo) => echo.attempt(place).await?,
            Kind::Exec(check, account) => return Ok(exec::attempt(place, check, *account).await?),
            Kind::Agent(agent) => return Ok(agent.attempt(place).await?),
            Kind::File(file) => return Ok(file.attempt(place).await?),
        }
        Ok(Verdict::passed())
    }
}

impl Place {
    /// Where sockets are connected to.
    fn peer(&self) -> SocketAddr {
        match self.via {
            Some(Via {
                host, ports: None, ..
            }) => SocketAddr::new(host, self.target.port()),
            Some(Via { ports: Some(_), .. }) | None => self.target,
        }
    }

    /// Which real server is meant, where the target alone does not tell.
    fn on(&self) -> On {
        On(self.via.map(|via| via.host))
    }

    /// Waits for `work`, but not longer than `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, Late> {
        timeout(limit, work).await.map_err(|_| Late {
            target: Asked(self.target),
            on: self.on(),
            what,
            limit,
        })
    }
}

impl ProbeError {
    /// Whether the director itself was at fault, so that nothing is known of the server: no descriptor,
    /// no memory, no process, no port or source address of its own.
    pub fn is_local(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let code = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            let ours = [
                // No room for another process, from `fork` or `exec`. Sockets that wait say it to nobody here.
                libc::EAGAIN,
                libc::EMFILE,
                libc::ENFILE,
                libc::ENOBUFS,
                libc::ENOMEM,
                libc::EADDRNOTAVAIL,
                libc::EADDRINUSE,
            ];
            if code.is_some_and(|code| ours.contains(&code)) {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            0 => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(host) => write!(f, " on {host}"),
            None => Ok(()),
        }
    }
}

/// An error's words and those of what caused it, for errors that do not name their sources.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_at_fault() {
        let run = |code| {
            ProbeError::from(ExecError::Run {
                program: "/bin/true".into(),
                source: io::Error::from_raw_os_error(code),
            })
        };
        let sent = |code| {
            ProbeError::from(UdpError::Refused {
                target: ([192, 0, 2, 1], 7).into(),
                source: io::Error::from_raw_os_error(code),
            })
        };
        for ours in [libc::EAGAIN, libc::EMFILE, libc::ENOMEM] {
            assert!(run(ours).is_local() && sent(ours).is_local(), "{ours}");
        }
        for theirs in [libc::ENOENT, libc::EACCES] {
            assert!(!run(theirs).is_local(), "{theirs}");
        }
        for theirs in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH] {
            assert!(!sent(theirs).is_local(), "{theirs}");
        }
    }
}
