//! Streamed answers hold their permit until the stream ends, not until the headers are sent.
//!
//! At most two answers stream at a time, ten words each, one word every half second.
//!
//! ```sh
//! cargo run --example streaming
//! for i in 1 2 3; do curl -sN -w '%{http_code}\n' http://127.0.0.1:3000/story & done; wait
//! ```
//!
//! Two clients read a story. The third gets 503 with `Retry-After` at once. End a client that reads (kill a `curl`): its
//! permit is released, and a new client is admitted. `curl http://127.0.0.1:3000/in-flight` prints the count.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tower_admission::{ConcurrencyLimitLayer, ConcurrencyLimiter};

const WORDS: [&str; 10] = [
    "Once ", "upon ", "a ", "time ", "a ", "queue ", "was ", "so ", "long ", ".\n",
];

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let (app, _) = app(2, Duration::from_millis(500));
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}

fn app(limit: usize, pause: Duration) -> (Router, ConcurrencyLimiter) {
    let layer = ConcurrencyLimitLayer::new(limit)
        .name("The story teller")
        // A client that stops reading keeps its permit until another request needs it, for this time at least.
        .reclaim_after(Some(Duration::from_secs(30)));
    let limiter = layer.limiter();
    let in_flight = limiter.clone();
    let app = Router::new()
        .route("/story", get(move || async move { story(pause) }))
        .layer(layer)
        // A route that is added after the layer is outside of it.
        .route(
            "/in-flight",
            get(async move || format!("{} of {}\n", in_flight.in_flight(), in_flight.limit())),
        );
    (app, limiter)
}

/// The headers are sent at once, the words follow one by one.
fn story(pause: Duration) -> Body {
    let words = tokio_stream::iter(WORDS).map(|word| Ok::<_, Infallible>(Bytes::from(word)));
    Body::from_stream(words.throttle(pause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    fn request() -> Request {
        Request::get("/story").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn a_stream_holds_its_permit_until_it_ends() {
        let (app, limiter) = app(1, Duration::from_millis(1));
        let story = app.clone().oneshot(request()).await.unwrap();
        assert_eq!(story.status(), 200);
        assert_eq!(
            limiter.in_flight(),
            1,
            "the headers are there, the body is not"
        );

        let rejected = app.clone().oneshot(request()).await.unwrap();
        assert_eq!(rejected.status(), 503);

        let text = story.into_body().collect().await.unwrap().to_bytes();
        assert!(text.ends_with(b".\n"));
        assert_eq!(limiter.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_dropped_stream_releases_its_permit() {
        let (app, limiter) = app(1, Duration::from_secs(60));
        let story = app.clone().oneshot(request()).await.unwrap();
        drop(story);
        assert_eq!(limiter.in_flight(), 0);
        assert_eq!(app.oneshot(request()).await.unwrap().status(), 200);
    }
}
