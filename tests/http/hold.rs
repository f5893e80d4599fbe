//! How long a request counts: until the end of its body, and no longer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_admission::{ConcurrencyLimitLayer, ConcurrencyLimiter, HoldUntil, PermitBody};

use crate::common::{Frames, Seen, Streamed, answering, bodies, ok, request, send, streamed};

/// A response with a partly sent body.
async fn streaming() -> (ConcurrencyLimiter, Frames, PermitBody<Streamed>, Seen) {
    let (seen, _) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1).observe(seen.clone());
    let (frames, body) = streamed();
    let response = send(&layer.layer(bodies([body])), request()).await;
    assert_eq!(layer.limiter().in_flight(), 1, "the headers are there");
    (layer.limiter(), frames, response.into_body(), seen)
}

fn assert_released_once(limiter: &ConcurrencyLimiter, seen: &Seen) {
    assert_eq!(limiter.in_flight(), 0);
    let released = seen.take().iter().filter(|e| *e == "released ").count();
    assert_eq!(released, 1);
}

#[tokio::test]
async fn a_permit_is_held_until_the_stream_ends() {
    let (limiter, frames, mut body, seen) = streaming().await;
    for _ in 0..3 {
        frames.send("some");
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(limiter.in_flight(), 1);
    }
    drop(frames);
    assert!(body.frame().await.is_none());
    assert_eq!(limiter.in_flight(), 0, "although the body is still there");
    assert!(body.frame().await.is_none());
    drop(body);
    assert_released_once(&limiter, &seen);
}

#[tokio::test]
async fn a_permit_is_held_until_the_body_fails() {
    let (limiter, frames, mut body, seen) = streaming().await;
    frames.fail();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the body fails");
    assert_eq!(limiter.in_flight(), 0);
    drop(body);
    assert_released_once(&limiter, &seen);
}

#[tokio::test]
async fn a_permit_is_held_until_the_trailers() {
    let (limiter, frames, mut body, seen) = streaming().await;
    frames.send("data");
    frames.trailers();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert_eq!(limiter.in_flight(), 1);
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert_eq!(limiter.in_flight(), 0);
    drop(body);
    assert_released_once(&limiter, &seen);
}

#[tokio::test]
async fn a_permit_is_held_until_the_body_is_dropped_midway() {
    let (limiter, frames, mut body, seen) = streaming().await;
    frames.send("some");
    assert!(body.frame().await.unwrap().is_ok());
    drop(body);
    assert_released_once(&limiter, &seen);
}

#[tokio::test]
async fn a_permit_is_held_until_an_unread_body_is_dropped() {
    let (limiter, _frames, body, seen) = streaming().await;
    drop(body);
    assert_released_once(&limiter, &seen);
}

#[tokio::test]
async fn a_permit_is_held_until_the_last_byte_of_a_whole_body() {
    let layer = ConcurrencyLimitLayer::new(1);
    let mut body = send(&layer.layer(answering(|_| ok())), request())
        .await
        .into_body();
    assert_eq!(layer.limiter().in_flight(), 1);
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "ok"
    );
    assert_eq!(
        layer.limiter().in_flight(),
        0,
        "its end is known with its last frame"
    );
}

#[tokio::test]
async fn a_response_without_a_body_releases_at_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let empty = layer.layer(answering(|_: Request<()>| {
        Response::new(Empty::<Bytes>::new())
    }));
    let no_content = layer.layer(answering(|_: Request<()>| {
        let mut response = Response::new(Full::<Bytes>::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }));
    let _empty = send(&empty, request()).await;
    assert_eq!(layer.limiter().in_flight(), 0);
    let _no_content = send(&no_content, request()).await;
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn an_answer_to_head_releases_the_permit_at_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let app = axum::Router::new()
        .route("/", axum::routing::get(|| async { "hello" }))
        .layer(layer.clone());
    let mut head = Request::new(axum::body::Body::empty());
    *head.method_mut() = Method::HEAD;
    let response = app.oneshot(head).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_permit_can_be_held_until_the_headers() {
    let layer = ConcurrencyLimitLayer::new(1).hold_until(HoldUntil::Headers);
    let (_one, first) = streamed();
    let (_two, second) = streamed();
    let service = layer.layer(bodies([first, second]));
    let _first = send(&service, request()).await;
    assert_eq!(layer.limiter().in_flight(), 0);
    let second = send(&service, request()).await;
    assert_eq!(second.status(), 200);

    let pending = layer.layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    }));
    let mut pending = task::spawn(pending.oneshot(request()));
    assert_pending!(pending.poll());
    assert_eq!(layer.limiter().in_flight(), 1, "there are no headers yet");
}

#[tokio::test]
async fn a_cancelled_request_releases_its_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let mut service = layer.layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    }));
    let never_polled = service.ready().await.unwrap().call(request());
    assert_eq!(layer.limiter().in_flight(), 1);
    drop(never_polled);
    assert_eq!(layer.limiter().in_flight(), 0);

    let mut pending = task::spawn(service.ready().await.unwrap().call(request()));
    assert_pending!(pending.poll());
    assert_eq!(layer.limiter().in_flight(), 1);
    drop(pending);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_dropped_response_releases_its_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(answering(|_| ok()));
    let response = send(&service, request()).await;
    assert_eq!(layer.limiter().in_flight(), 1);
    drop(response);
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test]
async fn a_panic_in_call_releases_the_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(answering(|_| panic!("on purpose") as Response<Full<Bytes>>));
    for _ in 0..2 {
        let service = service.clone();
        let task = tokio::spawn(async move { service.oneshot(request()).await.map(drop) });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

#[tokio::test]
async fn a_panic_in_the_future_releases_the_permit() {
    async fn panics(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
        tokio::task::yield_now().await;
        panic!("on purpose")
    }
    let layer = ConcurrencyLimitLayer::new(1);
    let service = layer.layer(tower::service_fn(panics));
    for _ in 0..2 {
        let service = service.clone();
        let task = tokio::spawn(async move { service.oneshot(request()).await.map(drop) });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(layer.limiter().in_flight(), 0);
    }
}

/// A body of three bytes, a frame each, and trailers.
struct Three {
    left: u64,
    trailers: bool,
}

impl Body for Three {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left > 0 {
            self.left -= 1;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))));
        }
        let trailers = std::mem::take(&mut self.trailers);
        Poll::Ready(trailers.then(|| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", 0.into());
            Ok(Frame::trailers(trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && !self.trailers
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[tokio::test]
async fn the_permit_body_forwards_everything() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (left, trailers) = (3, true);
    let mut body = send(&layer.layer(bodies([Three { left, trailers }])), request())
        .await
        .into_body();
    for left in [3, 2, 1] {
        assert_eq!(body.size_hint().exact(), Some(left));
        assert!(!body.is_end_stream());
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "x"
        );
    }
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(!body.is_end_stream(), "there are trailers");
    assert_eq!(layer.limiter().in_flight(), 1);
    let trailers = body
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn the_body_of_a_rate_limit_forwards_everything() {
    let layer = tower_admission::RateLimitByTokenLayer::new(tower_admission::Quota::per_hour(1));
    let (left, trailers) = (1, true);
    let service = layer.layer(bodies([Three { left, trailers }]));
    let mut body = send(&service, request()).await.into_body();
    assert_eq!(body.size_hint().exact(), Some(1));
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(!body.is_end_stream());
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn the_body_of_a_rejection_has_a_known_length() {
    let layer = ConcurrencyLimitLayer::deny_all();
    let mut service = layer.layer(answering(|_| ok()));
    let mut refused = task::spawn(service.ready().await.unwrap().call(request()));
    let mut body = assert_ready_ok!(refused.poll()).into_body();
    let length = body.size_hint().exact().unwrap();
    assert!(!body.is_end_stream());
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(data.len() as u64, length);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
}
