//! The address of a server is no store.
use tower_admission::{Quota, RateLimitByTokenLayer};

fn main() {
    let _ = RateLimitByTokenLayer::new(Quota::per_second(10)).store("redis://localhost");
}
