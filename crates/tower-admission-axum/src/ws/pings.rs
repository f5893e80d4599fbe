//! Pings, and the time that a client has to answer them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures_sink::Sink;
use tokio::time::{Instant, Sleep, sleep};

use super::closing::PendingMessage;

/// The interval of pings, and the time that a client has to answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct PingInterval {
    every: Duration,
    timeout: Duration,
}

/// Bounds the durations, so that sums with the clock do not overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl PingInterval {
    /// Returns `None` for an interval of 0, which turns pings off.
    pub(super) fn new(every: Duration, timeout: Duration) -> Option<Self> {
        (!every.is_zero()).then_some(Self {
            every: every.min(MAX_DURATION),
            timeout: timeout.min(MAX_DURATION),
        })
    }
}

/// The pings of one connection. One ping is pending at a time, and any message answers it.
pub(super) struct Pings {
    interval: PingInterval,
    state: PingState,
    /// Ends at the next ping, or at the timeout of the pending one.
    timer: Pin<Box<Sleep>>,
    next: Instant,
}

enum PingState {
    Idle,
    /// The timeout includes the time to send, because the client may not read.
    Sending(PendingMessage),
    Waiting,
}

impl Pings {
    pub(super) fn new(interval: PingInterval) -> Self {
        let timer = Box::pin(sleep(interval.every));
        Self {
            interval,
            state: PingState::Idle,
            next: timer.deadline(),
            timer,
        }
    }

    /// The time that the client has to answer.
    pub(super) fn timeout(&self) -> Duration {
        self.interval.timeout
    }

    /// Records a message of any type from the client.
    pub(super) fn record_message(&mut self) {
        match self.state {
            PingState::Idle => {}
            PingState::Sending(_) => self.wait_from_now(),
            PingState::Waiting => {
                self.state = PingState::Idle;
                self.timer.as_mut().reset(self.next);
            }
        }
    }

    /// Sends a ping when it is due. Ready if the client did not answer in time.
    ///
    /// Call it only if no message can be read. So messages that arrived while the handler was busy count as answers,
    /// however late they are read.
    pub(super) fn poll_unresponsive(
        &mut self,
        socket: &mut WebSocket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            // After an error the timeout runs as well: the connection failed, or the handler sent a close frame, which
            // the client has to answer instead.
            if let PingState::Sending(ping) = &mut self.state
                && ping.poll(socket, cx).is_ready()
            {
                self.state = PingState::Waiting;
                self.wait_from_now();
            }
            ready!(self.timer.as_mut().poll(cx));
            if !matches!(self.state, PingState::Idle) {
                return Poll::Ready(());
            }
            self.state = PingState::Sending(PendingMessage::new(Some(Message::Ping("".into()))));
            self.next = Instant::now() + self.interval.every;
            self.wait_from_now();
        }
    }

    fn wait_from_now(&mut self) {
        let deadline = Instant::now() + self.interval.timeout;
        self.timer.as_mut().reset(deadline);
    }
}

/// Sends a close frame if that is possible at once and none was sent: the client may return later and read it.
pub(super) fn close_unresponsive(socket: &mut WebSocket, cx: &mut Context<'_>) {
    let mut socket = Pin::new(socket);
    // RFC 6455 has no code for a ping timeout. 1011 is the usual one, and lets clients reconnect.
    let close = Message::Close(Some(CloseFrame {
        code: close_code::ERROR,
        reason: "ping timeout".into(),
    }));
    if let Poll::Ready(Ok(())) = socket.as_mut().poll_ready(cx)
        && socket.as_mut().start_send(close).is_ok()
    {
        let _ = socket.poll_flush(cx);
    }
}
