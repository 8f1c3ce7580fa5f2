//! One question over HTTP/1.1 or HTTP/2, by hyper. Everything that it starts ends with it: a server
//! that holds a connection open keeps no task and no descriptor of ours.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
    http,
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::{
    Late, Place,
    tcp::{self, ConnectError},
    tls::{Connector, TlsError},
    whole,
};
use crate::model::HttpVersion;

/// Longest header section of an answer, in bytes. Servers send less than 8 KiB; more than this is an
/// attack or a mistake.
const MAX_HEADERS: u32 = 32 << 10;
/// Most that an HTTP/2 server may send before we read it, in bytes: the protocol's default window.
const WINDOW: u32 = 65_535;

/// Why a question over HTTP has no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS session.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// No answer in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// The request cannot be written.
    #[error("cannot ask {target}: {source}")]
    Request {
        /// Address asked.
        target: SocketAddr,
        /// What is wrong with it.
        source: http::Error,
    },
}

/// No answer came.
#[derive(Debug, Error)]
#[error("no HTTP answer from {target}: {}", whole(source))]
pub struct ExchangeError {
    /// Address asked.
    pub target: SocketAddr,
    /// What went wrong.
    pub source: hyper::Error,
}

/// A connection that HTTP can be spoken on.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// Connects, and makes a TLS session where there is a `connector`: with `name`, or what its check says.
pub(super) async fn connect(
    place: &Place,
    connector: Option<&mut Connector>,
    name: Option<&str>,
) -> Result<Box<dyn Transport>, AskError> {
    let stream = tcp::connect(place).await?;
    Ok(match connector {
        Some(connector) => Box::new(connector.wrap(stream, place, name).await?),
        None => Box::new(stream),
    })
}

/// A connection that speaks HTTP.
pub(super) struct Conversation {
    target: SocketAddr,
    sender: Sender,
    leash: Leash,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Conversation {
    /// Begins to speak.
    pub(super) async fn begin(
        transport: Box<dyn Transport>,
        version: HttpVersion,
        target: SocketAddr,
    ) -> Result<Self, AskError> {
        let failed = |source| ExchangeError { target, source };
        let leash = Leash(Arc::new(Mutex::new(Some(JoinSet::new()))));
        let io = TokioIo::new(transport);
        let sender = match version {
            HttpVersion::One => {
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(MAX_HEADERS as usize)
                    .handshake(io)
                    .await
                    .map_err(failed)?;
                leash.spawn(async move { drop(connection.await) });
                Sender::One(sender)
            }
            HttpVersion::Two => {
                let (sender, connection) = http2::Builder::new(leash.clone())
                    .max_header_list_size(MAX_HEADERS)
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .handshake(io)
                    .await
                    .map_err(failed)?;
                leash.spawn(async move { drop(connection.await) });
                Sender::Two(sender)
            }
        };
        Ok(Self {
            target,
            sender,
            leash,
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, AskError> {
        let target = self.target;
        let answer = match &mut self.sender {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Two(sender) => sender.send_request(request).await,
        };
        Ok(answer.map_err(|source| ExchangeError { target, source })?)
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.leash.end();
    }
}

/// Tasks that end together. hyper's own tasks of an HTTP/2 connection would wait for the server to
/// close it.
#[derive(Clone)]
struct Leash(Arc<Mutex<Option<JoinSet<()>>>>);

impl Leash {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(mut tasks) = self.0.lock()
            && let Some(tasks) = tasks.as_mut()
        {
            tasks.spawn(task);
        }
    }

    fn end(&self) {
        if let Ok(mut tasks) = self.0.lock() {
            *tasks = None;
        }
    }
}

impl<F> Executor<F> for Leash
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(async move { drop(task.await) });
    }
}
