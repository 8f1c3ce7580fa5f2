//! A TCP connection within a time limit.

use std::{io, net::SocketAddr};

use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

use super::{Late, Place};

/// Why there is no TCP connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kernel says no.
    #[error("cannot connect to {target}: {source}")]
    Refused {
        /// Address asked.
        target: SocketAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// The source address cannot be used.
    #[error("cannot connect from {address}: {source}")]
    Source {
        /// Configured source address.
        address: std::net::IpAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// Nobody answers.
    #[error(transparent)]
    Late(#[from] Late),
}

/// Connects. Closing the stream resets the connection: thousands of checks leave no TIME-WAIT
/// behind, and the server's backlog is free at once.
pub(super) async fn connect(place: &Place) -> Result<TcpStream, ConnectError> {
    let target = place.target;
    let refused = |source| ConnectError::Refused { target, source };
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(refused)?;
    if let Some(address) = place.source {
        socket
            .bind(SocketAddr::new(address, 0))
            .map_err(|source| ConnectError::Source { address, source })?;
    }
    let stream = place
        .within(
            place.limits.connect,
            "accept a connection",
            socket.connect(target),
        )
        .await?
        .map_err(refused)?;
    stream.set_zero_linger().map_err(refused)?;
    // A question of several small writes must not wait for acknowledgements.
    stream.set_nodelay(true).map_err(refused)?;
    Ok(stream)
}
