//! A number has no unit.
use tower_admission::RateLimitByTokenLayer;

fn main() {
    let _ = RateLimitByTokenLayer::new(10);
}
