//! Both layers on an axum server, and stricter limits for one group of routes.
//!
//! ```sh
//! cargo run --example axum
//! curl -i http://127.0.0.1:3000/ -H 'authorization: Bearer alice'
//! curl -s -o /dev/null -w '%{http_code}\n' 'http://127.0.0.1:3000/?n=[1-30]' -H 'authorization: Bearer bob'
//! for i in 1 2 3; do curl -s -X POST http://127.0.0.1:3000/reports & done; wait
//! ```
//!
//! The first answer has `RateLimit` fields. Of the 30 requests of Bob, 20 get 200, and the others 429. Of three reports
//! at once, two are written, and the third gets 503.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::{ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    // In a ServiceBuilder the first layer is the outermost: a 503 spends no quota.
    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(64).name("The gateway"))
        .layer(RateLimitByTokenLayer::new(
            Policy::new("burst", Quota::per_second(10).burst(20))
                .and("daily", Quota::per_day(50_000)),
        ));
    // A separate layer value has a separate limit. The limits above apply to reports as well.
    let stricter = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(2).name("The report writer"))
        .layer(RateLimitByTokenLayer::new(Policy::new(
            "reports",
            Quota::per_minute(6),
        )));

    let reports = Router::new().route("/", post(report)).layer(stricter);
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .nest("/reports", reports)
        .layer(limits)
        // A route that is added after a layer is outside of it.
        .route("/health", get(|| async { "ok\n" }));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // Without connect info, all clients without a token would share one bucket.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

async fn report() -> &'static str {
    tokio::time::sleep(Duration::from_secs(2)).await;
    "written\n"
}
