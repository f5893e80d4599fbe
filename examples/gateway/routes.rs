//! Which limits are on which routes.

use axum::Router;
use axum::routing::{get, post};
use tonic::service::Routes;
use tower::ServiceBuilder;
use tower_admission::observe::TracingObserver;
use tower_admission::{ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer};
use tower_admission_redis::RedisStore;

use crate::handlers::{echo, health, slow, stream};
use crate::server::with_body_timeouts;

/// Makes limits, which replicas share if there is a store.
pub(crate) struct Limits {
    store: Option<RedisStore>,
}

impl Limits {
    pub(crate) fn new(store: Option<RedisStore>) -> Self {
        Self { store }
    }

    pub(crate) fn app(&self, max_concurrency: usize, quota: Quota) -> Router {
        let api = Router::new()
            .route("/echo", post(echo))
            .route("/slow", get(slow))
            .route("/stream", get(stream));
        let api = with_body_timeouts(api);
        // A layer value is one limit wherever it is applied, so HTTP and gRPC have one budget.
        // The first layer is the outermost: a 503 spends no quota.
        let limits = ServiceBuilder::new()
            .layer(self.in_flight("Gateway", max_concurrency))
            .layer(self.rate("Gateway", quota));
        let batch_limits = ServiceBuilder::new()
            .layer(self.in_flight("Batch", 4))
            .layer(self.rate("Batch", Quota::per_second(1).burst(2)));
        let batch = Router::new().route("/echo", post(echo));
        let batch = with_body_timeouts(batch).layer(batch_limits);

        Router::new()
            .nest("/api", api)
            .merge(grpc())
            .layer(limits)
            // What is added after a layer is outside of it.
            .nest("/batch", batch)
            .route("/health", get(health))
    }

    fn in_flight(&self, name: &str, limit: usize) -> ConcurrencyLimitLayer {
        let layer = ConcurrencyLimitLayer::new(limit)
            .name(name)
            .observe(TracingObserver::new());
        match &self.store {
            Some(store) => layer.store(store.clone()),
            None => layer,
        }
    }

    fn rate(&self, name: &str, quota: Quota) -> RateLimitByTokenLayer {
        let layer = RateLimitByTokenLayer::new(Policy::new(name, quota))
            .name(name)
            .observe(TracingObserver::new());
        match &self.store {
            Some(store) => layer.store(store.clone()),
            None => layer,
        }
    }
}

/// The same routes, without limits.
pub(crate) fn unlimited() -> Router {
    let routes = Router::new()
        .route("/api/echo", post(echo))
        .route("/api/slow", get(slow))
        .route("/api/stream", get(stream))
        .route("/batch/echo", post(echo));
    with_body_timeouts(routes)
        .route("/health", get(health))
        .merge(grpc())
}

/// `grpc.health.v1.Health`, and reflection so that grpcurl finds it.
fn grpc() -> Router {
    let (_, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the health service's own description is valid");
    Routes::new(health)
        .add_service(reflection)
        .into_axum_router()
        // What no route takes is answered in HTTP, not in gRPC.
        .reset_fallback()
}
