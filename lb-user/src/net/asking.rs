//! How the kernel's route netlink is asked and listened to. Requests and subscriptions have sockets of their
//! own: when a burst of events fills a socket's buffer the kernel drops answers there too. No request waits
//! for ever for an answer that was lost.

use std::{future::Future, io, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::timeout;

use super::netlink::NetlinkError;

/// The kernel answers within milliseconds, and with the next message of a list too, however long that is. Others
/// that change the network can keep it from that for longer: then the request is given up and carried out all the
/// same, later. The daemon's task waits meanwhile, so who has many requests ends with the first that is given up.
const ANSWER: Duration = Duration::from_secs(2);
/// Receive buffer of subscriptions, in bytes: some thousand events, as many as a change of a large network
/// may bring at once. The default holds some hundred.
const BUFFER: usize = 4 << 20;

type Message = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// What the kernel tells of its own accord.
pub(super) struct Subscription {
    messages: UnboundedReceiver<Message>,
    /// The connection ends with its last handle.
    _handle: Handle,
}

impl Subscription {
    /// Begins to listen.
    pub(super) fn open(groups: &[MulticastGroup]) -> Result<Self, NetlinkError> {
        let (mut connection, handle, messages) =
            rtnetlink::new_multicast_connection(groups).map_err(NetlinkError::Open)?;
        if let Err(error) = enlarge(connection.socket_mut().socket_mut()) {
            // Events may be lost earlier, which is told and mended.
            tracing::warn!(%error, "cannot enlarge the buffer of a netlink socket");
        }
        tokio::spawn(connection);
        Ok(Self {
            messages,
            _handle: handle,
        })
    }

    /// The next message; `None` when the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.messages.next().await
    }
}

fn enlarge(socket: &netlink_sys::Socket) -> io::Result<()> {
    // The one without "force" is limited by net.core.rmem_max, a twentieth of this by default.
    Ok(rustix::net::sockopt::set_socket_recv_buffer_size_force(
        socket, BUFFER,
    )?)
}

/// A connection for requests.
pub(super) fn connect() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The kernel's answer to a request, whatever it is.
pub(super) async fn answer<T>(
    what: &str,
    request: impl Future<Output = T>,
) -> Result<T, NetlinkError> {
    timeout(ANSWER, request)
        .await
        .map_err(|_| NetlinkError::NoAnswer {
            what: what.to_owned(),
            after: ANSWER,
        })
}

/// Makes a request that must succeed.
pub(super) async fn ask<T>(
    what: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetlinkError> {
    answer(what, request)
        .await?
        .map_err(|source| refused(what, source))
}

/// Makes a request to remove something: that there is nothing to remove is fine.
pub(super) async fn gone(
    what: &str,
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), NetlinkError> {
    let absent = [libc::EADDRNOTAVAIL, libc::ENODEV, libc::ESRCH, libc::ENOENT];
    match answer(what, request).await? {
        Err(rtnetlink::Error::NetlinkError(error)) if absent.contains(&error.raw_code().abs()) => {
            Ok(())
        }
        other => other.map_err(|source| refused(what, source)),
    }
}

/// The error of a request that was answered so.
pub(super) fn refused(what: &str, source: rtnetlink::Error) -> NetlinkError {
    let what = what.to_owned();
    NetlinkError::Request { what, source }
}

/// Reads a list; keeps of each message what `keep` makes of it.
pub(super) async fn list<M, T>(
    what: &str,
    messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
    mut keep: impl FnMut(&M) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let mut messages = Box::pin(messages);
    let mut kept = Vec::new();
    while let Some(message) = ask(what, messages.try_next()).await? {
        kept.extend(keep(&message));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_lost_answer_ends_a_request() {
        let began = Instant::now();
        let never = std::future::pending::<Result<(), rtnetlink::Error>>();
        let error = ask("add address 10.1.15.50/16", never).await.unwrap_err();
        assert!(began.elapsed() >= ANSWER);
        assert_eq!(
            error.to_string(),
            "cannot add address 10.1.15.50/16: the kernel did not answer within 2s"
        );
        // A list that breaks off.
        let first = stream::iter([Ok::<u8, rtnetlink::Error>(1)]);
        let broken = first.chain(stream::pending());
        let error = list("list routes", broken, |n| Some(*n)).await.unwrap_err();
        assert!(matches!(error, NetlinkError::NoAnswer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end() {
        let numbers = stream::iter((1..=5).map(Ok::<u8, rtnetlink::Error>));
        let odd = list("count", numbers, |n| (n % 2 == 1).then_some(*n)).await;
        assert_eq!(odd.unwrap(), [1, 3, 5]);
    }
}
