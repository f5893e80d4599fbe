//! A closure has to return a `Key`, so that a credential becomes a fingerprint.
use tower_admission::extract::RequestHead;
use tower_admission::{Quota, RateLimitLayer};

fn main() {
    let by_header = |head: RequestHead<'_>| {
        let value = head.headers.get("x-tenant")?;
        value.to_str().ok().map(String::from)
    };
    let _ = RateLimitLayer::by(by_header, Quota::per_second(10));
}
