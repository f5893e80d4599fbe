//! How the gateway ends: what is in progress, new connections, and permits in Redis.

use futures_util::stream;
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::process::{File, Gateway, LONG_STREAM, soon, text};
use crate::server::Server;

/// Waits until the gateway takes no connections.
async fn until_closed(address: &str) {
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn shutdown_finishes_requests_and_rejects_new_connections() {
    let limits = "[groups.api]\npath = '/api'\nconcurrency = 4";
    let config = File::new("shutdown.toml", limits);
    for signal in ["TERM", "INT"] {
        let gateway = Gateway::start(&["--config", config.path()]);
        let (chunks, mut body) = mpsc::unbounded_channel::<Bytes>();
        let body = stream::poll_fn(move |cx| body.poll_recv(cx));
        let body =
            futures_util::StreamExt::map(body, |chunk| Ok::<_, std::io::Error>(Frame::data(chunk)));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::post(format!("http://{}/api/echo", gateway.address))
            .body(StreamBody::new(body))
            .unwrap();
        let answer = tokio::spawn(client.request(request));
        chunks.send("before, ".into()).unwrap();
        let in_flight = async {
            let expected = "admission_in_flight{limiter=\"api\"} 1\n";
            let metrics = || gateway.send(Method::GET, "/metrics", "bob", "");
            while !text(metrics().await).await.contains(expected) {}
        };
        soon(in_flight).await;

        gateway.signal(signal);
        until_closed(&gateway.address).await;
        chunks.send("after".into()).unwrap();
        drop(chunks);
        let answer = soon(answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer).await, "before, after");
        let (code, log) = gateway.ended().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("are cut"), "{log}");
    }
}

#[tokio::test]
async fn a_stream_ends_before_a_gateway_that_is_terminated() {
    let gateway = Gateway::start(&[]);
    let stream = gateway.begin("/api/stream?chunks=5&ms=100", "alice").await;
    gateway.signal("TERM");
    assert!(text(stream).await.ends_with("chunk 5\n"));
    assert_eq!(gateway.ended().await.0, Some(0));
}

/// Over HTTP/1.1 and HTTP/2, whose requests are tasks of their own.
#[tokio::test]
async fn a_hanging_request_is_cut_and_its_permit_in_redis_is_gone() {
    let redis = Server::start().await;
    // With a deadline that a busy machine keeps.
    let limits = format!(
        "[store]\nurl = '{}'\nsecret = '00112233445566778899aabbccddeeff'\ndeadline = '2s'\n\
         [groups.api]\npath = '/api'\nconcurrency = 2",
        redis.url()
    );
    let config = File::new("shutdown-redis.toml", &limits);
    let start = || Gateway::start(&["--config", config.path(), "--grace-seconds", "1"]);
    let (gateway, other) = (start(), start());
    let first = gateway.begin(LONG_STREAM, "alice").await;
    let http2 = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let request = gateway.request(Method::GET, LONG_STREAM, "bob", "");
    let mut second = soon(http2.request(request)).await.unwrap();
    soon(second.frame()).await.unwrap().unwrap();
    assert_eq!(other.get("/api/slow?ms=0", "carol").await, 503);

    gateway.signal("TERM");
    for hanging in [first, second] {
        let cut = soon(hanging.into_body().collect()).await;
        assert!(cut.is_err(), "no stream ends as if it were whole");
    }
    let (code, log) = gateway.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("are cut"), "{log}");
    // At once, and not when leases expire. Both of them.
    let _first = other.begin(LONG_STREAM, "carol").await;
    let _second = other.begin(LONG_STREAM, "carol").await;
    assert_eq!(other.get("/api/slow?ms=0", "carol").await, 503);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let gateway = Gateway::start(&["--grace-seconds", "3600"]);
    let stream = gateway.begin(LONG_STREAM, "alice").await;
    gateway.signal("TERM");
    until_closed(&gateway.address).await;
    gateway.signal("INT");
    let (code, log) = gateway.ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("second signal"), "{log}");
    assert!(soon(stream.into_body().collect()).await.is_err());
}
