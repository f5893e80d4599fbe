//! A status is no responder.
use http::StatusCode;
use tower_admission::{Quota, RateLimitByTokenLayer};

fn main() {
    let _ = RateLimitByTokenLayer::new(Quota::per_second(10)).respond(StatusCode::SERVICE_UNAVAILABLE);
}
