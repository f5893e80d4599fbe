//! A thousand calls through a trivial service on each of the hot paths.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use gungraun::prelude::*;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tower_admission::{
    ConcurrencyLimit, ConcurrencyLimitLayer, Quota, RateLimit, RateLimitByTokenLayer,
    RateLimitHeaders, Secret,
};
use tower_layer::Layer;
use tower_service::Service;

/// The divisor of the compare program.
const CALLS: usize = 1000;

#[derive(Clone)]
struct Trivial;

impl Service<Request<()>> for Trivial {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        // Dropping it would be a third of the count, and is unrelated to the layers.
        std::mem::forget(request);
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}

/// A service, and requests for it that are built before the count begins.
struct Work<S> {
    service: S,
    requests: Vec<Request<()>>,
}

impl<S: Service<Request<()>>> Work<S> {
    /// The first call is made here, because it does one-time work.
    fn new(service: S) -> Self {
        let mut work = Self {
            service,
            requests: vec![request()],
        };
        work.run();
        work.requests = (0..CALLS).map(|_| request()).collect();
        work
    }

    #[inline]
    fn run(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        for request in self.requests.drain(..) {
            assert!(self.service.poll_ready(&mut cx).is_ready());
            let answered = pin!(self.service.call(request)).poll(&mut cx);
            assert!(black_box(answered).is_ready());
        }
    }
}

/// Like in a server, the request already has an extension.
fn request() -> Request<()> {
    let authorization = "Bearer 0123456789abcdef0123456789abcdef01234567";
    let mut request = Request::new(());
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, HeaderValue::from_static(authorization));
    request.extensions_mut().insert(());
    request
}

fn concurrency() -> Work<ConcurrencyLimit<Trivial>> {
    Work::new(ConcurrencyLimitLayer::new(64).layer(Trivial))
}

fn rate(burst: u32, headers: RateLimitHeaders) -> Work<RateLimit<Trivial>> {
    // Otherwise, a key has another row of the table in every run.
    let _ = Secret::new([7; 16]).install();
    // Slow, so that the numbers in headers do not depend on the time.
    let quota = Quota::new(1, Duration::from_secs(1000)).burst(burst);
    Work::new(
        RateLimitByTokenLayer::new(quota)
            .headers(headers)
            .layer(Trivial),
    )
}

fn rate_without_headers() -> Work<RateLimit<Trivial>> {
    rate(1_000_000, RateLimitHeaders::Off)
}

fn rate_with_headers() -> Work<RateLimit<Trivial>> {
    rate(1_000_000, RateLimitHeaders::Draft)
}

fn rate_rejecting() -> Work<RateLimit<Trivial>> {
    rate(1, RateLimitHeaders::Draft)
}

#[library_benchmark]
#[bench::calls(concurrency())]
fn concurrency_admitted(work: Work<ConcurrencyLimit<Trivial>>) -> Work<ConcurrencyLimit<Trivial>> {
    run(work)
}

#[library_benchmark]
#[bench::calls(rate_without_headers())]
fn rate_admitted(work: Work<RateLimit<Trivial>>) -> Work<RateLimit<Trivial>> {
    run(work)
}

#[library_benchmark]
#[bench::calls(rate_with_headers())]
fn rate_admitted_with_headers(work: Work<RateLimit<Trivial>>) -> Work<RateLimit<Trivial>> {
    run(work)
}

#[library_benchmark]
#[bench::calls(rate_rejecting())]
fn rate_rejected(work: Work<RateLimit<Trivial>>) -> Work<RateLimit<Trivial>> {
    run(work)
}

/// Returns the work, so that its drop is not counted.
#[inline]
fn run<S: Service<Request<()>>>(mut work: Work<S>) -> Work<S> {
    work.run();
    work
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [
        concurrency_admitted,
        rate_admitted,
        rate_admitted_with_headers,
        rate_rejected
    ]
);

main!(library_benchmark_groups = hot_paths);
