//! One attempt of a check. Every kind has a file of its own, with its errors.

mod exchange;
mod http;
mod tcp;
mod tls;

use std::{fmt, io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::time::timeout;

pub use self::{exchange::ExchangeError, http::HttpError, tcp::ConnectError, tls::TlsError};
use super::{
    plan::{Job, Via},
    state::Attempt,
};
use crate::model::{CheckKind, Limits};

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
    /// For a job of the plan.
    pub fn new(job: &Job) -> Self {
        let place = Place {
            target: job.target,
            via: job.via,
            source: job.check.source.or(job.via.and_then(|via| via.source)),
            limits: job.check.limits,
        };
        let kind = match &job.check.kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http(check) => Kind::Http(http::Http::new(check)),
        };
        Self { place, kind }
    }

    /// Makes one attempt.
    pub async fn attempt(&mut self) -> Result<Attempt, ProbeError> {
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
    async fn attempt(&mut self, place: &Place) -> Result<Attempt, ProbeError> {
        match self {
            Kind::Tcp => drop(tcp::connect(place).await?),
            Kind::Http(http) => http.attempt(place).await?,
        }
        Ok(Attempt::Passed)
    }
}

impl Place {
    /// Where sockets are connected to.
    fn peer(&self) -> SocketAddr {
        let host = self.via.map_or(self.target.ip(), |via| via.host);
        SocketAddr::new(host, self.target.port())
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
    /// Whether the director itself was at fault, so that nothing is known of the server.
    pub fn is_local(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let code = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            if code.is_some_and(|code| {
                [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&code)
            }) {
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
