//! A TCP connection within a time limit.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::ProbeError;

/// Connects. Closing the stream resets the connection: thousands of checks leave no TIME-WAIT
/// behind, and the server's backlog is free at once.
pub async fn connect(target: SocketAddr, limit: Duration) -> Result<TcpStream, ProbeError> {
    let stream = timeout(limit, TcpStream::connect(target))
        .await
        .map_err(|_| ProbeError::TimedOut {
            target,
            what: "accept a connection",
            limit,
        })?
        .map_err(|source| ProbeError::Connect { target, source })?;
    stream
        .set_zero_linger()
        .map_err(|source| ProbeError::Connect { target, source })?;
    Ok(stream)
}
