//! The daemon's side of the socket. Every request becomes a message to the daemon, which answers
//! between two of its events.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as Segment, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    proto::{
        self, CaptureQuery, DataPlaneOrder, Diagnosis, EventPage, Failure, FlowPage, FlowQuery,
        MapDump, Reload, Status, Steer, Steered, TableInfo, VrrpOrder, Why, WhyQuery,
    },
    web::show_metrics,
};

/// Requests that may wait for the daemon; more are refused with 503.
const QUEUE: usize = 64;

/// What the daemon is asked.
pub enum Request {
    /// Everything.
    Status(oneshot::Sender<Status>),
    /// Events after an id.
    Events(u64, oneshot::Sender<EventPage>),
    /// The kernel tables.
    Maps(oneshot::Sender<Vec<TableInfo>>),
    /// One kernel table.
    Map(String, oneshot::Sender<Option<MapDump>>),
    /// Drain, enable or weigh a real server.
    Steer(Steer, oneshot::Sender<Result<Steered, Failure>>),
    /// An order for a VRRP instance.
    Vrrp(VrrpOrder, oneshot::Sender<Result<Steered, Failure>>),
    /// Which data plane is to forward.
    DataPlane(DataPlaneOrder, oneshot::Sender<Result<Steered, Failure>>),
    /// Some flows.
    Flows(FlowQuery, oneshot::Sender<Result<FlowPage, String>>),
    /// What is wrong around here.
    Doctor(oneshot::Sender<Diagnosis>),
    /// What would become of a packet.
    Why(WhyQuery, oneshot::Sender<Result<Why, String>>),
    /// What becomes of packets.
    Capture(
        CaptureQuery,
        oneshot::Sender<Result<mpsc::Receiver<Vec<u8>>, String>>,
    ),
    /// Read the configuration again; a dry run only says what would change.
    Reload {
        /// Whether to change nothing.
        dry_run: bool,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Reload, Failure>>,
    },
}

/// The socket cannot be used.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens on it.
    #[error("another lbd answers on {0}; stop it, or give this one its own `socket` in [runtime]")]
    InUse(String),
    /// The address of the metrics cannot be used.
    #[error(
        "cannot listen on {address} for metrics: {source}; choose another `listen` in [metrics]"
    )]
    Web {
        /// As configured.
        address: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// Anything else.
    #[error(
        "cannot listen on {path}: {source}; remove what is there, or set `socket` in [runtime]"
    )]
    Listen {
        /// The socket.
        path: String,
        /// What failed.
        source: io::Error,
    },
}

/// The listening socket; its file goes with it.
pub struct Server {
    path: PathBuf,
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `path`, replacing a socket that nobody answers on any more.
    pub async fn start(path: &Path) -> Result<(Self, mpsc::Receiver<Request>), SocketError> {
        let failed = |source| SocketError::Listen {
            path: path.display().to_string(),
            source,
        };
        match UnixStream::connect(path).await {
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused]
                    .contains(&error.kind()) => {}
            Err(error) if path.exists() => return Err(failed(error)),
            Err(_) => {}
            Ok(_) => return Err(SocketError::InUse(path.display().to_string())),
        }
        if path
            .symlink_metadata()
            .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()))
        {
            std::fs::remove_file(path).map_err(failed)?;
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Who may write here may change what the load balancer does.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let (requests, inbox) = mpsc::channel(QUEUE);
        let router = Router::new()
            .route(proto::STATUS, get(status))
            .route(proto::MAPS, get(maps))
            .route(proto::MAP, get(map))
            .route(proto::EVENTS, get(events))
            .route(proto::STEER, post(steer))
            .route(proto::VRRP, post(vrrp))
            .route(proto::DATA_PLANE, post(data_plane))
            .route(proto::DOCTOR, get(doctor))
            .route(proto::FLOWS, get(flows))
            .route(proto::WHY, get(why))
            .route(proto::CAPTURE, get(capture))
            .route(proto::RELOAD, post(reload))
            .route(super::metrics::PATH, get(show_metrics))
            .with_state(requests.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the API has stopped");
            }
        });
        Ok((
            Self {
                path: path.to_owned(),
                requests,
                task,
            },
            inbox,
        ))
    }
}

impl Server {
    /// Where others put their requests.
    pub fn requests(&self) -> mpsc::Sender<Request> {
        self.requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

type Daemon = State<mpsc::Sender<Request>>;

async fn status(State(daemon): Daemon) -> Response {
    match ask(&daemon, Request::Status).await {
        Some(status) => Json(status).into_response(),
        None => busy(),
    }
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    since: u64,
}

async fn events(State(daemon): Daemon, Query(query): Query<EventsQuery>) -> Response {
    match ask(&daemon, |answer| Request::Events(query.since, answer)).await {
        Some(page) => Json(page).into_response(),
        None => busy(),
    }
}

async fn doctor(State(daemon): Daemon) -> Response {
    match ask(&daemon, Request::Doctor).await {
        Some(diagnosis) => Json(diagnosis).into_response(),
        None => busy(),
    }
}

async fn maps(State(daemon): Daemon) -> Response {
    match ask(&daemon, Request::Maps).await {
        Some(maps) => Json(maps).into_response(),
        None => busy(),
    }
}

async fn map(State(daemon): Daemon, Segment(name): Segment<String>) -> Response {
    match ask(&daemon, |answer| Request::Map(name.clone(), answer)).await {
        Some(Some(dump)) => Json(dump).into_response(),
        Some(None) => failure(
            StatusCode::NOT_FOUND,
            format!("there is no map `{name}`"),
            false,
        ),
        None => busy(),
    }
}

async fn steer(State(daemon): Daemon, Query(query): Query<Steer>) -> Response {
    match ask(&daemon, |answer| Request::Steer(query, answer)).await {
        Some(Ok(steered)) => Json(steered).into_response(),
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error.error, false),
        None => busy(),
    }
}

async fn vrrp(State(daemon): Daemon, Query(query): Query<VrrpOrder>) -> Response {
    match ask(&daemon, |answer| Request::Vrrp(query, answer)).await {
        Some(Ok(done)) => Json(done).into_response(),
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error.error, false),
        None => busy(),
    }
}

#[derive(Deserialize)]
struct DataPlaneQuery {
    r#use: DataPlaneOrder,
}

async fn data_plane(State(daemon): Daemon, Query(query): Query<DataPlaneQuery>) -> Response {
    match ask(&daemon, |answer| Request::DataPlane(query.r#use, answer)).await {
        Some(Ok(done)) => Json(done).into_response(),
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error.error, false),
        None => busy(),
    }
}

async fn flows(State(daemon): Daemon, Query(query): Query<FlowQuery>) -> Response {
    match ask(&daemon, |answer| Request::Flows(query, answer)).await {
        Some(Ok(page)) => Json(page).into_response(),
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error, false),
        None => busy(),
    }
}

async fn why(State(daemon): Daemon, Query(query): Query<WhyQuery>) -> Response {
    match ask(&daemon, |answer| Request::Why(query, answer)).await {
        Some(Ok(why)) => Json(why).into_response(),
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error, false),
        None => busy(),
    }
}

async fn capture(State(daemon): Daemon, Query(query): Query<CaptureQuery>) -> Response {
    match ask(&daemon, |answer| Request::Capture(query, answer)).await {
        Some(Ok(chunks)) => {
            let stream = futures::stream::unfold(chunks, |mut chunks| async move {
                let chunk = chunks.recv().await?;
                Some((Ok::<_, std::convert::Infallible>(chunk), chunks))
            });
            Body::from_stream(stream).into_response()
        }
        Some(Err(error)) => failure(StatusCode::UNPROCESSABLE_ENTITY, error, false),
        None => busy(),
    }
}

#[derive(Deserialize)]
struct ReloadQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn reload(State(daemon): Daemon, Query(query): Query<ReloadQuery>) -> Response {
    match ask(&daemon, |answer| Request::Reload {
        dry_run: query.dry_run,
        answer,
    })
    .await
    {
        Some(Ok(reload)) => Json(reload).into_response(),
        Some(Err(error)) => failure(
            StatusCode::UNPROCESSABLE_ENTITY,
            error.error,
            error.invalid_config,
        ),
        None => busy(),
    }
}

pub(super) async fn ask<T>(
    daemon: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    daemon.try_send(request(answer)).ok()?;
    answered.await.ok()
}

pub(super) fn busy() -> Response {
    failure(
        StatusCode::SERVICE_UNAVAILABLE,
        "lbd is busy or shutting down".to_owned(),
        false,
    )
}

fn failure(status: StatusCode, error: String, invalid_config: bool) -> Response {
    (
        status,
        Json(Failure {
            error,
            invalid_config,
        }),
    )
        .into_response()
}
