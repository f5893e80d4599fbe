//! Rejections of uploads.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_admission::drain::DrainRejectedLayer;
use tower_admission::{ConcurrencyLimitLayer, Quota, RateLimitLayer, Shared};

use crate::common::{Counting, Frames, PATIENCE, SECOND, Seen, Streamed, streamed};
use crate::servers::{http2, serve};

const LIMIT: u64 = 1000;

fn layer() -> DrainRejectedLayer<ConcurrencyLimitLayer> {
    ConcurrencyLimitLayer::deny_all().drain_rejected(LIMIT, 10 * SECOND)
}

fn upload() -> (Frames, Request<Streamed>) {
    let (frames, body) = streamed();
    (frames, Request::post("/").body(body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_rejection_waits_for_the_end_of_the_body() {
    let service = layer().layer(Counting::default());
    let (frames, request) = upload();
    let mut call = task::spawn(service.oneshot(request));
    assert_pending!(call.poll());
    frames.send("some");
    assert!(call.is_woken());
    assert_pending!(call.poll());
    frames.trailers();
    assert_pending!(call.poll());
    drop(frames);
    assert!(call.is_woken());
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_waits_at_most_the_maximum_time() {
    let service = layer().layer(Counting::default());
    let (_frames, request) = upload();
    let mut call = task::spawn(service.oneshot(request));
    assert_pending!(call.poll());
    tokio::time::advance(10 * SECOND - Duration::from_millis(1)).await;
    assert_pending!(call.poll());
    tokio::time::advance(Duration::from_millis(2)).await;
    assert!(call.is_woken());
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_reads_at_most_the_maximum_bytes() {
    let service = layer().layer(Counting::default());
    let (frames, request) = upload();
    let mut call = task::spawn(service.oneshot(request));
    for _ in 0..100 {
        frames.send("ten bytes.");
    }
    // A few frames at a time.
    for _ in 0..10 {
        assert_pending!(call.poll(), "{LIMIT} bytes are read");
    }
    frames.send(".");
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_lets_other_tasks_run() {
    let service = ConcurrencyLimitLayer::deny_all()
        .drain_rejected(u64::MAX, SECOND)
        .layer(Counting::default());
    let endless = futures_util::stream::repeat_with(|| {
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"x")))
    });
    let body = http_body_util::StreamBody::new(endless);
    let mut call = task::spawn(service.oneshot(Request::new(body)));
    assert_pending!(call.poll());
    assert!(call.is_woken());
    assert_pending!(call.poll());
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_sent_at_once_where_reading_cannot_help() {
    let at_once = |request: Request<Full<Bytes>>| {
        let mut call = task::spawn(layer().layer(Counting::default()).oneshot(request));
        assert_ready_ok!(call.poll()).status().as_u16()
    };
    assert_eq!(at_once(Request::new(Full::default())), 503);
    let too_long = Bytes::from(vec![0; LIMIT as usize + 1]);
    assert_eq!(at_once(Request::new(Full::new(too_long))), 503);

    let (_frames, mut request) = upload();
    let value = http::HeaderValue::from_static("100-continue");
    request.headers_mut().insert("expect", value);
    let mut call = task::spawn(layer().layer(Counting::default()).oneshot(request));
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_ends_the_wait() {
    let service = layer().layer(Counting::default());
    let (frames, request) = upload();
    let mut call = task::spawn(service.oneshot(request));
    assert_pending!(call.poll());
    frames.fail();
    assert_eq!(assert_ready_ok!(call.poll()).status(), 503);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_bodies_read_at_a_time_is_bounded() {
    let service = layer().layer(Counting::default());
    let mut calls: Vec<_> = (0..DrainRejectedLayer::<()>::MAX_DRAINING)
        .map(|_| {
            let (frames, request) = upload();
            let mut call = task::spawn(service.clone().oneshot(request));
            assert_pending!(call.poll());
            (frames, call)
        })
        .collect();
    let (_frames, request) = upload();
    let mut above = task::spawn(service.clone().oneshot(request));
    assert_eq!(assert_ready_ok!(above.poll()).status(), 503);
    // A client that goes away makes room.
    drop(calls.pop());
    let (_frames, request) = upload();
    let mut next = task::spawn(service.oneshot(request));
    assert_pending!(next.poll());
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_admitted_request_is_not_read() {
    let layer = ConcurrencyLimitLayer::new(1).drain_rejected(LIMIT, SECOND);
    let (frames, request) = upload();
    let response = layer.layer(Counting::default()).oneshot(request).await;
    assert_eq!(response.unwrap().status(), 200);
    assert!(frames.is_dropped(), "the handler's");
    assert_eq!(layer.get_ref().limiter().limit(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_read_holds_no_permit_and_no_quota() {
    let (seen, _released) = Seen::new();
    let concurrency = ConcurrencyLimitLayer::new(1).observe(seen.clone());
    let limiter = concurrency.limiter();
    let mut service = concurrency
        .drain_rejected(LIMIT, 10 * SECOND)
        .layer(Counting::default());
    let permit = limiter.try_acquire().unwrap();
    let (_frames, request) = upload();
    let mut call = task::spawn(service.call(request));
    assert_pending!(call.poll());
    let events = seen.take();
    assert!(
        events.contains(&"rejected concurrency at_capacity".to_owned()),
        "{events:?}"
    );
    assert_eq!(limiter.in_flight(), 1);
    drop(permit);
    assert_eq!(limiter.in_flight(), 0);

    let rate = RateLimitLayer::by(Shared, Quota::per_hour(1));
    let limiter = rate.limiter();
    let mut service = rate
        .drain_rejected(LIMIT, 10 * SECOND)
        .layer(Counting::default());
    let (_frames, request) = upload();
    let mut admitted = task::spawn(service.call(request));
    assert_eq!(assert_ready_ok!(admitted.poll()).status(), 200);
    let (frames, request) = upload();
    let mut rejected = task::spawn(service.call(request));
    assert_pending!(rejected.poll());
    drop(frames);
    assert_eq!(assert_ready_ok!(rejected.poll()).status(), 429);
    let left = limiter
        .peek(&tower_admission::Key::SHARED)
        .now()
        .unwrap()
        .remaining();
    assert_eq!(left, Some(0));
}

// On real servers

const SIZES: [usize; 3] = [1 << 20, 4 << 20, 16 << 20];

async fn rejecting() -> SocketAddr {
    let concurrency = ConcurrencyLimitLayer::deny_all().drain_rejected(16 << 20, PATIENCE);
    let rate = RateLimitLayer::by(Shared, Quota::deny_all()).drain_rejected(16 << 20, PATIENCE);
    let upload = || post(|body: Bytes| async move { body.len().to_string() });
    let app = Router::new()
        .route("/full", upload())
        .route_layer(concurrency)
        .merge(Router::new().route("/denied", upload()).route_layer(rate));
    serve(app).await
}

/// Writes the whole request before it reads.
async fn write_first(address: SocketAddr, path: &str, size: usize) -> std::io::Result<String> {
    let mut client = TcpStream::connect(address).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(&vec![b'x'; size]).await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn an_http_1_client_that_writes_first_sees_every_rejection() {
    let address = rejecting().await;
    for (path, code) in [("/full", "503"), ("/denied", "403")] {
        for size in SIZES {
            for _ in 0..20 {
                let answer = write_first(address, path, size);
                let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap();
                let answer = answer.expect("no connection error");
                assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn an_http_2_client_sees_every_rejection() {
    let address = rejecting().await;
    for (path, code) in [("/full", 503), ("/denied", 403)] {
        for size in SIZES {
            let client = http2();
            for _ in 0..20 {
                let request = Request::post(format!("http://{address}{path}"))
                    .body(Full::new(Bytes::from(vec![b'x'; size])))
                    .unwrap();
                let response = client.request(request).await.expect("no connection error");
                assert_eq!(response.status(), code);
                response.into_body().collect().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_chunked_upload_sees_its_rejection() {
    let address = rejecting().await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let head =
        "POST /full HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..64 {
        client.write_all(b"10000\r\n").await.unwrap();
        client.write_all(&vec![b'x'; 0x10000]).await.unwrap();
        client.write_all(b"\r\n").await.unwrap();
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}
