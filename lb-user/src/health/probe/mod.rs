//! One attempt of a check.

mod http;
mod tcp;

use std::{net::SocketAddr, time::Duration};

use thiserror::Error;

use crate::model::{Check, CheckKind};

/// Why an attempt failed, in words for the log.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No TCP connection.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Address asked.
        target: SocketAddr,
        /// The kernel's words.
        source: std::io::Error,
    },
    /// Nothing happened in time.
    #[error("{target} did not {what} within {limit:?}")]
    TimedOut {
        /// Address asked.
        target: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// Connected, but no HTTP answer came.
    #[error("no HTTP answer from {target}: {source}")]
    Http {
        /// Address asked.
        target: SocketAddr,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The request cannot be written.
    #[error("cannot ask {target}: {source}")]
    Request {
        /// Address asked.
        target: SocketAddr,
        /// What is wrong with it.
        source: hyper::http::Error,
    },
    /// Another status than expected.
    #[error("{target} answered with status {status} instead of {expected}")]
    Status {
        /// Address asked.
        target: SocketAddr,
        /// Status of the answer.
        status: u16,
        /// Status wanted.
        expected: u16,
    },
}

/// Makes one attempt.
pub async fn attempt(target: SocketAddr, check: &Check) -> Result<(), ProbeError> {
    let stream = tcp::connect(target, check.connect_timeout).await?;
    match &check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http { path, host, status } => {
            let question = http::Question {
                path,
                host: host.as_deref(),
                status: *status,
            };
            http::ask(stream, target, &question, check.connect_timeout).await
        }
    }
}
