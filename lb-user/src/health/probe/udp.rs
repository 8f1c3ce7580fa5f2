//! A UDP datagram, and perhaps its reply. Without an expected reply silence is success: only an ICMP
//! error says that nobody is there.

use std::{io, net::SocketAddr};

use thiserror::Error;
use tokio::time::timeout;

use super::{Late, Place, datagram};
use crate::model::{Pattern, UdpCheck};

/// Longest reply that is looked at, in bytes; the rest of a longer one is cut off. Patterns are not
/// longer than that.
const MAX_REPLY: usize = 2_048;
/// Replies that are looked at in one attempt. A flood of wrong ones must not keep a core busy until
/// the time is over.
const MAX_REPLIES: usize = 16;

/// Why a datagram did not do.
#[derive(Debug, Error)]
pub enum UdpError {
    /// It could not be sent, or an ICMP error came back.
    #[error("no UDP with {target}: {source}")]
    Refused {
        /// Address asked.
        target: SocketAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// No reply in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// Only other replies than the expected one.
    #[error("{target} sent {count} replies that do not match, the last begins with {begin}")]
    Replies {
        /// Address asked.
        target: SocketAddr,
        /// How many.
        count: usize,
        /// First bytes of the last.
        begin: String,
    },
}

pub(super) async fn attempt(place: &Place, check: &UdpCheck) -> Result<(), UdpError> {
    let target = place.target;
    let refused = |source| UdpError::Refused { target, source };
    let socket = datagram::open(place).map_err(refused)?;
    socket.send(&check.payload).await.map_err(refused)?;
    let mut buffer = [0; MAX_REPLY];
    let Some(pattern) = &check.reply else {
        return match timeout(place.limits.answer, socket.recv(&mut buffer)).await {
            Err(_) | Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(refused(source)),
        };
    };
    let replies = async {
        let mut begin = String::new();
        for _ in 0..MAX_REPLIES {
            let length = socket.recv(&mut buffer).await.map_err(refused)?;
            let reply = &buffer[..length];
            if pattern.matches(reply) {
                return Ok(());
            }
            begin = Pattern::exactly(&reply[..length.min(16)]).to_string();
        }
        Err(UdpError::Replies {
            target,
            count: MAX_REPLIES,
            begin,
        })
    };
    place
        .within(place.limits.answer, "reply as expected", replies)
        .await?
}
