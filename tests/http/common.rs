//! Shared test helpers: requests, services, stores and observers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{BoxError, Service, ServiceExt};
use tower_admission::extract::KeyExtractor;
use tower_admission::observe::Subject;
use tower_admission::store::{
    AcquireOutcome, Charge, FailureMode, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus,
    LeaseStore, LeaseUsage, NamedAcquireOutcome, NamedLease, NamedLimits, RateBuckets, RateStore,
    Reply,
};
use tower_admission::test_util::TestClock;
use tower_admission::{
    Decision, Key, MemoryStore, Observer, PeerAddr, Policy, RateLimitLayer, Rejection, RequestHead,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const NANO: Duration = Duration::from_nanos(1);

/// The maximum wait of a test for an expected event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

// Requests

pub(crate) fn request() -> Request<()> {
    Request::new(())
}

pub(crate) fn peer(ip: &str) -> PeerAddr {
    PeerAddr((ip.parse::<std::net::IpAddr>().unwrap(), 4711).into())
}

pub(crate) fn from_peer(ip: &str) -> Request<()> {
    Request::builder().extension(peer(ip)).body(()).unwrap()
}

pub(crate) fn bearer(token: &str) -> Request<()> {
    with_header("authorization", &format!("Bearer {token}"))
}

pub(crate) fn with_header(name: &str, value: &str) -> Request<()> {
    Request::builder().header(name, value).body(()).unwrap()
}

pub(crate) fn upgrading() -> Request<()> {
    let request = Request::builder().header("upgrade", "websocket");
    request.header("connection", "upgrade").body(()).unwrap()
}

/// The key in the `user` header, for tests that are not about extraction.
pub(crate) fn by_user(head: RequestHead<'_>) -> Option<Key> {
    let user = head.headers.get("user")?.to_str().ok()?;
    Some(user_key(user))
}

pub(crate) fn user_key(user: &str) -> Key {
    Key::id("user", user)
}

pub(crate) fn user(name: &str) -> Request<()> {
    with_header("user", name)
}

// Services

pub(crate) type Ok200 = Response<Full<Bytes>>;

/// A service that answers each request with `answer`.
pub(crate) fn answering<B, R>(
    answer: impl Fn(Request<R>) -> Response<B> + Clone,
) -> impl Service<Request<R>, Response = Response<B>, Error = Infallible, Future: Send> + Clone
where
    B: Send,
{
    tower::service_fn(move |request| ready(Ok(answer(request))))
}

/// A service that answers `200 OK` with a body, and counts its calls.
#[derive(Clone, Default)]
pub(crate) struct Counting(Arc<AtomicUsize>);

impl Counting {
    pub(crate) fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl<R> Service<Request<R>> for Counting {
    type Response = Ok200;
    type Error = Infallible;
    type Future = Ready<Result<Ok200, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<R>) -> Self::Future {
        self.0.fetch_add(1, Ordering::SeqCst);
        ready(Ok(ok()))
    }
}

/// A service that panics if a clone is called that was not made ready. tower permits this.
#[derive(Default)]
pub(crate) struct Readied(bool);

impl Clone for Readied {
    fn clone(&self) -> Self {
        Self(false)
    }
}

impl Service<Request<()>> for Readied {
    type Response = Ok200;
    type Error = Infallible;
    type Future = Ready<Result<Ok200, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0 = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.0), "called without being ready");
        ready(Ok(ok()))
    }
}

pub(crate) fn ok() -> Ok200 {
    Response::new(Full::from("ok"))
}

pub(crate) async fn send<S, R, B>(service: &S, request: Request<R>) -> Response<B>
where
    S: Service<Request<R>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    service.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn status<S, R, B>(service: &S, request: Request<R>) -> u16
where
    S: Service<Request<R>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    send(service, request).await.status().as_u16()
}

pub(crate) async fn text<B>(response: Response<B>) -> String
where
    B: Body<Error: std::fmt::Debug>,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.into()).unwrap()
}

pub(crate) type BoxedBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response of one type for all layers.
pub(crate) fn boxed<B>(response: Response<B>) -> Response<BoxedBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

pub(crate) fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    let mut values = response.headers().get_all(name).iter();
    let value = values.next()?;
    assert!(values.next().is_none(), "{name} is there twice");
    Some(value.to_str().unwrap())
}

pub(crate) fn retry_after<B>(response: &Response<B>) -> Option<u64> {
    let value = header(response, "retry-after")?;
    assert!(value.bytes().all(|b| b.is_ascii_digit()), "{value}");
    let seconds = value.parse().unwrap();
    assert!(seconds >= 1, "Retry-After is at least 1");
    Some(seconds)
}

// Streamed bodies

pub(crate) type Streamed = StreamBody<UnboundedReceiverStream<Result<Frame<Bytes>, BoxError>>>;

/// The sending side of a streamed body. Dropping it ends the body.
pub(crate) struct Frames(mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>);

impl Frames {
    pub(crate) fn send(&self, data: &'static str) {
        self.0.send(Ok(Frame::data(data.into()))).unwrap();
    }

    pub(crate) fn trailers(&self) {
        self.0
            .send(Ok(Frame::trailers(Default::default())))
            .unwrap();
    }

    /// Whether the body was dropped.
    pub(crate) fn is_dropped(&self) -> bool {
        self.0.is_closed()
    }

    pub(crate) fn fail(&self) {
        self.0.send(Err("the body fails".into())).unwrap();
    }
}

pub(crate) fn streamed() -> (Frames, Streamed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let body = StreamBody::new(UnboundedReceiverStream::new(receiver));
    (Frames(sender), body)
}

/// A service that answers with these bodies, one after another.
pub(crate) fn bodies<B: Send + 'static>(
    bodies: impl IntoIterator<Item = B>,
) -> impl Service<Request<()>, Response = Response<B>, Error = Infallible, Future: Send> + Clone {
    let bodies = Arc::new(Mutex::new(bodies.into_iter().collect::<VecDeque<_>>()));
    answering(move |_| {
        let body = bodies.lock().unwrap().pop_front();
        Response::new(body.expect("one body more"))
    })
}

// Rates

/// A layer with a test clock.
pub(crate) fn timed<K: KeyExtractor>(
    key: K,
    policy: impl Into<Policy>,
) -> (RateLimitLayer<K>, TestClock) {
    let clock = TestClock::default();
    let layer = RateLimitLayer::by(key, policy).store(store(&clock));
    (layer, clock)
}

pub(crate) fn store(clock: &TestClock) -> MemoryStore {
    MemoryStore::new().clock(clock.clone())
}

/// A store that replies when the test lets it, like a remote store.
#[derive(Clone)]
pub(crate) struct LaterStore {
    inner: MemoryStore,
    answers: Arc<Semaphore>,
}

impl LaterStore {
    pub(crate) fn new(clock: &TestClock) -> Self {
        Self {
            inner: store(clock),
            answers: Arc::new(Semaphore::new(0)),
        }
    }

    pub(crate) fn answer(&self, count: usize) {
        self.answers.add_permits(count);
    }
}

impl RateStore for LaterStore {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(LaterBuckets {
            inner: self.inner.open(policies),
            answers: self.answers.clone(),
        })
    }
}

struct LaterBuckets {
    inner: Arc<dyn RateBuckets>,
    answers: Arc<Semaphore>,
}

impl RateBuckets for LaterBuckets {
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        let (inner, answers) = (self.inner.clone(), self.answers.clone());
        let charges = charges.to_vec();
        Reply::Pending(Box::pin(async move {
            answers.acquire().await.unwrap().forget();
            inner.take(&charges, cost).await
        }))
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        let (inner, charges) = (self.inner.clone(), charges.to_vec());
        Reply::Pending(Box::pin(async move { inner.peek(&charges, cost).await }))
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        let (inner, answers) = (self.inner.clone(), self.answers.clone());
        let charges = charges.to_vec();
        Reply::Pending(Box::pin(async move {
            answers.acquire().await.unwrap().forget();
            inner.refund(&charges, cost).await;
        }))
    }
}

// Observers

/// Records what it observes.
#[derive(Clone)]
pub(crate) struct Seen {
    events: Arc<Mutex<Vec<String>>>,
    released: mpsc::UnboundedSender<()>,
}

/// Reports when a permit is released.
pub(crate) struct Released(mpsc::UnboundedReceiver<()>);

impl Released {
    pub(crate) async fn one(&mut self) {
        let released = tokio::time::timeout(PATIENCE, self.0.recv()).await;
        released.expect("a permit comes back").unwrap();
    }
}

impl Seen {
    pub(crate) fn new() -> (Self, Released) {
        let (released, receiver) = mpsc::unbounded_channel();
        let seen = Self {
            events: Arc::default(),
            released,
        };
        (seen, Released(receiver))
    }

    /// The records since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    fn push(&self, event: String) {
        self.events.lock().unwrap().push(event);
    }
}

impl Observer for Seen {
    fn admitted(&self, subject: &Subject<'_>) {
        self.push(format!("admitted {}", subject.limit_type));
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let reason = rejection.reason().as_str();
        self.push(format!("rejected {} {reason}", subject.limit_type));
    }

    fn would_reject(&self, subject: &Subject<'_>, rejection: &Rejection) {
        let reason = rejection.reason().as_str();
        self.push(format!("would reject {} {reason}", subject.limit_type));
    }

    fn acquired(&self, limiter: &str, in_flight: u64) {
        self.push(format!("acquired {limiter} {in_flight}"));
    }

    fn released(&self, limiter: &str) {
        self.push(format!("released {limiter}"));
        let _ = self.released.send(());
    }
}

/// A store that is unavailable.
#[derive(Clone)]
pub(crate) struct Away(pub(crate) FailureMode);

impl RateStore for Away {
    fn open(&self, _: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(self.clone())
    }
}

impl RateBuckets for Away {
    fn take(&self, _: &[Charge], _: u32) -> Reply<Decision> {
        Reply::Ready(match self.0 {
            FailureMode::Open => Decision::unlimited(),
            _ => Decision::unavailable(),
        })
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        self.take(charges, cost)
    }

    fn refund(&self, _: &[Charge], _: u32) -> Reply<()> {
        Reply::Ready(())
    }
}

impl LeaseStore for Away {
    fn open_leases(&self, _: &str) -> Arc<dyn LeaseSlots> {
        Arc::new(self.clone())
    }
}

impl LeaseSlots for Away {
    fn acquire(&self, _: LeaseLimits) -> Reply<AcquireOutcome> {
        Reply::Ready(AcquireOutcome::Unavailable(self.0))
    }

    fn usage_at(&self, _: Option<&Key>, _: usize) -> Reply<Option<LeaseUsage>> {
        Reply::Ready(None)
    }

    fn acquire_named(&self, _: &NamedLease, _: NamedLimits) -> Reply<NamedAcquireOutcome> {
        Reply::Ready(NamedAcquireOutcome::Unavailable(self.0))
    }

    fn heartbeat(&self, _: &LeaseName, _: Option<u64>, _: Duration) -> Reply<LeaseStatus> {
        Reply::Ready(LeaseStatus::Unavailable)
    }

    fn release(&self, _: &LeaseName, _: Option<u64>) -> Reply<LeaseStatus> {
        Reply::Ready(LeaseStatus::Unavailable)
    }
}

/// Bounds how long a failing test hangs, independent of tokio's clock.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let (tell, late) = oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(PATIENCE);
        let _ = tell.send(());
    });
    tokio::select! {
        done = future => done,
        _ = late => panic!("not in time"),
    }
}
