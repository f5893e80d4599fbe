//! Clients that do not read their response, and the permits that they hold.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get as route;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, ServiceExt};
use tower_admission::extract::RequestHead;
use tower_admission::store::MemoryStore;
use tower_admission::{
    ApiKey, ConcurrencyLimitLayer, ConcurrencyLimiter, HoldUntil, Key, Observer, PermitBody,
    ResponseStalled,
};

use crate::common::{
    Counting, Frames, PATIENCE, SECOND, Seen, Streamed, bodies, request, send, status, streamed,
    upgrading, with_header,
};
use crate::servers::{get, http1, http2, serve};

const STALL: Duration = ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER;
/// The maximum number of reclaimed responses that are still connected, for a small limit.
const BOUND: usize = 256;
const MILLI: Duration = Duration::from_millis(1);

/// A layer whose only permit is held by a response that has returned one of several frames.
async fn stalled(layer: &ConcurrencyLimitLayer) -> (Frames, Response<PermitBody<Streamed>>) {
    let (frames, response) = stream_on(layer, request()).await;
    assert_eq!(layer.limiter().in_flight(), 1);
    (frames, response)
}

async fn rejects(layer: &ConcurrencyLimitLayer) -> bool {
    status(&layer.layer(Counting::default()), request()).await == 503
}

#[tokio::test(start_paused = true)]
async fn a_stalled_response_loses_its_permit_to_a_request_that_needs_it() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, mut response) = stalled(&layer).await;
    frames.send("two");
    tokio::time::advance(STALL - SECOND).await;
    assert!(rejects(&layer).await);
    tokio::time::advance(SECOND).await;
    assert!(!rejects(&layer).await);
    assert_eq!(layer.limiter().in_flight(), 0);

    let error = response.frame().await.unwrap().unwrap_err();
    assert!(error.is::<ResponseStalled>(), "{error}");
    assert!(response.frame().await.is_none(), "and it has ended");
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_reclaimed_while_there_is_capacity() {
    let layer = ConcurrencyLimitLayer::new(2);
    let (frames, mut response) = stalled(&layer).await;
    frames.send("two");
    tokio::time::advance(10 * STALL).await;
    assert!(!rejects(&layer).await);
    let frame = response.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_waits_for_its_handler_keeps_its_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, response) = stalled(&layer).await;
    let mut body = task::spawn(response.into_body());
    for _ in 0..3 {
        // The client has taken the frame, and the handler has not sent the next one.
        assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
        tokio::time::advance(10 * STALL).await;
        assert!(rejects(&layer).await);
        frames.send("more");
        let frame = assert_ready!(body.enter(|cx, body| body.poll_frame(cx)));
        assert!(frame.unwrap().is_ok());
    }
    drop(frames);
    assert!(assert_ready!(body.enter(|cx, body| body.poll_frame(cx))).is_none());
    assert_eq!(layer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_keeps_its_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, mut response) = stalled(&layer).await;
    for _ in 0..5 {
        tokio::time::advance(STALL - SECOND).await;
        assert!(rejects(&layer).await);
        frames.send("more");
        assert!(response.frame().await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn the_response_stalled_for_longest_is_reclaimed_first() {
    let layer = ConcurrencyLimitLayer::new(2);
    let (_frames, mut first) = stalled(&layer).await;
    tokio::time::advance(SECOND).await;
    let (frames, mut second) = stream_on(&layer, request()).await;
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    frames.send("two");
    assert!(first.frame().await.unwrap().is_err());
    assert!(second.frame().await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_reclaimed_response_is_dropped_at_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, response) = stalled(&layer).await;
    tokio::time::advance(STALL).await;
    assert!(!frames.is_dropped());
    assert!(!rejects(&layer).await);
    assert!(frames.is_dropped(), "what the handler holds is free");
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_small_body_of_several_frames_is_reclaimed_too() {
    let layer = ConcurrencyLimitLayer::new(1);
    let dropped = Arc::new(AtomicBool::new(false));
    let body = TwoFrames {
        left: 2,
        dropped: dropped.clone(),
    };
    let mut response = send(&layer.layer(bodies([body])), request()).await;
    assert_eq!(response.body().size_hint().exact(), Some(2));
    assert!(response.frame().await.unwrap().is_ok());
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    assert!(!response.body().is_end_stream());
    assert!(response.frame().await.unwrap().is_err());
    assert!(dropped.load(Ordering::SeqCst));
}

/// A body of two bytes in two frames, which says so.
struct TwoFrames {
    left: u64,
    dropped: Arc<AtomicBool>,
}

impl http_body::Body for TwoFrames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.left.checked_sub(1).map(|left| {
            self.left = left;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        std::task::Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left)
    }
}

impl Drop for TwoFrames {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_body_that_waits_between_frames_is_sent_whole() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, body) = streamed();
    let mut response = send(&layer.layer(bodies([Sized(body, 9)])), request()).await;
    for data in ["one", "two", "end"] {
        let mut next = task::spawn(response.frame());
        assert_pending!(next.poll());
        assert_pending!(next.poll());
        frames.send(data);
        let frame = assert_ready!(next.poll()).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), data);
    }
    drop(frames);
    assert!(response.frame().await.is_none());
    assert_eq!(layer.limiter().in_flight(), 0);
}

/// A streamed body whose size is known.
struct Sized(Streamed, u64);

impl http_body::Body for Sized {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = std::pin::Pin::new(&mut self.0).poll_frame(cx);
        if let std::task::Poll::Ready(Some(Ok(frame))) = &polled {
            self.1 -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_when_it_is_dropped_harms_no_other_request() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a body's end");
        }
    }
    let layer = ConcurrencyLimitLayer::new(1);
    let panics = Arc::new(std::sync::Mutex::new(Some(Panics)));
    let service = layer.layer(crate::common::answering(move |_: Request<()>| {
        let panics = panics.lock().unwrap().take();
        let frames = stream::unfold(panics, |panics| async {
            let frame = Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")));
            Some((frame, panics))
        });
        Response::new(StreamBody::new(Box::pin(frames)))
    }));
    let mut response = send(&service, request()).await;
    assert!(response.frame().await.unwrap().is_ok());
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    assert_eq!(layer.limiter().in_flight(), 0);
    assert!(response.frame().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_of_one_frame_is_never_stalled() {
    let layer = ConcurrencyLimitLayer::new(1);
    let mut response = send(&layer.layer(Counting::default()), request()).await;
    assert!(response.frame().await.unwrap().is_ok());
    assert_eq!(layer.limiter().in_flight(), 0, "its last frame was taken");
    let waiting = send(&layer.layer(Counting::default()), request()).await;
    tokio::time::advance(10 * STALL).await;
    assert!(rejects(&layer).await, "its first frame was not asked for");
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn reclaiming_can_be_set_and_turned_off() {
    let layer = ConcurrencyLimitLayer::new(1).reclaim_after(Some(SECOND));
    let (_frames, _response) = stalled(&layer).await;
    tokio::time::advance(SECOND).await;
    assert!(!rejects(&layer).await);

    for off in [None, Some(Duration::ZERO)] {
        let layer = ConcurrencyLimitLayer::new(1).reclaim_after(off);
        let (_frames, response) = stalled(&layer).await;
        tokio::time::advance(100 * STALL).await;
        assert!(rejects(&layer).await);
        drop(response);
        assert!(!rejects(&layer).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_response_that_moves_on_in_time_is_forgotten() {
    let layer = ConcurrencyLimitLayer::new(1);
    for _ in 0..100 {
        let (frames, mut response) = stalled(&layer).await;
        frames.trailers();
        assert!(response.frame().await.unwrap().is_ok());
        assert_eq!(layer.limiter().in_flight(), 0);
    }
    tokio::time::advance(10 * STALL).await;
    let permit = layer.limiter().try_acquire().unwrap();
    assert!(rejects(&layer).await, "a permit that is held by hand stays");
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_permit_is_reclaimed_for_the_limiter() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (_frames, _response) = stalled(&layer).await;
    assert!(layer.limiter().try_acquire().is_err());
    tokio::time::advance(STALL).await;
    assert!(layer.limiter().try_acquire().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_gets_a_permit_when_a_response_is_stalled() {
    let layer = ConcurrencyLimitLayer::new(1).wait(1, 3 * STALL);
    let (_frames, _response) = stalled(&layer).await;
    tokio::time::advance(SECOND).await;
    let service = layer.layer(Counting::default());
    let mut waiting = task::spawn(service.clone().oneshot(request()));
    assert_pending!(waiting.poll());
    tokio::time::advance(STALL - 2 * SECOND).await;
    assert_pending!(waiting.poll());
    tokio::time::advance(SECOND + 2 * MILLI).await;
    assert!(waiting.is_woken(), "without another request");
    let response = assert_ready!(waiting.poll()).unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_through_a_limit_of_0_gets_a_stalled_permit() {
    let layer = ConcurrencyLimitLayer::new(1).wait(1, 10 * STALL);
    let (_frames, _response) = stream_on(&layer, request()).await;
    layer.limiter().set_limit(0);
    let mut waiting = task::spawn(layer.layer(Counting::default()).oneshot(request()));
    assert_pending!(waiting.poll());
    layer.limiter().set_limit(1);
    for _ in 0..2 * STALL.as_secs() {
        tokio::time::advance(SECOND).await;
        if waiting.is_woken() && waiting.poll().is_ready() {
            return;
        }
    }
    panic!("it waits although a response is stalled");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_at_the_bound_gets_a_later_stalled_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let mut gone = Vec::new();
    for _ in 0..=BOUND {
        gone.push(stream_on(&layer, request()).await);
        tokio::time::advance(STALL).await;
    }
    let layer = layer.wait(1, 10 * STALL);
    let mut waiting = task::spawn(layer.layer(Counting::default()).oneshot(request()));
    assert_pending!(waiting.poll());
    gone.remove(0);
    for _ in 0..2 * STALL.as_secs() {
        tokio::time::advance(SECOND).await;
        if waiting.is_woken() && waiting.poll().is_ready() {
            return;
        }
    }
    panic!("it waits although a response is stalled");
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_reclaim_no_more_than_they_need() {
    let layer = ConcurrencyLimitLayer::new(3).wait(8, 3 * STALL);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(stream_on(&layer, request()).await);
    }
    let service = layer.layer(Counting::default());
    let mut first = task::spawn(service.clone().oneshot(request()));
    assert_pending!(first.poll());
    tokio::time::advance(STALL + MILLI).await;
    let first = assert_ready!(first.poll()).unwrap();
    let dropped = held.iter().filter(|(frames, _)| frames.is_dropped());
    assert_eq!(dropped.count(), 1);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_is_reached_by_reclaiming_stalled_permits() {
    let layer = ConcurrencyLimitLayer::new(8);
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(stream_on(&layer, request()).await);
    }
    layer.limiter().set_limit(2);
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    let kept = held.iter().filter(|(frames, _)| !frames.is_dropped());
    assert_eq!(kept.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_at_its_limit_reclaims_only_its_own_permit() {
    let layer = ConcurrencyLimitLayer::new(0).per_key(ApiKey::default(), 1);
    let from = |key: &str| with_header("x-api-key", key);
    let mut held = Vec::new();
    for key in ["a", "b"] {
        held.push(stream_on(&layer, from(key)).await);
    }
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from("a")).await, 429);
    tokio::time::advance(STALL).await;
    assert_eq!(status(&service, from("a")).await, 200);
    assert!(held[0].0.is_dropped());
    assert!(!held[1].0.is_dropped());
}

async fn stream_on(
    layer: &ConcurrencyLimitLayer,
    request: Request<()>,
) -> (Frames, Response<PermitBody<Streamed>>) {
    let (frames, body) = streamed();
    let mut response = send(&layer.layer(bodies([body])), request).await;
    assert_eq!(response.status(), 200);
    frames.send("one");
    assert!(response.frame().await.unwrap().is_ok());
    (frames, response)
}

#[tokio::test(start_paused = true)]
async fn a_busy_key_at_its_limit_hides_no_stalled_response_from_others() {
    let layer = ConcurrencyLimitLayer::new(2).per_key(ApiKey::default(), 1);
    let from = |key: &str| with_header("x-api-key", key);
    let (_b_frames, _b) = stream_on(&layer, from("b")).await;
    tokio::time::advance(STALL).await;
    let (_a_frames, mut a) = stream_on(&layer, from("a")).await;
    let mut next = task::spawn(a.frame());
    assert_pending!(next.poll());
    let service = layer.layer(Counting::default());
    for _ in 0..100 {
        tokio::time::advance(SECOND).await;
        assert_eq!(status(&service, from("a")).await, 429, "a is at its limit");
    }
    assert_eq!(status(&service, from("c")).await, 200, "b is stalled");
}

#[tokio::test(start_paused = true)]
async fn a_busy_key_hides_no_stalled_response_of_another_key() {
    let layer = ConcurrencyLimitLayer::new(10).per_key(ApiKey::default(), 1);
    let from = |key: &str| with_header("x-api-key", key);
    let (_b_frames, _b) = stream_on(&layer, from("b")).await;
    tokio::time::advance(STALL).await;
    let (_a_frames, _a) = stream_on(&layer, from("a")).await;
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from("a")).await, 429, "a is at its limit");
    assert_eq!(status(&service, from("b")).await, 200, "b is stalled");
}

#[tokio::test(start_paused = true)]
async fn a_key_charged_at_two_limits_loses_only_permits_that_help() {
    let token = |head: RequestHead<'_>| {
        let name = head.headers.get("x-api-key").and_then(|v| v.to_str().ok());
        Some(Key::id("who", name.unwrap_or("address")))
    };
    let address = |_: RequestHead<'_>| Some(Key::id("who", "address"));
    let layer = ConcurrencyLimitLayer::new(10)
        .per_key(token, 1)
        .per_key(address, 5);
    let (frames, _with_token) = stream_on(&layer, with_header("x-api-key", "t")).await;
    tokio::time::advance(STALL).await;
    let (_a_frames, _without) = stream_on(&layer, request()).await;
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, request()).await, 429);
    assert!(!frames.is_dropped(), "its permit is of no use to the other");
}

#[tokio::test(start_paused = true)]
async fn a_reclaim_time_of_hours_does_not_panic() {
    for limit in [Duration::from_secs(7200), Duration::MAX] {
        let layer = ConcurrencyLimitLayer::new(1).reclaim_after(Some(limit));
        let (_frames, _response) = stream_on(&layer, request()).await;
        assert_eq!(
            status(&layer.layer(Counting::default()), request()).await,
            503
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_reclaimed_permit_releases_its_slot_in_the_store() {
    let store = MemoryStore::new();
    let layer = || {
        ConcurrencyLimitLayer::new(1)
            .name("api")
            .store(store.clone())
    };
    let (one, other) = (layer(), layer());
    let (frames, _response) = stalled(&one).await;
    let other = other.layer(Counting::default());
    tokio::time::advance(STALL).await;
    assert_eq!(status(&other, request()).await, 503, "another replica's");
    assert!(!frames.is_dropped());
    assert!(!rejects(&one).await);
    assert!(frames.is_dropped());
    assert_eq!(status(&other, request()).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_full_store_makes_a_replica_end_its_stalled_responses() {
    let store = MemoryStore::new();
    let layer = || {
        ConcurrencyLimitLayer::new(2)
            .name("api")
            .store(store.clone())
    };
    let (one, other) = (layer(), layer());
    let (frames, _response) = stalled(&one).await;
    let elsewhere = other.limiter().acquire_for(&[]).await.unwrap();
    tokio::time::advance(STALL).await;
    // The replica has capacity, but the store does not.
    assert!(rejects(&one).await);
    assert!(frames.is_dropped());
    assert!(!rejects(&one).await, "the next one finds it free");
    drop(elsewhere);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_header_does_not_keep_a_response_from_being_reclaimed() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (frames, _response) = stream_on(&layer, upgrading()).await;
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    assert!(frames.is_dropped());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_counts_to_its_headers_has_nothing_to_reclaim() {
    let layer = ConcurrencyLimitLayer::new(1).hold_until(HoldUntil::Headers);
    let (frames, _response) = stream_on(&layer, request()).await;
    let permit = layer.limiter().try_acquire().unwrap();
    tokio::time::advance(STALL).await;
    assert!(rejects(&layer).await);
    assert!(!frames.is_dropped());
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn nested_layers_reclaim_from_the_same_response() {
    let (outer, inner) = (ConcurrencyLimitLayer::new(2), ConcurrencyLimitLayer::new(1));
    let (frames, body) = streamed();
    let service = outer.layer(inner.layer(bodies([body])));
    let mut response = send(&service, request()).await;
    frames.send("one");
    assert!(response.frame().await.unwrap().is_ok());
    tokio::time::advance(STALL).await;
    assert!(!rejects(&inner).await);
    assert_eq!(outer.limiter().in_flight(), 1);
    assert!(response.frame().await.unwrap().is_err());
    assert_eq!(outer.limiter().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_reclaimed_responses_is_bounded() {
    let layer = ConcurrencyLimitLayer::new(1);
    let mut gone = Vec::new();
    let mut admitted = 0;
    for _ in 0..BOUND + 4 {
        let (frames, body) = streamed();
        let mut response = send(&layer.layer(bodies([body])), request()).await;
        if response.status() == 200 {
            admitted += 1;
            frames.send("one");
            assert!(response.frame().await.unwrap().is_ok());
            gone.push((frames, response));
        }
        tokio::time::advance(STALL).await;
    }
    assert_eq!(admitted, BOUND + 1, "one, and those that took its place");
    gone.remove(0);
    assert!(!rejects(&layer).await, "a connection has ended");
}

#[tokio::test(start_paused = true)]
async fn the_number_of_reclaimed_responses_is_bounded_without_a_total() {
    let layer = ConcurrencyLimitLayer::new(0).per_key(ApiKey::default(), 1);
    let mut gone = Vec::new();
    for _ in 0..BOUND + 4 {
        let (frames, body) = streamed();
        let request = with_header("x-api-key", "a");
        let mut response = send(&layer.layer(bodies([body])), request).await;
        if response.status() == 200 {
            frames.send("one");
            assert!(response.frame().await.unwrap().is_ok());
            gone.push((frames, response));
        }
        tokio::time::advance(STALL).await;
    }
    assert_eq!(gone.len(), BOUND + 1, "one, and those that took its place");
}

#[tokio::test(start_paused = true)]
async fn a_new_limit_does_not_inherit_reclaimed_responses() {
    let mut lingering = Vec::new();
    {
        let layer = ConcurrencyLimitLayer::new(1);
        for _ in 0..=BOUND {
            lingering.push(stream_on(&layer, request()).await);
            tokio::time::advance(STALL).await;
        }
        lingering.remove(BOUND);
        assert_eq!(layer.limiter().in_flight(), 0);
    }
    // Of several new ones, one has the counter.
    let layers: Vec<_> = (0..200).map(|_| ConcurrencyLimitLayer::new(1)).collect();
    let mut held = Vec::new();
    for layer in &layers {
        held.push(stream_on(layer, request()).await);
    }
    tokio::time::advance(STALL).await;
    let mut rejected = 0;
    for layer in &layers {
        rejected += usize::from(status(&layer.layer(Counting::default()), request()).await != 200);
    }
    assert_eq!(rejected, 0);
}

#[derive(Clone, Default)]
struct Reclaims(Arc<std::sync::Mutex<Vec<String>>>);

impl Observer for Reclaims {
    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        let kind = key.map_or("no key", Key::kind);
        let event = format!("{limiter} {kind} {stalled:?}");
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test(start_paused = true)]
async fn observers_see_a_reclaimed_permit() {
    let reclaims = Reclaims::default();
    let (seen, _released) = Seen::new();
    let layer = ConcurrencyLimitLayer::new(1)
        .name("api")
        .observe(reclaims.clone())
        .observe(seen.clone());
    let (_frames, _response) = stalled(&layer).await;
    tokio::time::advance(STALL + SECOND).await;
    assert!(!rejects(&layer).await);
    assert_eq!(*reclaims.0.lock().unwrap(), ["api no key 61s"]);
    let released = seen
        .take()
        .into_iter()
        .filter(|event| event == "released api");
    assert_eq!(released.count(), 2, "each permit comes back once");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_takes_the_permit_of_a_stalled_response_and_does_not_end_it() {
    let reclaims = Reclaims::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .observe(reclaims.clone())
        .dry_run(true);
    let (frames, mut response) = stream_on(&layer, request()).await;
    tokio::time::advance(STALL).await;
    let next = send(&layer.layer(Counting::default()), request()).await;
    assert_eq!(layer.limiter().in_flight(), 1);
    assert_eq!(reclaims.0.lock().unwrap().len(), 1);
    drop(next);
    assert_eq!(layer.limiter().in_flight(), 0, "the other counts no more");
    for data in ["two", "three"] {
        let mut frame = task::spawn(response.frame());
        assert_pending!(frame.poll());
        frames.send(data);
        let frame = assert_ready!(frame.poll()).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), data);
    }
    drop(frames);
    assert!(response.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn observers_see_the_address_of_a_reclaimed_response() {
    let reclaims = Reclaims::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .name("api")
        .per_key(ApiKey::default(), 9)
        .per_key(tower_admission::ClientIp::peer(), 9)
        .observe(reclaims.clone());
    let mut made_up = with_header("x-api-key", "made up");
    made_up
        .extensions_mut()
        .insert(crate::common::peer("192.0.2.1"));
    let (_frames, _response) = stream_on(&layer, made_up).await;
    tokio::time::advance(STALL).await;
    assert!(!rejects(&layer).await);
    assert_eq!(*reclaims.0.lock().unwrap(), ["api ip 60s"]);
}

// On real servers

/// An endless response in frames of 64 KiB, and one that is silent after its first frame.
fn endless(layer: &ConcurrencyLimitLayer) -> Router {
    let frames = || {
        let frames = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![0; 64 * 1024])));
        Body::from_stream(frames)
    };
    Router::new()
        .route("/endless", route(move || async move { frames() }))
        .route("/", route(|| async { "hello" }))
        .layer(layer.clone())
}

/// Sends requests until the answer is 200.
async fn gets_in(address: std::net::SocketAddr) -> Response<Incoming> {
    let asking = async {
        loop {
            let response = get(&http1(), address, "/", "t").await;
            if response.status() == 200 {
                return response;
            }
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.expect("a stalled response gives way")
}

#[tokio::test]
async fn one_http_2_connection_with_a_window_of_0_does_not_hold_all_capacity() {
    let layer = ConcurrencyLimitLayer::new(64).reclaim_after(Some(Duration::from_millis(50)));
    let address = serve(endless(&layer)).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(0)
        .build_http();
    let mut held = Vec::new();
    for _ in 0..64 {
        let response = get(&client, address, "/endless", "t").await;
        assert_eq!(response.status(), 200);
        held.push(response);
    }
    assert_eq!(layer.limiter().in_flight(), 64);
    gets_in(address).await;
    assert!(layer.limiter().in_flight() < 64);
}

#[tokio::test]
async fn one_http_2_connection_with_all_its_streams_does_not_hold_a_small_limit() {
    let layer = ConcurrencyLimitLayer::new(8).reclaim_after(Some(MILLI));
    let address = serve(endless(&layer)).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(0)
        .build_http();
    let mut held = Vec::new();
    while held.len() < 199 {
        let response = get(&client, address, "/endless", "t").await;
        if response.status() == 200 {
            held.push(response);
        }
    }
    gets_in(address).await;
}

#[tokio::test]
async fn http_1_clients_that_never_read_do_not_hold_all_capacity() {
    let layer = ConcurrencyLimitLayer::new(4).reclaim_after(Some(Duration::from_millis(50)));
    let address = serve(endless(&layer)).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        clients.push(client);
    }
    let full = async {
        while layer.limiter().in_flight() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.unwrap();
    gets_in(address).await;
}

#[tokio::test]
async fn a_silent_stream_keeps_its_permit_on_a_real_server() {
    for client in [http1(), http2()] {
        let layer = ConcurrencyLimitLayer::new(1).reclaim_after(Some(MILLI));
        let (frames, receiver) =
            tokio::sync::mpsc::unbounded_channel::<Result<Bytes, Infallible>>();
        let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
        let handler = move || async move {
            let receiver = receiver.lock().unwrap().take().unwrap();
            Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(
                receiver,
            ))
        };
        let app = Router::new()
            .route("/watch", route(handler))
            .route("/", route(|| async { "hello" }))
            .layer(layer);
        let address = serve(app).await;
        let mut response = get(&client, address, "/watch", "t").await;
        for _ in 0..3 {
            frames.send(Ok(Bytes::from_static(b"event"))).unwrap();
            assert!(response.frame().await.unwrap().is_ok());
            for _ in 0..20 {
                assert_eq!(get(&http1(), address, "/", "t").await.status(), 503);
            }
        }
    }
}
