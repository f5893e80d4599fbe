//! Both layers on an axum server, with a group of routes that has stricter limits of its own.
//!
//! `cargo run --example axum`, then
//! `curl -i http://127.0.0.1:3000/ -H 'authorization: Bearer alice'`

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
    // Other values, other budgets. Reports are also within the limits above, being nested below.
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
        // What is added after a layer is outside of it.
        .route("/health", get(|| async { "ok\n" }));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // Without the connect info all clients that have no token would share one bucket.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

async fn report() -> &'static str {
    tokio::time::sleep(Duration::from_secs(2)).await;
    "written\n"
}
