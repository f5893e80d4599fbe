//! A setter returns the layer; what it returns has to be used.
#![deny(unused_must_use)]
use tower_admission::{Quota, RateLimitByTokenLayer};

fn main() {
    let layer = RateLimitByTokenLayer::new(Quota::per_second(10));
    layer.dry_run(true);
}
