//! A WebSocket within limits.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use axum::Error;
use axum::extract::ws::{Message, WebSocket};
use http::HeaderValue;
use tokio::time::timeout;
use tower_admission::Permit;

use super::goodbye::{Goodbye, MOST_AT_A_TIME, Outgoing};
use super::messages::{Excess, Messages};
use super::pings::{PingInterval, Pings, close_silent};

/// A WebSocket that passes on only messages which are within the limits, and counts as a connection
/// until it is dropped or [`recv`](Self::recv) has returned `None`.
///
/// # Clients that are gone
///
/// A client whose machine or network is gone sends nothing, not even a close frame. With
/// [`SocketLimits::ping`](super::SocketLimits::ping) the connection ends then: `recv` returns an
/// error, and the slot is free. That needs no code in the handler, also in a `select!`:
///
/// ```
/// # use tokio::sync::broadcast::Receiver;
/// # use tower_admission_axum::ws::LimitedSocket;
/// use axum::extract::ws::Message;
///
/// async fn serve(mut socket: LimitedSocket, mut news: Receiver<String>) {
///     loop {
///         tokio::select! {
///             message = socket.recv() => match message {
///                 Some(Ok(_message)) => {} // pongs as well
///                 _ => break,              // closed, failed, or silent
///             },
///             Ok(text) = news.recv() => {
///                 if socket.send(Message::text(text)).await.is_err() {
///                     break;
///                 }
///             }
///         }
///     }
/// }
/// ```
///
/// Pings are sent and waited for in `recv` alone. While a handler does not call it, nothing is sent
/// and nothing ends. The next call reads first what arrived meanwhile, so a slow handler does not
/// end the connection of a client that answered.
pub struct LimitedSocket {
    socket: WebSocket,
    messages: Messages,
    /// A message that is here and not decided on yet.
    received: Option<Message>,
    /// What answers the last message that was refused.
    notice: Outgoing,
    goodbye: Option<Goodbye>,
    pings: Option<Pings>,
    /// By the handler: nothing may be sent after its close frame.
    is_closing: bool,
    has_ended: bool,
    permit: Permit,
}

/// What a [`LimitedSocket`] is made of.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the connection counts only for as long as the permit is kept"]
pub struct LimiterSet {
    /// The connection.
    pub socket: WebSocket,
    /// Its slot.
    pub permit: Permit,
    /// A message that was received and not passed on, because a `recv` was dropped before it was
    /// decided about.
    pub received: Option<Message>,
    /// What the client was about to be told when a `recv` was dropped: a notice or a close frame.
    pub unsent: Option<Message>,
}

impl LimitedSocket {
    pub(super) fn new(
        socket: WebSocket,
        permit: Permit,
        messages: Messages,
        pings: Option<PingInterval>,
    ) -> Self {
        Self {
            socket,
            messages,
            received: None,
            notice: Outgoing::default(),
            goodbye: None,
            pings: pings.map(Pings::new),
            is_closing: false,
            has_ended: false,
            permit,
        }
    }

    /// The next message that is within the limits; `None` when the connection has ended, or was
    /// closed because of [too many](super::SocketLimits::close_after) that were not.
    ///
    /// It may be dropped before it is ready, as `tokio::select!` does, and called again: no message
    /// is lost then or charged twice, and what the client is told is told to its end. Closing
    /// takes up to two seconds, for the client to answer.
    ///
    /// # Errors
    ///
    /// When the connection fails, a message that was not within the limits cannot be answered, or
    /// the client is [silent](super::SocketLimits::ping); after the last of these it returns `None`.
    pub async fn recv(&mut self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        for _ in 0..MOST_AT_A_TIME {
            match self.poll_say(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return self.poll_silent(cx),
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            if self.received.is_none() {
                let received = pin!(self.socket.recv()).poll(cx);
                match received {
                    Poll::Ready(Some(Ok(message))) => self.received = Some(message),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => {
                        self.end();
                        return Poll::Ready(None);
                    }
                    Poll::Pending => return self.poll_silent(cx),
                }
                if let Some(pings) = &mut self.pings {
                    pings.heard();
                }
            }
            if let Some(Message::Text(_) | Message::Binary(_)) = &self.received
                && let Err(excess) = ready!(self.messages.poll_take(cx))
            {
                self.received = None;
                self.refuse(excess);
                continue;
            }
            return Poll::Ready(self.received.take().map(Ok));
        }
        // A flood that is there already would else keep its task from everything else.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Says what the socket itself has to say.
    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(goodbye) = &mut self.goodbye {
            ready!(goodbye.poll(&mut self.socket, cx));
            self.goodbye = None;
            self.end();
        }
        self.notice.poll(&mut self.socket, cx)
    }

    /// Ends the connection of a client that has been silent for too long.
    fn poll_silent<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        // Closing has a bound of its own.
        let Some(pings) = self.pings.as_mut().filter(|_| self.goodbye.is_none()) else {
            return Poll::Pending;
        };
        ready!(pings.poll_silent(&mut self.socket, cx));
        close_silent(&mut self.socket, cx);
        self.end();
        Poll::Ready(Some(Err(Error::new("the client did not answer a ping"))))
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.permit.release();
    }

    fn refuse(&mut self, excess: Excess) {
        if self.is_closing {
            return;
        }
        match excess {
            Excess::Answer(answer) => self.notice = Outgoing::new(answer),
            Excess::Close(rejection) => self.goodbye = Some(Goodbye::new(&rejection)),
        }
    }

    /// Sends a message, after what the client is being told by the socket itself.
    ///
    /// After a close frame messages above a limit are dropped and not answered, while
    /// [`recv`](Self::recv) goes on until the client's own.
    ///
    /// # Errors
    ///
    /// As [`WebSocket::send`]; and when the connection has ended, which is waited for while it is
    /// being closed. With [pings](super::SocketLimits::ping) also when sending takes longer than a
    /// client may stay silent, which ends the connection. Without them a client that reads nothing
    /// can hold it up for as long as its connection lasts.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        let Some(within) = self.pings.as_ref().map(Pings::within) else {
            return self.send_unbounded(message).await;
        };
        match timeout(within, self.send_unbounded(message)).await {
            Ok(sent) => sent,
            Err(_) => {
                self.end();
                Err(Error::new("the client does not read"))
            }
        }
    }

    async fn send_unbounded(&mut self, message: Message) -> Result<(), Error> {
        poll_fn(|cx| self.poll_say(cx)).await?;
        if self.has_ended {
            return Err(Error::new("the connection has ended"));
        }
        self.is_closing |= matches!(message, Message::Close(_));
        self.socket.send(message).await
    }

    /// The subprotocol that was agreed on.
    #[must_use]
    pub fn protocol(&self) -> Option<&HeaderValue> {
        self.socket.protocol()
    }

    /// What it is made of, for those who part it into a sending and a receiving half.
    ///
    /// Messages are not limited any more; [`RateLimiter::check`](tower_admission::RateLimiter::check) does
    /// that by hand. The connection counts for as long as the permit is kept, unless it has ended.
    #[must_use = "the connection counts only for as long as the permit is kept"]
    pub fn into_parts(self) -> LimiterSet {
        let goodbye = self.goodbye.map(Goodbye::into_farewell);
        LimiterSet {
            socket: self.socket,
            permit: self.permit,
            received: self.received,
            unsent: goodbye.unwrap_or(self.notice).into_unsent(),
        }
    }
}

impl fmt::Debug for LimitedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedSocket").finish_non_exhaustive()
    }
}
