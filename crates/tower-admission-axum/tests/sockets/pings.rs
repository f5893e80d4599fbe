//! Clients that are gone without a close frame, and the pings that find them.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::ws::Message as Sent;
use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{advance, pause, resume};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tower_admission::{Quota, Rejection};
use tower_admission_axum::ws::{LimitedSocket, SocketLimits};

use crate::common::{Seen, soon};
use crate::ends::HANDSHAKE;
use crate::limits::{closed_with, connect, next, routes, until_in_flight};
use crate::servers::serve;

const EVERY: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(5);

/// Timers fire at whole milliseconds.
const A_TICK: Duration = Duration::from_millis(1);

/// More than the buffers of a connection hold.
const LARGE: usize = 32 << 20;

/// Frames without payload; those of the client are masked (RFC 6455, section 5.2).
const PING: [u8; 2] = [0x89, 0];
const PONG: [u8; 2] = [0x8a, 0];
const MASKED_TEXT: [u8; 6] = [0x81, 0x80, 0, 0, 0, 0];
const MASKED_PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const MASKED_PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

/// A clock that only `advance` moves. The paused clock of tokio advances when all tasks wait, also for the network.
struct HeldClock(#[expect(dead_code, reason = "its drop ends the task")] SyncSender<()>);

impl HeldClock {
    fn new() -> Self {
        tokio::time::pause();
        let (held, until_dropped) = std::sync::mpsc::sync_channel(0);
        tokio::task::spawn_blocking(move || until_dropped.recv());
        Self(held)
    }
}

fn pinging() -> SocketLimits {
    SocketLimits::new().connections(1).ping(EVERY, WITHIN)
}

/// A client that sends and reads only on demand.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(HANDSHAKE).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(stream.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        Self(stream)
    }

    /// Returns after the handler has read from the connection and started its timer.
    async fn connect_and_greet(address: SocketAddr) -> Self {
        let mut client = Self::connect(address).await;
        client.send(&MASKED_PING).await;
        let mut answer = [0; 2];
        soon(client.0.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, PONG);
        client
    }

    async fn send(&mut self, frame: &[u8]) {
        self.0.write_all(frame).await.unwrap();
    }

    /// Reads until a ping. Only pongs may precede it.
    async fn until_pinged(&mut self) {
        let mut frame = [0; 2];
        while frame != PING {
            soon(self.0.read_exact(&mut frame)).await.unwrap();
        }
    }
}

/// Serves sockets by reading, and counts the messages.
#[derive(Clone, Default)]
struct Reader(watch::Sender<usize>);

impl Reader {
    async fn serve(self, mut socket: LimitedSocket) {
        while let Some(Ok(_)) = socket.recv().await {
            self.0.send_modify(|read| *read += 1);
        }
        // The permit is released while the handler still holds the socket.
        pending::<()>().await;
    }

    async fn until_read(&self, expected: usize) {
        let mut read = self.0.subscribe();
        soon(read.wait_for(|read| *read >= expected)).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_is_gone_releases_its_permit() {
    let (seen, mut released) = Seen::new();
    let limits = pinging().observe(seen);
    let (tell, told) = oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let serving = move |mut socket: LimitedSocket| async move {
        let end = loop {
            match socket.recv().await {
                Some(Ok(message)) => socket.send(message).await.unwrap(),
                end => break end,
            }
        };
        let after = socket.recv().await;
        if let Some(tell) = tell.lock().unwrap().take() {
            tell.send(format!("{}, {after:?}", end.unwrap().unwrap_err()))
                .unwrap();
        }
        pending::<()>().await;
    };
    let address = serve(routes(&limits, serving)).await;
    let mut gone = connect(address, "alice").await;

    pause();
    until_in_flight(&limits, 0).await;
    resume();
    released.one().await;
    let told = told.await.unwrap();
    assert_eq!(told, "the client did not answer a ping, None");
    connect(address, "bob").await;

    // The client reads again, and sees the close code.
    assert_eq!(next(&mut gone).await, Message::Ping("".into()));
    assert_eq!(closed_with(&mut gone).await, CloseCode::Error);
}

#[tokio::test]
async fn any_message_answers_a_ping() {
    for sign in [MASKED_PONG, MASKED_TEXT, MASKED_PING] {
        let limits = pinging();
        let reader = Reader::default();
        let serving = reader.clone();
        let address = serve(routes(&limits, |socket| serving.serve(socket))).await;
        let clock = HeldClock::new();
        let mut client = Raw::connect_and_greet(address).await;
        for round in 1..=4 {
            advance(EVERY + A_TICK).await;
            client.until_pinged().await;
            assert_eq!(limits.limiter().in_flight(), 1, "{sign:?}, {round}");
            client.send(&sign).await;
            reader.until_read(1 + round).await;
        }
        drop(clock);
        resume();
    }
}

#[tokio::test]
async fn a_dropped_recv_still_finds_a_silent_client() {
    let (seen, mut released) = Seen::new();
    let limits = pinging().observe(seen);
    let impatient = |mut socket: LimitedSocket| async move {
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Some(Ok(_)) => {}
                    _ => break,
                },
                () = yield_now() => {}
            }
        }
        pending::<()>().await;
    };
    let address = serve(routes(&limits, impatient)).await;
    let _clock = HeldClock::new();
    let mut client = Raw::connect_and_greet(address).await;
    advance(EVERY + A_TICK).await;
    client.until_pinged().await;
    assert_eq!(limits.limiter().in_flight(), 1);
    advance(WITHIN + A_TICK).await;
    soon(released.one()).await;
    assert_eq!(limits.limiter().in_flight(), 0);
}

#[tokio::test]
async fn an_answer_that_arrived_while_the_handler_was_busy_counts() {
    let limits = pinging();
    let (start, free) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let busy = watch::Sender::new(false);
    let reader = Reader::default();
    let serving = {
        let (start, free, busy, reader) =
            (start.clone(), free.clone(), busy.clone(), reader.clone());
        move |mut socket: LimitedSocket| async move {
            socket.recv().await.unwrap().unwrap();
            tokio::select! {
                _ = socket.recv() => panic!("nothing more was sent"),
                () = start.notified() => {}
            }
            busy.send_replace(true);
            free.notified().await;
            reader.serve(socket).await;
        }
    };
    let address = serve(routes(&limits, serving)).await;
    let _clock = HeldClock::new();
    let mut client = Raw::connect_and_greet(address).await;
    advance(EVERY + A_TICK).await;
    client.until_pinged().await;
    start.notify_one();
    let mut is_busy = busy.subscribe();
    soon(is_busy.wait_for(|busy| *busy)).await.unwrap();
    client.send(&MASKED_PONG).await;
    advance(10 * EVERY).await;
    free.notify_one();
    reader.until_read(1).await;
    client.until_pinged().await;
    assert_eq!(limits.limiter().in_flight(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_notice_releases_its_permit() {
    let noticed = watch::Sender::new(false);
    let noticing = noticed.clone();
    let limits = pinging()
        .messages(Quota::per_hour(1))
        .notice(move |_: &Rejection| {
            noticing.send_replace(true);
            Some(Sent::text("x".repeat(LARGE)))
        });
    let address = serve(routes(&limits, |socket| Reader::default().serve(socket))).await;
    let mut client = Raw::connect(address).await;
    client.send(&[MASKED_TEXT, MASKED_TEXT].concat()).await;
    let mut is_noticed = noticed.subscribe();
    soon(is_noticed.wait_for(|noticed| *noticed)).await.unwrap();
    pause();
    until_in_flight(&limits, 0).await;
}

#[tokio::test]
async fn a_ping_that_cannot_be_sent_ends_the_connection() {
    let limits = pinging();
    let stuck = watch::Sender::new(false);
    let sticking = stuck.clone();
    let serving = move |mut socket: LimitedSocket| async move {
        {
            let sending = pin!(socket.send(Sent::binary(vec![0; LARGE])));
            assert!(poll!(sending).is_pending());
        }
        sticking.send_replace(true);
        Reader::default().serve(socket).await;
    };
    let address = serve(routes(&limits, serving)).await;
    let _client = Raw::connect(address).await;
    let mut is_stuck = stuck.subscribe();
    soon(is_stuck.wait_for(|stuck| *stuck)).await.unwrap();
    pause();
    until_in_flight(&limits, 0).await;
}

#[tokio::test]
async fn a_send_to_a_client_that_does_not_read_ends() {
    let limits = pinging();
    let (tell, told) = oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let serving = move |mut socket: LimitedSocket| async move {
        let sent = socket.send(Sent::binary(vec![0; LARGE])).await;
        let tell = tell.lock().unwrap().take().unwrap();
        tell.send(sent.map_err(|error| error.to_string())).unwrap();
        pending::<()>().await;
    };
    let address = serve(routes(&limits, serving)).await;
    let _client = Raw::connect(address).await;
    assert_eq!(limits.limiter().in_flight(), 1);
    pause();
    until_in_flight(&limits, 0).await;
    let told = told.await.unwrap();
    assert_eq!(told, Err("the client does not read".to_owned()));
}

#[tokio::test]
async fn a_client_that_does_not_answer_a_close_frame_releases_its_permit() {
    let limits = pinging();
    let serving = |mut socket: LimitedSocket| async move {
        socket.send(Sent::Close(None)).await.unwrap();
        Reader::default().serve(socket).await;
    };
    let address = serve(routes(&limits, serving)).await;
    let mut client = Raw::connect(address).await;
    assert_eq!(limits.limiter().in_flight(), 1);
    pause();
    until_in_flight(&limits, 0).await;
    let mut sent = Vec::new();
    while sent.len() < 2 {
        sent.push(client.0.read_u8().await.unwrap());
    }
    assert_eq!(sent, [0x88, 0], "a close frame, and no ping after it");
}

#[tokio::test]
async fn without_pings_a_silent_client_stays_connected() {
    for limits in [
        SocketLimits::new(),
        SocketLimits::new().ping(Duration::ZERO, WITHIN),
        SocketLimits::new().ping(Duration::MAX, Duration::MAX),
    ] {
        let reader = Reader::default();
        let serving = reader.clone();
        let address = serve(routes(&limits, |socket| serving.serve(socket))).await;
        let clock = HeldClock::new();
        let mut client = Raw::connect_and_greet(address).await;
        advance(Duration::from_secs(3600)).await;
        client.send(&MASKED_PING).await;
        let mut answer = [0; 2];
        soon(client.0.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, PONG, "a pong, and no ping before it");
        assert_eq!(limits.limiter().in_flight(), 1);
        drop(clock);
        resume();
    }
}
