//! The layers wrap HTTP services: the requests are `http::Request`.
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};
use tower_admission::{Quota, RateLimitByTokenLayer};

fn main() {
    let service = service_fn(|n: u32| async move { Ok::<_, Infallible>(n + 1) });
    let limited = RateLimitByTokenLayer::new(Quota::per_second(10)).layer(service);
    let _ = limited.oneshot(1);
}
