//! Allow and deny lists: which entry decides, its effect, and the answer to the client.
#![cfg(all(feature = "axum", feature = "metrics", feature = "test-util"))]

mod answers;
mod ends;
mod exempt;
mod header;
mod model;
mod servers;
mod specific;

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use tower::{Service, ServiceExt};
use tower_admission::observe::Subject;
use tower_admission::{KeyName, Limits, Observer, PeerAddr, Rejection};

pub(crate) fn name(key: &str) -> KeyName {
    key.parse().unwrap()
}

/// The output of a future that is ready at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(ready) => ready,
        Poll::Pending => panic!("limits in memory answer at once"),
    }
}

pub(crate) fn set(limits: &Limits, key: &str, limit: &str) {
    now(limits.set(&name(key), limit.parse().unwrap())).unwrap();
}

pub(crate) fn from(ip: &str) -> Request<()> {
    let address: IpAddr = ip.parse().unwrap();
    let peer = PeerAddr((address, 4711).into());
    Request::builder().extension(peer).body(()).unwrap()
}

pub(crate) fn with(mut request: Request<()>, header: &'static str, value: &str) -> Request<()> {
    request.headers_mut().append(header, value.parse().unwrap());
    request
}

pub(crate) fn bearer(ip: &str, token: &str) -> Request<()> {
    with(from(ip), "authorization", &format!("Bearer {token}"))
}

/// A service that answers 200 and counts its calls.
#[derive(Clone, Default)]
pub(crate) struct Counting(Arc<AtomicUsize>);

impl Counting {
    pub(crate) fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Service<Request<()>> for Counting {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        self.0.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new("hello".to_owned())))
    }
}

pub(crate) fn send<S, B>(service: &S, request: Request<()>) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    now(service.clone().oneshot(request)).unwrap()
}

pub(crate) fn status<S, B>(service: &S, request: Request<()>) -> u16
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    send(service, request).status().as_u16()
}

/// Records the decisions that it observes.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn note(&self, what: &str, subject: &Subject<'_>) {
        let key = subject.key.map(|key| KeyName::from(*key).to_string());
        let key = key.unwrap_or_default();
        let line = format!("{what} {} {} {key}", subject.limit_type, subject.limiter);
        self.0.lock().unwrap().push(line.trim_end().to_owned());
    }
}

impl Observer for Seen {
    fn admitted(&self, subject: &Subject<'_>) {
        self.note("admitted", subject);
    }

    fn rejected(&self, subject: &Subject<'_>, rejection: &Rejection) {
        self.note(rejection.reason().as_str(), subject);
    }

    fn exempted(&self, subject: &Subject<'_>) {
        self.note("exempted", subject);
    }
}
