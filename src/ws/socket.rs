//! A WebSocket within limits.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use axum::Error;
use axum::extract::ws::{Message, WebSocket};
use http::HeaderValue;

use super::goodbye::{Goodbye, MOST_AT_A_TIME, Outgoing};
use super::messages::{Excess, Messages};
use crate::limiter::Permit;

/// A WebSocket that passes on only messages which are within the limits, and counts as a connection
/// until it is dropped or [`recv`](Self::recv) has returned `None`.
///
/// # Clients that are gone silently
///
/// A client whose network is gone says nothing, and counts until it is found out. Nothing here
/// sends pings; a handler that does can tell by the time since it last heard of its client:
///
/// ```
/// # use std::time::Duration;
/// # use tower_admission::ws::LimitedSocket;
/// use axum::extract::ws::Message;
/// use tokio::time::{Instant, interval};
///
/// async fn serve(mut socket: LimitedSocket) {
///     let mut pings = interval(Duration::from_secs(30));
///     let mut heard = Instant::now();
///     loop {
///         tokio::select! {
///             message = socket.recv() => match message {
///                 Some(Ok(_message)) => heard = Instant::now(), // pongs as well
///                 _ => break,
///             },
///             _ = pings.tick() => {
///                 let is_gone = heard.elapsed() > Duration::from_secs(90);
///                 if is_gone || socket.send(Message::Ping("".into())).await.is_err() {
///                     break;
///                 }
///             }
///         }
///     }
/// }
/// ```
///
/// (A client that reads nothing can hold up `send`; a timeout around it bounds that.)
pub struct LimitedSocket {
    socket: WebSocket,
    messages: Messages,
    /// A message that is here and not decided on yet.
    received: Option<Message>,
    /// What answers the last message that was refused.
    notice: Outgoing,
    goodbye: Option<Goodbye>,
    /// By the handler: nothing may be sent after its close frame.
    is_closing: bool,
    has_ended: bool,
    permit: Permit,
}

/// What a [`LimitedSocket`] is made of.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the connection counts only for as long as the permit is kept"]
pub struct Parts {
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
    pub(super) fn new(socket: WebSocket, permit: Permit, messages: Messages) -> Self {
        Self {
            socket,
            messages,
            received: None,
            notice: Outgoing::default(),
            goodbye: None,
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
    /// When the connection fails, or a message that was not within the limits cannot be answered.
    pub async fn recv(&mut self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        for _ in 0..MOST_AT_A_TIME {
            if let Err(error) = ready!(self.poll_say(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            if self.received.is_none() {
                let received = ready!(pin!(self.socket.recv()).poll(cx));
                match received {
                    Some(Ok(message)) => self.received = Some(message),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        self.end();
                        return Poll::Ready(None);
                    }
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
    /// being closed.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
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
    /// Messages are not limited any more; [`RateLimiter::check`](crate::RateLimiter::check) does
    /// that by hand. The connection counts for as long as the permit is kept, unless it has ended.
    #[must_use = "the connection counts only for as long as the permit is kept"]
    pub fn into_parts(self) -> Parts {
        let goodbye = self.goodbye.map(Goodbye::into_farewell);
        Parts {
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
