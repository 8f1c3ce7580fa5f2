//! Requests over HTTP or HTTPS, judged by status and body.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    header,
    http::{Method, uri::Scheme},
};
use regex::bytes::Regex;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    Place,
    exchange::{self, AskError, Conversation, ExchangeError, Transport},
    tls::Connector,
};
use crate::model::{Advice, BodyRule, HttpCheck, HttpRequest, HttpVersion};

/// Longest body that is looked at, in bytes. A page for checks is small; two thousand checks at once
/// would need half a gigabyte for answers of this length, and an endless one fills nothing.
const MAX_BODY: usize = 256 << 10;

/// Why answers are not the right ones.
#[derive(Debug, Error)]
pub enum HttpError {
    /// No answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The regular expression cannot be used.
    #[error("the expression for the body cannot be used: {0}")]
    Expression(#[from] regex::Error),
    /// Another status than expected.
    #[error("{target} answered with status {status} instead of {expected} to {request}")]
    Status {
        /// Address asked.
        target: SocketAddr,
        /// Status of the answer.
        status: u16,
        /// What was expected.
        expected: String,
        /// Method and path.
        request: String,
    },
    /// A body that does not match.
    #[error("{target} answered with a body that {what} to {request}")]
    Body {
        /// Address asked.
        target: SocketAddr,
        /// What is wrong with it.
        what: String,
        /// Method and path.
        request: String,
    },
}

/// The requests of one check.
pub(super) struct Http {
    check: HttpCheck,
    connector: Option<Connector>,
    /// Compiled at the first use, by request.
    expressions: Vec<Option<Regex>>,
}

impl Http {
    pub(super) fn new(check: &HttpCheck) -> Self {
        let protocol = match check.version {
            HttpVersion::One => ("http/1.1", false),
            HttpVersion::Two => ("h2", true),
        };
        Self {
            connector: check
                .tls
                .as_ref()
                .map(|tls| Connector::new(tls, Some(protocol))),
            expressions: check.requests.iter().map(|_| None).collect(),
            check: check.clone(),
        }
    }

    /// All requests in order, each on a connection of its own.
    pub(super) async fn attempt(&mut self, place: &Place) -> Result<Option<Advice>, HttpError> {
        let mut advice = None;
        for index in 0..self.check.requests.len() {
            let transport = self.connect(place, index).await?;
            let request = self.request(place.target, index)?;
            let drains = place
                .within(place.limits.answer, "answer", async {
                    let mut conversation =
                        Conversation::begin(transport, self.check.version, place.target).await?;
                    let answer = conversation.ask(request).await?;
                    self.judge(place.target, index, answer).await
                })
                .await
                .map_err(AskError::from)??;
            if drains {
                advice = Some(Advice::Drain);
            }
        }
        Ok(advice)
    }

    async fn connect(
        &mut self,
        place: &Place,
        index: usize,
    ) -> Result<Box<dyn Transport>, AskError> {
        let name = self.check.requests[index].host.as_deref().map(host_name);
        exchange::connect(place, self.connector.as_mut(), name).await
    }

    fn request(&self, target: SocketAddr, index: usize) -> Result<Request<Full<Bytes>>, AskError> {
        let wanted = &self.check.requests[index];
        let host = wanted.host.clone().unwrap_or_else(|| target.to_string());
        let bad = |source| AskError::Request { target, source };
        let builder = Request::builder().method(
            Method::from_bytes(wanted.method.as_bytes()).map_err(|error| bad(error.into()))?,
        );
        let builder = match self.check.version {
            HttpVersion::One => builder
                .uri(&wanted.path)
                .header(header::HOST, host)
                .header(header::CONNECTION, "close"),
            HttpVersion::Two => {
                let scheme = match self.check.tls {
                    Some(_) => Scheme::HTTPS,
                    None => Scheme::HTTP,
                };
                let uri = Uri::builder()
                    .scheme(scheme)
                    .authority(host)
                    .path_and_query(&*wanted.path)
                    .build()
                    .map_err(bad)?;
                builder.uri(uri)
            }
        };
        builder
            .header(
                header::USER_AGENT,
                concat!("lbd/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::default())
            .map_err(bad)
    }

    /// Whether an answer that is right asks for the server to be drained.
    async fn judge(
        &mut self,
        target: SocketAddr,
        index: usize,
        answer: Response<Incoming>,
    ) -> Result<bool, HttpError> {
        let wanted = &self.check.requests[index];
        let request = || format!("{} {}", wanted.method, wanted.path);
        let status = answer.status().as_u16();
        let among = |ranges: &[(u16, u16)]| {
            let mut ranges = ranges.iter();
            ranges.any(|(first, last)| (*first..=*last).contains(&status))
        };
        if among(&wanted.drain) {
            return Ok(true);
        }
        if !among(&wanted.status) {
            return Err(HttpError::Status {
                target,
                status,
                expected: ranges(wanted),
                request: request(),
            });
        }
        let Some(rule) = &wanted.body else {
            return Ok(false);
        };
        let wrong = |what: String| HttpError::Body {
            target,
            what,
            request: request(),
        };
        let body = read(target, answer.into_body())
            .await?
            .ok_or_else(|| wrong(format!("is longer than {MAX_BODY} bytes")))?;
        match rule {
            BodyRule::Sha256(expected) => {
                let digest: [u8; 32] = Sha256::digest(&body).into();
                if digest != *expected {
                    return Err(wrong(format!("has sha256 {}", hex(&digest))));
                }
            }
            BodyRule::Matches(pattern) => {
                let expression = &mut self.expressions[index];
                let expression = match expression {
                    Some(expression) => expression,
                    None => expression.insert(Regex::new(pattern)?),
                };
                if !expression.is_match(&body) {
                    return Err(wrong(format!("does not match `{pattern}`")));
                }
            }
        }
        Ok(false)
    }
}

/// The whole body, or nothing where it is too long.
async fn read(target: SocketAddr, mut body: Incoming) -> Result<Option<Vec<u8>>, AskError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| AskError::from(ExchangeError { target, source }))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_BODY {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}

/// The name of a `Host` header, without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
    .trim_matches(['[', ']'])
}

fn ranges(request: &HttpRequest) -> String {
    let text = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let all: Vec<String> = request.status.iter().map(text).collect();
    all.join(", ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_host_headers() {
        for (host, name) in [
            ("www.example.com", "www.example.com"),
            ("www.example.com:8443", "www.example.com"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
        ] {
            assert_eq!(host_name(host), name, "{host}");
        }
    }
}
