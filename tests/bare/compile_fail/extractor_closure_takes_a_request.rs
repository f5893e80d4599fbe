//! A closure gets the head of a request, whatever the type of its body.
use http::Request;
use tower_admission::{Key, Quota, RateLimitLayer};

fn main() {
    let by_path = |request: &Request<()>| Some(Key::id("path", request.uri().path()));
    let _ = RateLimitLayer::by(by_path, Quota::per_second(10));
}
