//! Metrics and the status page over TCP, for Prometheus and browsers. Nothing can be changed here, and
//! nobody is asked who he is: what an address may be told is decided by `[metrics] listen`.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::header,
    response::{Html, IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Sleep,
};

use super::{
    metrics, page,
    server::{Request, SocketError, ask, busy},
};

/// Connections at once; more wait to be accepted. Scrapers and a few browsers need one each.
const CONNECTIONS: usize = 64;
/// After this long a connection is closed, whatever it does: silent ones do not keep others out. Scrapers
/// connect again.
const LIFETIME: Duration = Duration::from_secs(120);
/// After an error to accept (no file descriptors are left, say).
const REST: Duration = Duration::from_millis(100);

/// What a browser is told of the page: nothing may be loaded, or run, or shown inside of something else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The listening socket.
pub struct Web {
    task: JoinHandle<()>,
}

impl Web {
    /// Listens on `address`.
    pub async fn start(
        address: SocketAddr,
        requests: mpsc::Sender<Request>,
    ) -> Result<Self, SocketError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| SocketError::Web { address, source })?;
        let router = Router::new()
            .route(metrics::PATH, get(show_metrics))
            .route(page::PATH, get(show_page))
            .with_state(requests);
        let few = Few {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(few, router).await {
                tracing::error!(%error, "the metrics have stopped");
            }
        });
        Ok(Self { task })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Daemon = State<mpsc::Sender<Request>>;

/// The metrics, on either socket.
pub(super) async fn show_metrics(State(daemon): Daemon) -> Response {
    match ask(&daemon, Request::Status).await {
        Some(status) => (
            [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
            metrics::render(&status),
        )
            .into_response(),
        None => busy(),
    }
}

async fn show_page(State(daemon): Daemon) -> Response {
    let status = ask(&daemon, Request::Status).await;
    let events = ask(&daemon, |answer| Request::Events(0, answer)).await;
    match (status, events) {
        (Some(status), Some(events)) => (
            [
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::CACHE_CONTROL, "no-store"),
            ],
            Html(page::render(&status, &events)),
        )
            .into_response(),
        _ => busy(),
    }
}

/// A listener with a bounded number of connections.
struct Few {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Few {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = self.places.clone().acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let guest = Guest {
                        stream,
                        end: Box::pin(tokio::time::sleep(LIFETIME)),
                        _place: place,
                    };
                    return (guest, address);
                }
                Err(_) => tokio::time::sleep(REST).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends in time.
struct Guest {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
