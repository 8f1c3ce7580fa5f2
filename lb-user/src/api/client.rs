//! `lbctl`'s side of the socket.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use super::proto::Failure;

/// A daemon that does not answer for this long is as good as absent.
const LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach lbd at {path}: {source}; is it running?")]
    Unreachable {
        /// The socket.
        path: String,
        /// What failed.
        source: io::Error,
    },
    /// It listens but does not answer.
    #[error("lbd at {0} does not answer")]
    Silent(String),
    /// The answer is not to be understood.
    #[error("lbd's answer makes no sense: {0}")]
    Nonsense(String),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The kernel's words.
        source: std::io::Error,
    },
    /// It refused.
    #[error("{}", .0.error)]
    Refused(Failure),
}

/// Asks and decodes the answer.
pub async fn call<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<T, ClientError> {
    let name = socket.display().to_string();
    match timeout(LIMIT, exchange(socket, method, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::Silent(name)),
    }
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<T, ClientError> {
    let nonsense = |error: &dyn std::fmt::Display| ClientError::Nonsense(error.to_string());
    let (answer, connection) = send(socket, method, path).await?;
    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| nonsense(&e))?
        .to_bytes();
    connection.abort();
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|e| nonsense(&e));
    }
    Err(ClientError::Refused(
        serde_json::from_slice(&body).map_err(|e| nonsense(&e))?,
    ))
}

/// Asks for a body that comes piece by piece, and gives each piece to `take` until it says that this
/// is enough, or the body ends.
pub async fn stream(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), ClientError> {
    let nonsense = |error: &dyn std::fmt::Display| ClientError::Nonsense(error.to_string());
    let (answer, connection) = send(socket, Method::GET, path).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    if status != StatusCode::OK {
        let bytes = body.collect().await.map_err(|e| nonsense(&e))?.to_bytes();
        connection.abort();
        return Err(ClientError::Refused(
            serde_json::from_slice(&bytes).map_err(|e| nonsense(&e))?,
        ));
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| nonsense(&e))?;
        if frame.data_ref().is_some_and(|data| !take(data)) {
            break;
        }
    }
    connection.abort();
    Ok(())
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), ClientError> {
    let nonsense = |error: &dyn std::fmt::Display| ClientError::Nonsense(error.to_string());
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Unreachable {
            path: socket.display().to_string(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| nonsense(&e))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "lbd")
        .body(Empty::<Bytes>::new())
        .map_err(|e| nonsense(&e))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| nonsense(&e))?;
    Ok((answer, connection))
}
