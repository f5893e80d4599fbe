//! The compiler names the feature that an item needs.
use tower_admission::observe::MetricsObserver;

fn main() {
    let _ = MetricsObserver::new();
}
