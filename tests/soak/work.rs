//! The work behind the layers: it streams, fails, panics and takes its time.

use std::convert::Infallible;
use std::panic::panic_any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, service_fn};
use tower_admission::{ConcurrencyLimitLayer, Key, Leases, RateLimitLayer};

use crate::findings::DELIBERATE;
use crate::meters::{AtWork, Meters, TENANTS};

pub(crate) type Service =
    BoxCloneSyncService<Request<()>, Response<UnsyncBoxBody<Bytes, BoxError>>, &'static str>;

#[derive(Clone)]
pub(crate) struct Work(Arc<Meters>);

/// A body of some frames, each a moment after the one before.
struct Frames {
    left: u32,
    pause: Pin<Box<Sleep>>,
    at_work: Option<AtWork>,
}

fn millis(range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(fastrand::u64(range))
}

impl Work {
    pub(crate) fn new(meters: Arc<Meters>) -> Self {
        Self(meters)
    }

    async fn answer(self, request: Request<()>) -> Result<Response<Frames>, &'static str> {
        let tenant = request.headers()["x-tenant"].to_str().unwrap().to_owned();
        let at_work = self.0.request(&tenant);
        tokio::time::sleep(millis(0..150)).await;
        match fastrand::u32(0..100) {
            0..3 => panic_any(DELIBERATE),
            3..8 => Err("the work failed"),
            _ => Ok(Response::new(Frames {
                left: fastrand::u32(0..4),
                pause: Box::pin(tokio::time::sleep(millis(0..30))),
                at_work: Some(at_work),
            })),
        }
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            // Before the layers see the end and release their permits.
            self.at_work = None;
            return Poll::Ready(None);
        }
        ready!(self.pause.as_mut().poll(cx));
        self.left -= 1;
        self.pause = Box::pin(tokio::time::sleep(millis(0..30)));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
    }
}

/// Both layers around the work, as one type for all stores.
pub(crate) fn service<K: tower_admission::KeyExtractor>(
    concurrency: ConcurrencyLimitLayer,
    rate: RateLimitLayer<K>,
    work: Work,
) -> Service {
    let service = ServiceBuilder::new()
        .layer(concurrency)
        .layer(rate)
        .service(service_fn(move |request| work.clone().answer(request)));
    let service = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(BodyExt::boxed_unsync))
        .service(service);
    BoxCloneSyncService::new(service)
}

/// Workers that hold leases by id; some forget theirs.
pub(crate) fn jobs(
    leases: &[Leases],
    meters: &Arc<Meters>,
    stopped: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let workers = leases.iter().cycle().take(leases.len() * 6);
    let workers = workers.map(|leases| {
        let (leases, meters, stopped) = (leases.clone(), meters.clone(), stopped.clone());
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let tenant = Key::id("tenant", &fastrand::usize(0..TENANTS).to_string());
                let Ok(lease) = leases.acquire_new(&tenant).await else {
                    tokio::time::sleep(millis(10..60)).await;
                    continue;
                };
                let at_work = meters.job();
                let lease = lease.keep_alive();
                tokio::time::sleep(millis(10..300)).await;
                drop(at_work);
                if fastrand::u32(0..50) == 0 {
                    lease.detach();
                }
            }
        })
    });
    workers.collect()
}
