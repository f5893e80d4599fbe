//! The listener and the server of the gateway example: timeouts, and clients that are gone.

use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::Message as Sent;
use axum::routing::{any, get as route, post};
use axum::serve::Listener;
use futures_util::{SinkExt, StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{pause, sleep};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tower_admission::{ConcurrencyLimitLayer, ConcurrencyLimiter, Quota, RateLimitByTokenLayer};

use crate::common::soon;
use crate::listener::GuardedListener;
use crate::server;
use crate::servers::{get, http1, http2, listen};

const SECOND: Duration = Duration::from_secs(1);

/// More than the buffers of a connection hold.
const LARGE: usize = 64 << 20;

async fn start(app: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(server::serve(
        GuardedListener::new(listener),
        app,
        pending(),
        SECOND,
    ));
    address
}

async fn connect(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream
}

/// Everything that is read until the connection ends, for any reason.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _ = soon(stream.read_to_end(&mut read)).await;
    String::from_utf8_lossy(&read).into_owned()
}

async fn until_in_flight(limiter: &ConcurrencyLimiter, expected: usize) {
    soon(async {
        while limiter.in_flight() != expected {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A handler that reports its start and never ends.
fn hanging() -> (mpsc::UnboundedReceiver<()>, axum::routing::MethodRouter) {
    let (entered, handling) = mpsc::unbounded_channel();
    let handler = move || {
        entered.send(()).unwrap();
        pending::<&'static str>()
    };
    (handling, any(handler))
}

#[tokio::test]
async fn a_client_that_never_reads_frees_its_permit() {
    let layer = ConcurrencyLimitLayer::new(4);
    let limiter = layer.limiter();
    let endless = route(|| async {
        let chunks = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1 << 16])));
        Body::from_stream(chunks)
    });
    let whole = route(|| async { vec![0; LARGE] });
    let app = Router::new()
        .route("/endless", endless)
        .route("/whole", whole)
        .layer(layer);
    let address = start(app).await;
    let mut clients = Vec::new();
    for path in ["/endless", "/whole"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        clients.push(connect(address, request.as_bytes()).await);
    }
    until_in_flight(&limiter, 1).await;
    pause();
    until_in_flight(&limiter, 0).await;
    // A body of one frame is hyper's, and free as soon as the connection has ended.
    sleep(60 * SECOND).await;
    for mut client in clients {
        assert!(rest(&mut client).await.len() < LARGE);
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_whole_response() {
    const LENGTH: usize = 4 << 20;
    let address = start(Router::new().route("/", route(|| async { vec![b'x'; LENGTH] }))).await;
    let mut client = connect(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    pause();
    let mut read = 0;
    let mut part = vec![0; 64 << 10];
    while read < LENGTH {
        // A minute in all. The window opens each two or three parts.
        sleep(SECOND).await;
        read += soon(client.read_exact(&mut part)).await.unwrap();
    }
}

#[tokio::test]
async fn a_rejected_upload_sees_its_answer() {
    const UPLOAD: usize = 4 << 20;
    let (mut entered, hang) = hanging();
    let full = ConcurrencyLimitLayer::new(1);
    let app = Router::new()
        .route("/rate", post(|| async {}))
        .layer(RateLimitByTokenLayer::new(Quota::per_hour(1)))
        .merge(Router::new().route("/full", hang).layer(full));
    let address = start(app).await;
    assert_eq!(get(&http1(), address, "/rate", "t").await.status(), 405);
    let _held = connect(address, b"GET /full HTTP/1.1\r\nhost: a\r\n\r\n").await;
    soon(entered.recv()).await.unwrap();
    for (path, status) in [("rate", 429), ("full", 503)] {
        for _ in 0..5 {
            let head = format!(
                "POST /{path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer t\r\n\
                 content-length: {UPLOAD}\r\n\r\n"
            );
            let mut client = connect(address, head.as_bytes()).await;
            client.write_all(&vec![0; UPLOAD]).await.unwrap();
            let answer = rest(&mut client).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_rejected_upload_is_read_within_bounds() {
    let app = Router::new().route("/", post(|| async { "no" }));
    let address = start(app).await;
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n");

    // By its size.
    let mut client = connect(address, head.as_bytes()).await;
    let sent = soon(client.write_all(&vec![0; LARGE])).await;
    assert!(sent.is_err(), "all of it was read");

    // By its time.
    let mut client = connect(address, head.as_bytes()).await;
    pause();
    let dribbling = async {
        loop {
            if let Err(error) = client.write_all(b"x").await {
                return error.kind();
            }
            sleep(SECOND).await;
        }
    };
    let end = soon(dribbling).await;
    assert!(
        matches!(end, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "{end}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_disconnects_with_an_unread_byte_frees_its_permit() {
    let (mut entered, hang) = hanging();
    let layer = ConcurrencyLimitLayer::new(1);
    let limiter = layer.limiter();
    let address = start(Router::new().route("/", hang).layer(layer)).await;
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nG",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nunread",
    ] {
        for resets in [false, true] {
            let client = connect(address, request.as_bytes()).await;
            soon(entered.recv()).await.unwrap();
            assert_eq!(limiter.in_flight(), 1);
            if resets {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            until_in_flight(&limiter, 0).await;
        }
    }
}

/// The last messages of the client are read, although it has closed its half of the connection.
#[tokio::test]
async fn a_connection_without_a_client_fails_each_flush() {
    let (listener, address) = listen().await;
    let mut listener = GuardedListener::new(listener);
    let client = TcpStream::connect(address).await.unwrap();
    let (mut stream, _) = listener.accept().await;
    stream.flush().await.unwrap();
    drop(client);
    soon(async {
        while stream.flush().await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    stream.flush().await.unwrap_err();
}

#[tokio::test]
async fn a_websocket_is_read_to_its_end() {
    let sent = watch::Sender::new(0);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut until_sent = sent.subscribe();
    let handler = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(|mut socket| async move {
            socket.send(Sent::text("begin")).await.unwrap();
            for step in 1..=2 {
                until_sent.wait_for(|sent| *sent >= step).await.unwrap();
                socket.send(Sent::text("more")).await.unwrap();
            }
            while let Some(Ok(message)) = socket.recv().await {
                tell.send(message).unwrap();
            }
        })
    };
    let address = start(Router::new().route("/", any(handler))).await;
    let (mut client, _) = connect_async(format!("ws://{address}/")).await.unwrap();
    assert_eq!(
        client.next().await.unwrap().unwrap(),
        Message::text("begin")
    );
    for _ in 0..3 {
        client.feed(Message::text("message")).await.unwrap();
    }
    client.flush().await.unwrap();
    client.get_mut().shutdown().await.unwrap();
    // The first may be sent before the server sees the end, and the second is not.
    for step in 1..=2 {
        sent.send_replace(step);
        let more = soon(client.next()).await.unwrap().unwrap();
        assert_eq!(more, Message::text("more"));
    }
    for _ in 0..3 {
        assert_eq!(soon(told.recv()).await, Some(Sent::text("message")));
    }
}

#[tokio::test]
async fn a_request_head_that_never_ends_is_cut_off() {
    let address = start(Router::new()).await;
    let mut client = connect(address, b"GET / HTTP/1.1\r\nhost").await;
    pause();
    let (mut read, mut write) = client.split();
    let dribbling = async {
        while write.write_all(b"x").await.is_ok() {
            sleep(SECOND).await;
        }
    };
    let ended = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
    };
    soon(async {
        tokio::select! {
            () = dribbling => {}
            () = ended => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed() {
    let address = start(Router::new().route("/", route(|| async { "hello" }))).await;
    let silent = connect(address, b"").await;
    let undecided = connect(address, b"PRI * HTTP/2.0\r\n").await;
    let kept = connect(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    pause();
    for (mut client, answer) in [(silent, ""), (undecided, ""), (kept, "hello")] {
        let read = rest(&mut client).await;
        assert!(read.ends_with(answer), "{read}");
    }
}

#[tokio::test]
async fn a_connection_is_kept_after_a_long_response() {
    let slow = route(|| async {
        // Until just before the connection is looked at for the second time.
        sleep(119 * SECOND).await;
        "hello"
    });
    let address = start(Router::new().route("/", slow)).await;
    let mut client = connect(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    pause();
    let mut head = vec![0; 12];
    soon(client.read_exact(&mut head)).await.unwrap();
    let rest = tokio::time::timeout(20 * SECOND, rest(&mut client)).await;
    assert!(rest.is_err(), "{rest:?}");
}

#[tokio::test]
async fn a_request_body_that_never_ends_frees_its_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let limiter = layer.limiter();
    let (entered, mut handling) = mpsc::unbounded_channel();
    let handler = post(move |request: axum::extract::Request| async move {
        entered.send(()).unwrap();
        axum::body::to_bytes(request.into_body(), LARGE)
            .await
            .map_err(|_| axum::http::StatusCode::REQUEST_TIMEOUT)
    });
    let app = server::with_body_timeouts(Router::new().route("/", handler)).layer(layer);
    let address = start(app).await;
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    let mut pausing = connect(address, head).await;
    soon(handling.recv()).await.unwrap();
    pause();
    // Before all of the body is due.
    sleep(60 * SECOND).await;
    assert_eq!(limiter.in_flight(), 0);
    let answer = rest(&mut pausing).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");

    let mut dribbling = connect(address, head).await;
    soon(handling.recv()).await.unwrap();
    soon(async {
        while limiter.in_flight() != 0 {
            dribbling.write_all(b"x").await.unwrap();
            sleep(SECOND).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_waits_for_what_is_in_progress() {
    for client in [http1(), http2()] {
        let (listener, address) = listen().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let (entered, mut handling) = mpsc::unbounded_channel();
        let finish = watch::Sender::new(false);
        let until_finished = finish.subscribe();
        let handler = route(move || async move {
            entered.send(()).unwrap();
            let mut until_finished = until_finished;
            until_finished.wait_for(|finish| *finish).await.unwrap();
            "done"
        });
        let app = Router::new().route("/", handler);
        let listener = GuardedListener::new(listener);
        let stopped = async { drop(stopped.await) };
        let serving = tokio::spawn(server::serve(listener, app, stopped, 60 * SECOND));
        let idle = connect(address, b"").await;
        let asking = tokio::spawn(async move { get(&client, address, "/", "t").await });
        soon(handling.recv()).await.unwrap();
        stop.send(()).unwrap();
        // New connections are rejected from some moment on.
        soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
        assert!(!serving.is_finished());
        finish.send_replace(true);
        assert_eq!(asking.await.unwrap().status(), 200);
        drop(idle);
        soon(serving).await.unwrap();
    }
}

/// The address of the client is there for limits by address.
#[tokio::test]
async fn a_request_has_its_client_address() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1));
    let limiter = layer.limiter();
    let app = Router::new().route("/", route(|| async {})).layer(layer);
    let address = start(app).await;
    let mut client = connect(
        address,
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200"));
    let decision = limiter
        .check_now(&tower_admission::Key::ip([127, 0, 0, 1].into()))
        .unwrap();
    assert!(!decision.is_admitted());
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_websocket() {
    let (listener, address) = listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let handler = any(|upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    });
    let app = Router::new().route("/", handler);
    let listener = GuardedListener::new(listener);
    let stopped = async { drop(stopped.await) };
    let serving = tokio::spawn(server::serve(listener, app, stopped, 60 * SECOND));
    let (mut socket, _) = connect_async(format!("ws://{address}/")).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    stop.send(()).unwrap();
    soon(serving).await.unwrap();
    socket.send(Message::text("still there")).await.unwrap();
}
