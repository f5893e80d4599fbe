//! The name of a header is no extractor.
use tower_admission::{Quota, RateLimitLayer};

fn main() {
    let _ = RateLimitLayer::by("x-api-key", Quota::per_second(10));
}
