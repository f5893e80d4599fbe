//! The body of a rejection is bytes, because the layer does not know the type of the application's bodies.
use axum::body::Body;
use http::Response;
use tower_admission::extract::RequestHead;
use tower_admission::{Quota, RateLimitByTokenLayer, Rejection};

fn main() {
    let _ = RateLimitByTokenLayer::new(Quota::per_second(10))
        .respond(|_: &Rejection, _: RequestHead<'_>| Response::new(Body::from("slow down")));
}
