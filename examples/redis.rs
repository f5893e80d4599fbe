//! Two processes share one limit, which is counted in Redis.
//!
//! ```sh
//! redis-server &
//! cargo run --example redis -- 127.0.0.1:3001 &
//! cargo run --example redis -- 127.0.0.1:3002 &
//! for i in 1 2 3 4; do
//!   curl -s -w '%{http_code}\n' -o /dev/null http://127.0.0.1:3001/ -H 'authorization: Bearer alice'
//!   curl -s -w '%{http_code}\n' -o /dev/null http://127.0.0.1:3002/ -H 'authorization: Bearer alice'
//! done
//! ```
//!
//! The limit is six requests a minute. Of these eight requests six get 200, whichever process they reach, and two get
//! 429. Stop Redis and repeat this with the token `bob`: each process admits its share, three requests, and logs that
//! Redis is away. Start Redis again, and both count there.
//!
//! `REDIS_URL` sets another server, such as `rediss://` (feature `tls` of `tower-admission-redis`).

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::store::FailureMode;
use tower_admission::{ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer, Secret};
use tower_admission_redis::RedisStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let address = std::env::args().nth(1);
    let address = address.unwrap_or_else(|| "127.0.0.1:3001".to_owned());
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());

    let redis = RedisStore::connect(&url)?
        // Services that do not share limits need different prefixes.
        .prefix("redis-example")
        // All replicas need the same secret. Read yours from where your other secrets are: `openssl rand -hex 16`.
        .secret(Secret::new(*b"from your config"))
        // While Redis is away, each of the two processes admits half of the limit.
        .on_failure(FailureMode::LocalShare { replicas: 2 });
    // Optional. Without it a service starts without Redis, and connects later.
    if let Err(error) = redis.ping().await {
        tracing::warn!(%error, "Redis is away");
    }

    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(64).store(redis.clone()))
        .layer(
            // Replicas find the buckets by this name.
            RateLimitByTokenLayer::new(Policy::new("calls", Quota::per_minute(6)))
                .store(redis.clone()),
        );
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(limits);

    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // Releases the permits of the last requests. Otherwise they count for another 15 seconds.
    tokio::time::timeout(Duration::from_secs(1), redis.flush()).await??;
    Ok(())
}
