//! The compiler does not infer the type of the argument.
use tower_admission::{Key, Quota, RateLimitLayer};

fn main() {
    let _ = RateLimitLayer::by(
        |head| Some(Key::id("path", head.uri.path())),
        Quota::per_second(10),
    );
}
