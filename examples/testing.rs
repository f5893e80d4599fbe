//! How to test limits: with a clock that the test moves, without a server and without sleeping.
//!
//! ```sh
//! cargo test --features test-util --example testing
//! ```
//!
//! The pattern: the function that builds the service takes the store. The program passes `MemoryStore::new()`, a test
//! passes a store with a `TestClock`. Add this to your `Cargo.toml`:
//!
//! ```toml
//! [dev-dependencies]
//! tower-admission = { version = "0.1", features = ["test-util"] }
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, MemoryStore, Policy, Quota, RateLimitByTokenLayer,
};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app(MemoryStore::new()).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

/// The service under test.
fn app(store: MemoryStore) -> Router {
    let policy =
        Policy::new("burst", Quota::per_second(10).burst(20)).and("daily", Quota::per_day(50_000));
    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1).wait(8, Duration::from_secs(2)))
        .layer(
            RateLimitByTokenLayer::new(policy)
                .and_by(ClientIp::peer(), Quota::per_second(50))
                .store(store),
        );
    Router::new()
        .route("/", get(|| async { "hello" }))
        .layer(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::extract::{ConnectInfo, Request};
    use axum::response::Response;
    use tower::ServiceExt;
    use tower_admission::test_util::TestClock;

    /// A request with a token from an address. A server sets the address; in a test the request brings it along.
    fn request(token: &str, address: [u8; 4]) -> Request {
        let peer = SocketAddr::from((address, 50_000));
        Request::get("/")
            .header("authorization", format!("Bearer {token}"))
            .extension(ConnectInfo(peer))
            .body(Body::empty())
            .unwrap()
    }

    async fn send(app: &Router, token: &str) -> Response {
        let request = request(token, [192, 0, 2, 1]);
        app.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_client_that_waits_for_retry_after_is_admitted() {
        let clock = TestClock::default();
        let app = app(MemoryStore::new().clock(clock.clone()));
        for _ in 0..20 {
            assert_eq!(send(&app, "alice").await.status(), 200);
        }

        let rejected = send(&app, "alice").await;
        assert_eq!(rejected.status(), 429);
        let seconds = rejected.headers()["retry-after"].to_str().unwrap();
        let wait = Duration::from_secs(seconds.parse().unwrap());
        // A response holds its permit until its body ends or is dropped, also one of an inner layer.
        drop(rejected);

        clock.advance(wait);
        assert_eq!(send(&app, "alice").await.status(), 200);
    }

    #[tokio::test]
    async fn each_token_has_its_own_bucket() {
        let app = app(MemoryStore::new().clock(TestClock::default()));
        for _ in 0..20 {
            assert_eq!(send(&app, "alice").await.status(), 200);
        }
        assert_eq!(send(&app, "alice").await.status(), 429);
        assert_eq!(send(&app, "bob").await.status(), 200);
    }

    #[tokio::test]
    async fn made_up_tokens_do_not_get_around_the_limit_of_their_address() {
        let app = app(MemoryStore::new().clock(TestClock::default()));
        let mut admitted = 0;
        for n in 0..100 {
            let status = send(&app, &format!("made-up-{n}")).await.status();
            admitted += u32::from(status == 200);
        }
        assert_eq!(admitted, 50);

        let elsewhere = request("alice", [192, 0, 2, 2]);
        assert_eq!(app.oneshot(elsewhere).await.unwrap().status(), 200);
    }

    /// Timeouts of the layers are tokio's, so `start_paused` makes them pass at once (tokio's feature `test-util`).
    #[tokio::test(start_paused = true)]
    async fn a_request_waits_two_seconds_for_a_permit() {
        let app = app(MemoryStore::new().clock(TestClock::default()));
        let first = send(&app, "alice").await;

        let start = tokio::time::Instant::now();
        assert_eq!(send(&app, "bob").await.status(), 503);
        assert_eq!(start.elapsed().as_secs(), 2);

        // The permit is released with the body.
        drop(first);
        assert_eq!(send(&app, "bob").await.status(), 200);
    }
}
