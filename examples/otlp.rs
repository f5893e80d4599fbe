//! Decisions in traces: each request is a span, each decision is an event in it, and a collector gets both by OTLP.
//!
//! ```sh
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 cargo run --features tracing --example otlp
//! for i in 1 2 3; do curl -i http://127.0.0.1:3000/ -H 'authorization: Bearer alice'; done
//! ```
//!
//! The collector shows three spans. The last one has the status 429 and the attributes of the rejection. The log has one
//! warning with the same fields. `LISTEN` sets another address.

use std::env;
use std::error::Error;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use axum::routing::get;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::observe::TracingObserver;
use tower_admission::{
    ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer, admission_span,
};
use tower_http::trace::TraceLayer;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("example").build())
        .with_batch_exporter(exporter)
        .build();
    // Decisions about admitted requests are events at debug level: in the traces, and not in the log.
    let to_collector = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("tower_admission::decision", LevelFilter::DEBUG);
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("example"))
        .with_filter(to_collector);
    let log = tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(traces).with(log).init();

    let observer = TracingObserver::new();
    let limits = ServiceBuilder::new()
        // Outside of the limits, so that their decisions are events of this span.
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(request_span)
                .on_response(|response: &Response<_>, _, span: &Span| {
                    let status = response.status().as_u16();
                    span.record("http.response.status_code", status);
                }),
        )
        .layer(
            ConcurrencyLimitLayer::new(64)
                .name("example")
                .observe(observer.clone()),
        )
        .layer(
            RateLimitByTokenLayer::new(Policy::new("burst", Quota::per_minute(2)))
                .name("example")
                .observe(observer),
        );
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(limits);

    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // Sends the last spans. Blocks until the collector has them, for at most five seconds.
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    Ok(())
}

/// A span in the trace of the caller. It declares the fields that are recorded later.
fn request_span(request: &Request<Body>) -> Span {
    let span = admission_span!(
        Level::INFO,
        "request",
        otel.kind = "server",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        http.response.status_code = field::Empty,
    );
    let caller = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Fails if no OpenTelemetry layer has this span.
    let _ = span.set_parent(caller);
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
