//! `RateLimitStatus` is an extractor only with the feature `axum`.
use axum::Router;
use axum::routing::get;
use tower_admission::RateLimitStatus;

async fn handler(_: RateLimitStatus) {}

fn main() {
    let _: Router = Router::new().route("/", get(handler));
}
