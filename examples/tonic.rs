//! Both layers on a whole tonic server, and a third one around one service.
//!
//! ```sh
//! cargo run --features tonic --example tonic
//! grpcurl -plaintext 127.0.0.1:3000 grpc.health.v1.Health/Check
//! # without grpcurl:
//! printf '\0\0\0\0\0' | curl -s --http2-prior-knowledge -D - -o /dev/null --data-binary @- \
//!   -H 'content-type: application/grpc' -H 'te: trailers' http://127.0.0.1:3000/grpc.health.v1.Health/Check
//! ```
//!
//! Above the rate, the answer has `grpc-status: 8` (RESOURCE_EXHAUSTED) and `RetryInfo` in its details.

use tonic::transport::Server;
use tower::Layer;
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer, RateLimitLayer,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (_, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;

    // Reflection is for people, not for programs, so a low limit is enough. Its name distinguishes its numbers in the
    // header from those of the limit around it.
    let policy = Policy::new("reflection", Quota::per_minute(30));
    let reflection_limit = RateLimitLayer::by(ClientIp::peer(), policy);

    let address = "127.0.0.1:3000".parse()?;
    println!("listening on {address}");
    Server::builder()
        // The first layer is the outermost: a call that gets UNAVAILABLE at capacity spends no quota.
        .layer(ConcurrencyLimitLayer::new(64))
        .layer(RateLimitByTokenLayer::new(Quota::per_second(10).burst(20)))
        .add_service(health)
        .add_service(reflection_limit.layer(reflection))
        .serve(address)
        .await?;
    Ok(())
}
