//! A cheap client, so that the benchmark measures the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::apps::App;
use crate::requests::token;

/// One keep-alive connection of one client.
pub struct Connection {
    stream: TcpStream,
    request: Arc<[u8]>,
    status_line: &'static [u8],
    buffer: [u8; 2048],
}

impl Connection {
    /// Connects to an app and sends a first request, whose response may differ from later ones.
    pub async fn open(app: &App, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a server");
        stream.set_nodelay(true).expect("a socket");
        let request = format!(
            "GET / HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
            token(0)
        );
        let mut connection = Self {
            stream,
            request: request.into_bytes().into(),
            status_line: app.status_line(),
            buffer: [0; 2048],
        };
        connection.exchange().await;
        connection
    }

    /// Sends a request and checks its response.
    pub async fn call(&mut self) {
        let status_line = self.status_line;
        let response = self.exchange().await;
        let expected = response.starts_with(status_line);
        assert!(expected, "{}", response.escape_ascii());
    }

    async fn exchange(&mut self) -> &[u8] {
        let sent = self.stream.write_all(&self.request).await;
        sent.expect("a connection");
        let mut length = 0;
        while !is_complete(&self.buffer[..length]) {
            let read = self.stream.read(&mut self.buffer[length..]).await;
            let read = read.expect("a connection");
            assert!(read > 0, "the server closed the connection");
            length += read;
        }
        &self.buffer[..length]
    }
}

/// Whether the response ends like a greeting or a JSON problem. Parsing the head would cost the
/// client more for longer heads.
fn is_complete(response: &[u8]) -> bool {
    matches!(response.last(), Some(b'!' | b'}'))
}

/// The number of requests that the connections complete in this time, with one at a time each.
pub async fn run(connections: &mut Vec<Connection>, time: Duration) -> u64 {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for mut connection in connections.drain(..) {
        let stop = stop.clone();
        tasks.spawn(async move {
            let mut answered = 0;
            while !stop.load(Relaxed) {
                connection.call().await;
                answered += 1;
            }
            (connection, answered)
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Relaxed);
    let mut answered = 0;
    while let Some(task) = tasks.join_next().await {
        let (connection, of_it) = task.expect("no panic");
        connections.push(connection);
        answered += of_it;
    }
    answered
}
