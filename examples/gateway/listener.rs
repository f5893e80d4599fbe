//! A listener whose connections end when their clients are gone or do not read. Copy it.
//!
//! For `axum::serve` or any server that takes `AsyncRead + AsyncWrite`. Each connection has
//!
//! 1. a write timeout. A response that the client does not read ends, and its permit is free.
//! 2. a lingering close. After the last byte of a response, the server reads and drops what the client
//!    still sends, for at most five seconds. Without that the kernel resets the connection, and the
//!    client of a rejected upload never sees the 429.
//! 3. a check that the client is there (Linux). A server stops reading while a handler runs, so it misses
//!    the end of a connection when a byte is unread. The permit is free at once.

use std::future::{Future, pending};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

/// How long a client may take to read what fits a send buffer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes in the kernel that a client has not read. The default grows to 4 MiB, and a slow client
/// seems to read nothing while it reads them. With this one, 5 KB/s are enough for the timeout.
const SEND_BUFFER: usize = 64 << 10;

/// How long, and how much, is read of a client that was answered. A larger upload is cut off.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 16 << 20;

pub(crate) struct GuardedListener(TcpListener);

impl GuardedListener {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self(listener)
    }
}

impl Listener for GuardedListener {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (GuardedStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            // An error is one of this connection, which has ended already.
            if SockRef::from(&stream)
                .set_send_buffer_size(SEND_BUFFER)
                .is_ok()
            {
                return (GuardedStream::new(stream), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

pub(crate) struct GuardedStream {
    /// Shared with `gone` and with nothing else.
    stream: Arc<TcpStream>,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// `gone` has ended, and must not be polled again.
    is_gone: bool,
    tunnel: Tunnel,
    /// Runs while a write waits.
    write_timeout: Option<Pin<Box<Sleep>>>,
    /// Runs from the shutdown on.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Marks a connection that is no longer HTTP, but a WebSocket or another tunnel. Such a connection has
/// only the write timeout: its new protocol reads its bytes.
#[derive(Clone, Default)]
pub(crate) struct Tunnel(Arc<AtomicBool>);

impl Tunnel {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl GuardedStream {
    fn new(stream: TcpStream) -> Self {
        let stream = Arc::new(stream);
        Self {
            gone: Box::pin(gone(stream.clone())),
            is_gone: false,
            stream,
            tunnel: Tunnel::default(),
            write_timeout: None,
            linger: None,
        }
    }

    pub(crate) fn tunnel(&self) -> Tunnel {
        self.tunnel.clone()
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.stream.poll_write_ready(cx) {
            ready?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.write_timeout = None;
                    return Poll::Ready(written);
                }
            }
        }
        let timeout = self
            .write_timeout
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(timeout.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Ends when the client has closed its half of the connection, or the connection failed, although
/// there may be something to read.
#[cfg(target_os = "linux")]
async fn gone(stream: Arc<TcpStream>) {
    use tokio::io::Interest;

    // Urgent data is not asked for, so this is the end of the other half.
    if stream
        .ready(Interest::PRIORITY | Interest::ERROR)
        .await
        .is_err()
    {
        // The runtime ends.
        pending::<()>().await;
    }
}

#[cfg(not(target_os = "linux"))]
async fn gone(_: Arc<TcpStream>) {
    pending().await
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes each time that it polls a connection, also while a handler runs. A client that
    /// closes only its half counts as gone, as in hyper by default (`half_close`).
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watches = !self.tunnel.has_begun() && self.linger.is_none();
        if watches {
            self.is_gone = self.is_gone || self.gone.as_mut().poll(cx).is_ready();
            if self.is_gone {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            // Fails when the client is gone, and then there is nothing to shut down.
            let is_there = SockRef::from(&*this.stream)
                .shutdown(Shutdown::Write)
                .is_ok();
            let bytes = if is_there && !this.tunnel.has_begun() {
                LINGER_BYTES
            } else {
                0
            };
            this.linger = Some((Box::pin(sleep(LINGER_TIME)), bytes));
        }
        let Some((deadline, bytes_left)) = &mut this.linger else {
            return Poll::Ready(Ok(()));
        };
        let mut dropped = [0; 16 << 10];
        while *bytes_left > 0 && deadline.as_mut().poll(cx).is_pending() {
            ready!(this.stream.poll_read_ready(cx))?;
            match this.stream.try_read(&mut dropped) {
                Ok(read) if read > 0 => *bytes_left = bytes_left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
