//! Pings, and how long a client may stay silent after one.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures_sink::Sink;
use tokio::time::{Instant, Sleep, sleep};

use super::goodbye::Outgoing;

/// How often a client is pinged, and how long it may stay silent then.
#[derive(Clone, Copy, Debug)]
pub(super) struct PingInterval {
    every: Duration,
    within: Duration,
}

/// Keeps sums with the clock from overflowing.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl PingInterval {
    /// `None` for 0, which turns pings off.
    pub(super) fn new(every: Duration, within: Duration) -> Option<Self> {
        (!every.is_zero()).then_some(Self {
            every: every.min(LONGEST),
            within: within.min(LONGEST),
        })
    }
}

/// The pings of one connection. One is under way at a time, and any message answers it.
pub(super) struct Pings {
    interval: PingInterval,
    state: State,
    /// Until the next ping, or else until the client has been silent for too long.
    timer: Pin<Box<Sleep>>,
    next: Instant,
}

enum State {
    Resting,
    /// The client may read nothing, so sending counts as waiting for it.
    Sending(Outgoing),
    Waiting,
}

impl Pings {
    pub(super) fn new(interval: PingInterval) -> Self {
        let timer = Box::pin(sleep(interval.every));
        Self {
            interval,
            state: State::Resting,
            next: timer.deadline(),
            timer,
        }
    }

    /// How long the client may stay silent.
    pub(super) fn within(&self) -> Duration {
        self.interval.within
    }

    /// The client sent a message, whichever it was.
    pub(super) fn heard(&mut self) {
        match self.state {
            State::Resting => {}
            State::Sending(_) => self.wait_from_now(),
            State::Waiting => {
                self.state = State::Resting;
                self.timer.as_mut().reset(self.next);
            }
        }
    }

    /// Sends a ping when it is due; ready when the client has been silent for too long.
    ///
    /// To be asked when nothing is there to be read. Messages that arrived while the handler did
    /// something else are then heard first, however late that is.
    pub(super) fn poll_silent(&mut self, socket: &mut WebSocket, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // An error leaves the client silent as well: the connection failed, or the handler has
            // sent a close frame, which the client has to answer instead.
            if let State::Sending(ping) = &mut self.state
                && ping.poll(socket, cx).is_ready()
            {
                self.state = State::Waiting;
                self.wait_from_now();
            }
            ready!(self.timer.as_mut().poll(cx));
            if !matches!(self.state, State::Resting) {
                return Poll::Ready(());
            }
            self.state = State::Sending(Outgoing::new(Some(Message::Ping("".into()))));
            self.next = Instant::now() + self.interval.every;
            self.wait_from_now();
        }
    }

    fn wait_from_now(&mut self) {
        let deadline = Instant::now() + self.interval.within;
        self.timer.as_mut().reset(deadline);
    }
}

/// Sends a close frame, unless there was one, if that is possible at once: the client may be back later, and read it.
pub(super) fn close_silent(socket: &mut WebSocket, cx: &mut Context<'_>) {
    let mut socket = Pin::new(socket);
    // RFC 6455 has no code for this. 1011 is the usual one, and lets clients connect again.
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
