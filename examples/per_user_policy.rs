//! Limits per user, with a tier for users of the paid plan.
//!
//! ```sh
//! cargo run --example per_user_policy
//! curl -i http://127.0.0.1:3000/ -H 'authorization: Bearer free-alice'
//! curl -i http://127.0.0.1:3000/ -H 'authorization: Bearer paid-alice'
//! ```
//!
//! The answer lists what is left of each quota: a burst of 3 on the free plan, of 50 on the paid plan. Each tier has its
//! own buckets. A request without a token gets 401 and is not charged.

use axum::extract::Request;
use axum::http::{StatusCode, header::AUTHORIZATION};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::{Key, Policy, Quota, RateLimitLayer, RateLimitStatus, RequestHead};

/// The authenticated sender of a request.
#[derive(Clone)]
struct User {
    id: String,
    plan: String,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let policy = Policy::new("requests", Quota::per_minute(10).burst(3))
        .and("daily", Quota::per_day(1_000))
        .tier("paid", "requests=600/min burst 50, daily=100000/day");

    // Authentication is outermost: the limits charge the user, whichever token the user sends.
    let layers = ServiceBuilder::new()
        .layer(from_fn(authenticate))
        .layer(RateLimitLayer::by(user, policy).tier_by(plan));
    let app: Router = Router::new().route("/", get(quota_left)).layer(layers);

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}

fn user(head: RequestHead<'_>) -> Option<Key> {
    let user = head.extensions.get::<User>()?;
    Some(Key::id("user", &user.id))
}

fn plan(head: RequestHead<'_>) -> Option<&str> {
    Some(&head.extensions.get::<User>()?.plan)
}

/// Takes the place of a look-up of the token: `free-alice` is Alice, on the free plan.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let authorization = request.headers().get(AUTHORIZATION);
    let token = authorization.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let user = match token.and_then(|token| token.split_once('-')) {
        Some((plan @ ("free" | "paid"), id)) => User {
            id: id.to_owned(),
            plan: plan.to_owned(),
        },
        _ => return Err(StatusCode::UNAUTHORIZED),
    };
    request.extensions_mut().insert(user);
    Ok(next.run(request).await)
}

async fn quota_left(status: RateLimitStatus) -> String {
    status
        .usages()
        .map(|(name, usage)| format!("{name}: {} left\n", usage.remaining()))
        .collect()
}
