//! `grpc.health.v1.Health/Check` over HTTP/2. The two messages of one field each are written and read
//! here: protocol buffers' encoding of them is a few bytes.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, Uri, body::Incoming, header, http::uri::Scheme};
use thiserror::Error;

use super::{
    Place,
    exchange::{self, AskError, Conversation, ExchangeError},
    tls::Connector,
};
use crate::model::{GrpcCheck, HttpVersion};

/// Longest answer that is read, in bytes. The message has two bytes and its frame five.
const MAX_ANSWER: usize = 1_024;

/// Why the service is not healthy.
#[derive(Debug, Error)]
pub enum GrpcError {
    /// No answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The call failed.
    #[error("{target} answered with {what} to the health call of gRPC")]
    Call {
        /// Address asked.
        target: SocketAddr,
        /// HTTP's or gRPC's status.
        what: String,
    },
    /// What came is no answer.
    #[error("{target} sent what is no answer to the health call of gRPC")]
    Garbage {
        /// Address asked.
        target: SocketAddr,
    },
    /// The service says that it does not serve.
    #[error("{target} says {status} of `{service}`")]
    NotServing {
        /// Address asked.
        target: SocketAddr,
        /// Its name in the protocol.
        status: String,
        /// Name of the service.
        service: String,
    },
}

/// The calls of one check.
pub(super) struct Grpc {
    check: GrpcCheck,
    connector: Option<Connector>,
}

impl Grpc {
    pub(super) fn new(check: &GrpcCheck) -> Self {
        let protocol = Some(("h2", true));
        Self {
            connector: check.tls.as_ref().map(|tls| Connector::new(tls, protocol)),
            check: check.clone(),
        }
    }

    pub(super) async fn attempt(&mut self, place: &Place) -> Result<(), GrpcError> {
        let target = place.target;
        let transport = exchange::connect(place, self.connector.as_mut(), None).await?;
        let request = self.request(target)?;
        let call = async {
            let mut conversation = Conversation::begin(transport, HttpVersion::Two, target).await?;
            let answer = conversation.ask(request).await?;
            self.judge(target, answer).await
        };
        let called = place.within(place.limits.answer, "answer", call).await;
        called.map_err(AskError::from)?
    }

    fn request(&self, target: SocketAddr) -> Result<Request<Full<Bytes>>, AskError> {
        let bad = |source| AskError::Request { target, source };
        let host = self.check.host.clone();
        let uri = Uri::builder()
            .scheme(match self.check.tls {
                Some(_) => Scheme::HTTPS,
                None => Scheme::HTTP,
            })
            .authority(host.unwrap_or_else(|| target.to_string()))
            .path_and_query("/grpc.health.v1.Health/Check")
            .build()
            .map_err(bad)?;
        Request::post(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(
                header::USER_AGENT,
                concat!("lbd/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(question(&self.check.service).into()))
            .map_err(bad)
    }

    async fn judge(&self, target: SocketAddr, answer: Response<Incoming>) -> Result<(), GrpcError> {
        let call = |what: String| GrpcError::Call { target, what };
        if answer.status() != 200 {
            return Err(call(format!("HTTP status {}", answer.status().as_u16())));
        }
        // A call that fails at once has its status among the headers.
        refused(answer.headers()).map_or(Ok(()), |what| Err(call(what)))?;
        let mut body = answer.into_body();
        let mut message = Vec::new();
        let mut ended = false;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| AskError::from(ExchangeError { target, source }))?;
            match frame.into_data() {
                Ok(data) if message.len() + data.len() > MAX_ANSWER => {
                    return Err(GrpcError::Garbage { target });
                }
                Ok(data) => message.extend_from_slice(&data),
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else {
                        continue;
                    };
                    refused(&trailers).map_or(Ok(()), |what| Err(call(what)))?;
                    ended = trailers.contains_key("grpc-status");
                }
            }
        }
        match status(&message) {
            Some(1) if ended => Ok(()),
            Some(number) if ended => Err(GrpcError::NotServing {
                target,
                status: name(number),
                service: self.check.service.clone(),
            }),
            Some(_) | None => Err(GrpcError::Garbage { target }),
        }
    }
}

/// The gRPC status, where it is there and not 0.
fn refused(headers: &HeaderMap) -> Option<String> {
    let status = headers.get("grpc-status")?.to_str().unwrap_or("?");
    let message = headers.get("grpc-message").and_then(|m| m.to_str().ok());
    match (status, message) {
        ("0", _) => None,
        // The names of status 5 and 12 are what an operator meets: no such service, no health calls.
        ("5", _) => Some("gRPC status 5, not found: it knows no such service".to_owned()),
        ("12", _) => Some("gRPC status 12, unimplemented: it has no health service".to_owned()),
        (status, Some(message)) => Some(format!("gRPC status {status}, {message}")),
        (status, None) => Some(format!("gRPC status {status}")),
    }
}

/// `HealthCheckRequest { string service = 1; }` in a frame: not compressed, length, message.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length > 0x7f {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    // The configuration keeps names far below what a u32 can say.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

/// `HealthCheckResponse { ServingStatus status = 1; }` out of its frame; an absent field is 0.
pub fn status(frame: &[u8]) -> Option<u64> {
    let (&[compressed, a, b, c, d], message) = frame.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([a, b, c, d]);
    if compressed != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut rest)?,
            // Fields that a later version of the protocol may have.
            (_, 0) => drop(varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// A number of up to ten bytes, seven bits in each, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("status {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("abc"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'b', b'c']);
        let long = question(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
        let rows: [(&[u8], Option<u64>); 9] = [
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 2, 0x08, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 0x08, 2], Some(2)),
            // An unknown field before it.
            (&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 0x08, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 0x08], None),
            (&[0, 0, 0, 0, 1, 0x08], None),
            (&[1, 0, 0, 0, 2, 0x08, 1], None),
            (&[0, 0, 0, 0, 3, 0x12, 200, 1], None),
            (&[0, 0, 0], None),
        ];
        for (frame, expected) in rows {
            assert_eq!(status(frame), expected, "{frame:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(0u8.., 0..40)) {
            let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
            let _ = status(&[&[0][..], &length, &bytes].concat());
            let _ = status(&bytes);
        }
    }
}
