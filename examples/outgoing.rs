//! Limits on requests that a service *sends*, such as to an API that allows five calls a second.
//!
//! ```sh
//! cargo run --example outgoing
//! ```
//!
//! The program starts an upstream server on the loopback and calls it in two ways.
//!
//! 1. Background work *waits*: it asks a `RateLimiter`, sleeps for the time in the rejection, and asks again. Eight
//!    calls at five a second take a bit more than half a second, after a burst of five.
//! 2. A request of a user *fails fast*: the layers are around the HTTP client, and the caller gets the 429 or 503 of the
//!    layer without a call to the upstream. Each host has its own limits.
//!
//! `tower::limit` is enough where one limit for all hosts is, and where each caller may wait.

use std::error::Error;
use std::future::Future;

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_admission::{
    ConcurrencyLimitLayer, Key, Policy, Quota, RateLimitLayer, RateLimiter, Rejection, RequestHead,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let upstream = upstream().await?;
    let client = Client::builder(TokioExecutor::new()).build_http();

    println!("background work waits:");
    let start = Instant::now();
    let limiter = RateLimiter::new(Quota::per_second(5));
    let key = Key::id("host", &upstream);
    for call in 1..=8 {
        wait_for(&limiter, &key).await?;
        let response = client.request(request(&upstream)).await?;
        let at = start.elapsed().as_millis();
        println!("  call {call} at {at} ms: {}", response.status());
    }

    println!("requests of users fail fast:");
    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(16).name("The upstream"))
        .layer(RateLimitLayer::by(host, calls()))
        .service(client);
    for call in 1..=8 {
        let status = send(limits.clone(), &upstream).await?;
        println!("  call {call}: {status}");
    }
    Ok(())
}

/// Waits until a call fits the limit.
async fn wait_for(limiter: &RateLimiter, key: &Key) -> Result<(), Rejection> {
    loop {
        let Err(rejection) = limiter.check(key).await.into_result() else {
            return Ok(());
        };
        // Without a time to wait the call can never fit, as one of a key with `deny all`.
        let Some(wait) = rejection.retry_after() else {
            return Err(rejection);
        };
        tokio::time::sleep(wait).await;
    }
}

fn calls() -> Policy {
    Policy::new("calls", Quota::per_second(5))
}

/// The key is the host that the request goes to.
fn host(head: RequestHead<'_>) -> Option<Key> {
    Some(Key::id("host", head.uri.authority()?.as_str()))
}

/// Works with any HTTP client that is a tower service.
async fn send<S, B>(client: S, upstream: &str) -> Result<StatusCode, S::Error>
where
    S: Service<Request<Empty<Bytes>>, Response = http::Response<B>>,
    S::Future: Future,
{
    let response = client.oneshot(request(upstream)).await?;
    Ok(response.status())
}

fn request(upstream: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://{upstream}/"));
    request.body(Empty::new()).expect("the address is valid")
}

/// A server on a free port of the loopback.
async fn upstream() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let app = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tower::service_fn;

    #[tokio::test]
    async fn a_call_over_the_limit_does_not_reach_the_upstream() {
        let reached = Arc::new(AtomicU32::new(0));
        let count = reached.clone();
        let upstream = service_fn(move |_: Request<Empty<Bytes>>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new())) }
        });
        let client = ServiceBuilder::new()
            .layer(RateLimitLayer::by(host, Quota::per_hour(1)))
            .service(upstream);

        assert_eq!(send(client.clone(), "a.example").await.unwrap(), 200);
        assert_eq!(send(client.clone(), "a.example").await.unwrap(), 429);
        assert_eq!(reached.load(Ordering::Relaxed), 1);
        // Another host has a limit of its own.
        assert_eq!(send(client, "b.example").await.unwrap(), 200);
    }

    #[tokio::test]
    async fn a_call_that_never_fits_does_not_wait() {
        let limiter = RateLimiter::new(Quota::deny_all());
        let key = Key::id("host", "a.example");
        assert!(wait_for(&limiter, &key).await.is_err());
    }
}
