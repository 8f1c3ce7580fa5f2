//! `GET` over HTTP/1.1, judged by its status.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::ProbeError;

/// What is asked and expected.
pub struct Question<'q> {
    /// Absolute path.
    pub path: &'q str,
    /// `Host` header; the address asked when absent.
    pub host: Option<&'q str>,
    /// Expected status.
    pub status: u16,
}

/// Asks on a connection. The status line and headers decide; the body is not read.
pub async fn ask(
    stream: TcpStream,
    target: SocketAddr,
    question: &Question<'_>,
    limit: Duration,
) -> Result<(), ProbeError> {
    let host = question
        .host
        .map_or_else(|| target.to_string(), str::to_owned);
    let request = Request::get(question.path)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("lbd/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Request { target, source })?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let answer = sender.send_request(request);
        tokio::pin!(answer, connection);
        tokio::select! {
            // A finished connection may still have delivered the answer.
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    };
    let answer = timeout(limit, exchange)
        .await
        .map_err(|_| ProbeError::TimedOut {
            target,
            what: "answer",
            limit,
        })?
        .map_err(|source| ProbeError::Http { target, source })?;
    let status = answer.status().as_u16();
    if status == question.status {
        Ok(())
    } else {
        Err(ProbeError::Status {
            target,
            status,
            expected: question.status,
        })
    }
}
