//! A TCP connection within a time limit.

use std::{io, net::SocketAddr};

use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

use super::{Late, On, Place};

/// Why there is no TCP connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kernel says no.
    #[error("cannot connect to {target}{on}: {source}{hint}")]
    Refused {
        /// Address asked.
        target: SocketAddr,
        /// The real server, where the VIP was asked for.
        on: On,
        /// What may be the matter there.
        hint: String,
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
    #[error("{source}{hint}")]
    Silent {
        /// For how long.
        source: Late,
        /// What may be the matter, where the VIP was asked for.
        hint: String,
    },
}

/// Connects. Closing the stream resets the connection: thousands of checks leave no TIME-WAIT
/// behind, and the server's backlog is free at once.
pub(super) async fn connect(place: &Place) -> Result<TcpStream, ConnectError> {
    let target = place.target;
    // Silence and refusal usually mean the same, where the VIP is asked for.
    let hint = |question: &str| match place.via {
        Some(_) => format!(" ({})", question.replace("VIP", &target.ip().to_string())),
        None => String::new(),
    };
    let refused = |source| ConnectError::Refused {
        target,
        on: place.on(),
        hint: hint("does the service listen on VIP?"),
        source,
    };
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(refused)?;
    if let Some(via) = place.via {
        SockRef::from(&socket).set_mark(via.mark).map_err(refused)?;
    }
    if let Some(address) = place.source {
        socket
            .bind(SocketAddr::new(address, 0))
            .map_err(|source| ConnectError::Source { address, source })?;
    }
    let stream = place
        .within(
            place.limits.connect,
            "accept a connection",
            socket.connect(place.peer()),
        )
        .await
        .map_err(|source| ConnectError::Silent {
            source,
            hint: hint("is VIP on its lo?"),
        })?
        .map_err(refused)?;
    stream.set_zero_linger().map_err(refused)?;
    // A question of several small writes must not wait for acknowledgements.
    stream.set_nodelay(true).map_err(refused)?;
    Ok(stream)
}
