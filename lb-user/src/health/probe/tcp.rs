//! A TCP connection within a time limit.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

use super::{Late, On, Place};
use crate::model::Ports;

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
        address: IpAddr,
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
        let ports = place.via.and_then(|via| via.ports);
        bind(&socket, address, ports).map_err(|source| ConnectError::Source { address, source })?;
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

/// Takes an address, and one of these ports where it matters which: the next one of a turn that all paths share, so
/// that checks of a path that run together hardly ever take the same one. How soon one comes again depends on how
/// many other checks run; its last connection has been reset by then.
fn bind(socket: &TcpSocket, address: IpAddr, ports: Option<Ports>) -> io::Result<()> {
    static TURN: AtomicU16 = AtomicU16::new(0);
    let Some(ports) = ports else {
        return socket.bind(SocketAddr::new(address, 0));
    };
    // Connections to other ports of the VIP may use the same one.
    socket.set_reuseaddr(true)?;
    let count = ports.last - ports.first + 1;
    let mut result = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..count {
        let turn = TURN.fetch_add(1, Ordering::Relaxed) % count;
        result = socket.bind(SocketAddr::new(address, ports.first + turn));
        let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        if !result.as_ref().is_err_and(is_taken) {
            break;
        }
    }
    result
}
