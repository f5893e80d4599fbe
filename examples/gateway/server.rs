//! Serves with timeouts, which `axum::serve` does not have. Copy it, with `listener.rs`.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, ServiceExt};
use tower_admission::ConcurrencyLimitLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer};
use tracing::warn;

use crate::listener::{GuardedListener, GuardedStream};

/// How long the head of an HTTP/1 request may take, with the time before it on a connection that is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request body may pause, and how long all of it may take.
const BODY_PAUSE: Duration = Duration::from_secs(15);
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a connection without requests is kept, up to twice that. HTTP/2 needs this, and so does
/// a client that sends nothing at all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often an HTTP/2 client is pinged, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Bounds the time of uploads. Not for routes whose request is a stream, as those of gRPC may be.
pub(crate) fn with_body_timeouts(routes: Router) -> Router {
    routes
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .layer(RequestBodyDeadlineLayer::new(BODY_TIMEOUT))
}

/// How long it may take to drop what is cut. Only a handler that blocks its thread takes longer.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, and then what is in progress: a connection without a request ends at once, and
/// one with a request after it. What takes longer than `grace`, such as a health watch, is cut.
///
/// When this returns, the requests are gone, and so are their permits.
pub(crate) async fn serve(
    mut listener: GuardedListener,
    app: Router,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) {
    let tasks = Tasks::default();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            (stream, peer) = listener.accept() => {
                tasks.execute(connection(stream, peer, app.clone(), tasks.clone()));
            }
            () = &mut shutdown => break,
        }
    }
    // From here on the system refuses connections.
    drop(listener);
    tasks.stopping.cancel();
    tasks.running.close();
    if timeout(grace, tasks.running.wait()).await.is_err() {
        warn!("requests that took too long to finish are cut");
        tasks.cut.cancel();
        let _ = timeout(CUT_WITHIN, tasks.running.wait()).await;
    }
}

/// The tasks of all connections: one for each connection, and one for each request of HTTP/2.
#[derive(Clone, Default)]
struct Tasks {
    running: TaskTracker,
    /// Connections are to end when their requests have ended.
    stopping: CancellationToken,
    /// Tasks are to end now.
    cut: CancellationToken,
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let cut = self.cut.clone();
        let task = async move { drop(cut.run_until_cancelled(task).await) };
        self.running.spawn(task);
    }
}

async fn connection(stream: GuardedStream, peer: SocketAddr, app: Router, tasks: Tasks) {
    let tunnel = stream.tunnel();
    // Without a limit it counts what is in flight, to the end of the response's body.
    let counting = ConcurrencyLimitLayer::new(0);
    let in_flight = counting.limiter();
    let app = counting.layer(app);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let (app, tunnel) = (app.clone(), tunnel.clone());
        let is_connect = request.method() == Method::CONNECT;
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        async move {
            let response = app.oneshot(request).await?;
            let status = response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS || is_connect && status.is_success() {
                tunnel.begin();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = Builder::new(tasks.clone());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut idle = interval(IDLE_TIMEOUT);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    idle.reset();
    // How many requests there had been when none was in flight.
    let mut before = Some(0);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // An error is the client's, or a timeout.
            _ = &mut connection => break,
            () = tasks.stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = idle.tick() => {
                let now = (in_flight.in_flight() == 0).then(|| begun.load(Ordering::Relaxed));
                if now.is_some() && now == before {
                    connection.as_mut().graceful_shutdown();
                }
                before = now;
            }
        }
    }
}
