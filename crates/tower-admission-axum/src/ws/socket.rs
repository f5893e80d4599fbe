//! A WebSocket with limits.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use axum::Error;
use axum::extract::ws::{Message, WebSocket};
use http::HeaderValue;
use tokio::time::timeout;
use tower_admission::Permit;

use super::closing::{ClosingHandshake, MESSAGES_PER_POLL, PendingMessage};
use super::message_limiter::{ExcessMessage, MessageLimiter};
use super::pings::{PingInterval, Pings, close_unresponsive};

/// A WebSocket that receives only messages within the limits. It counts as a connection until it is dropped or
/// [`recv`](Self::recv) has returned `None`.
///
/// # Clients that are gone
///
/// A client whose machine or network is gone does not send a close frame. Use
/// [`SocketLimits::ping`](super::SocketLimits::ping): after its timeout `recv` returns an error, and the permit is
/// released. The handler needs no code for this, also in a `select!`:
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
///                 Some(Ok(_message)) => {} // also a pong
///                 _ => break,              // closed, failed, or timed out
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
/// Only `recv` sends pings and checks the timeout. If the handler does not call `recv`, no connection ends. The next call
/// first reads the messages that have arrived, so a slow handler does not end the connection of a client that answered.
pub struct LimitedSocket {
    socket: WebSocket,
    messages: MessageLimiter,
    /// A received message without a decision.
    received: Option<Message>,
    /// The notice about the last rejected message.
    notice: PendingMessage,
    closing: Option<ClosingHandshake>,
    pings: Option<Pings>,
    /// Whether the handler sent a close frame. No message may follow it.
    is_closing: bool,
    has_ended: bool,
    permit: Permit,
}

/// The parts of a [`LimitedSocket`].
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "dropping the permit releases it"]
pub struct SocketParts {
    /// The connection.
    pub socket: WebSocket,
    /// The permit of the connection.
    pub permit: Permit,
    /// A received message without a decision, because a `recv` was dropped.
    pub received: Option<Message>,
    /// An unsent notice or close frame, because a `recv` was dropped.
    pub unsent: Option<Message>,
}

impl LimitedSocket {
    pub(super) fn new(
        socket: WebSocket,
        permit: Permit,
        messages: MessageLimiter,
        pings: Option<PingInterval>,
    ) -> Self {
        Self {
            socket,
            messages,
            received: None,
            notice: PendingMessage::default(),
            closing: None,
            pings: pings.map(Pings::new),
            is_closing: false,
            has_ended: false,
            permit,
        }
    }

    /// Receives the next message within the limits. Returns `None` if the connection has ended, or was closed after
    /// [too many](super::SocketLimits::close_after) messages above the limits.
    ///
    /// Cancel safe: after a dropped call, as in `tokio::select!`, the next call loses no message, charges none twice, and
    /// finishes a notice or close frame that was being sent. Closing takes up to two seconds, until the client answers.
    ///
    /// # Errors
    ///
    /// If the connection fails, a notice cannot be sent, or the client does not answer a
    /// [ping](super::SocketLimits::ping). After a ping timeout the next call returns `None`.
    pub async fn recv(&mut self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        for _ in 0..MESSAGES_PER_POLL {
            match self.poll_outgoing(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return self.poll_unresponsive(cx),
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
                    Poll::Pending => return self.poll_unresponsive(cx),
                }
                if let Some(pings) = &mut self.pings {
                    pings.record_message();
                }
            }
            if let Some(Message::Text(_) | Message::Binary(_)) = &self.received
                && let Err(excess) = ready!(self.messages.poll_check(cx))
            {
                self.received = None;
                self.reject(excess);
                continue;
            }
            return Poll::Ready(self.received.take().map(Ok));
        }
        // Otherwise a flood of received messages would keep the task from all other work.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends notices and close frames of the socket itself.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(closing) = &mut self.closing {
            ready!(closing.poll(&mut self.socket, cx));
            self.closing = None;
            self.end();
        }
        self.notice.poll(&mut self.socket, cx)
    }

    /// Ends the connection of a client that did not answer a ping in time.
    fn poll_unresponsive<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        // The closing handshake has its own timeout.
        let Some(pings) = self.pings.as_mut().filter(|_| self.closing.is_none()) else {
            return Poll::Pending;
        };
        ready!(pings.poll_unresponsive(&mut self.socket, cx));
        close_unresponsive(&mut self.socket, cx);
        self.end();
        Poll::Ready(Some(Err(Error::new("the client did not answer a ping"))))
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.permit.release();
    }

    fn reject(&mut self, excess: ExcessMessage) {
        if self.is_closing {
            return;
        }
        match excess {
            ExcessMessage::Notice(answer) => self.notice = PendingMessage::new(answer),
            ExcessMessage::Close(rejection) => {
                self.closing = Some(ClosingHandshake::new(&rejection))
            }
        }
    }

    /// Sends a message, after pending notices.
    ///
    /// After a close frame of the handler, messages above a limit are dropped without a notice, and [`recv`](Self::recv)
    /// continues until the close frame of the client.
    ///
    /// # Errors
    ///
    /// As [`WebSocket::send`]; also if the connection has ended, or if sending takes longer than the timeout of
    /// [pings](super::SocketLimits::ping), which ends the connection. Without pings a client that does not read can block
    /// the call for as long as its connection lasts.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        let Some(within) = self.pings.as_ref().map(Pings::timeout) else {
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
        poll_fn(|cx| self.poll_outgoing(cx)).await?;
        if self.has_ended {
            return Err(Error::new("the connection has ended"));
        }
        self.is_closing |= matches!(message, Message::Close(_));
        self.socket.send(message).await
    }

    /// The negotiated subprotocol.
    #[must_use]
    pub fn protocol(&self) -> Option<&HeaderValue> {
        self.socket.protocol()
    }

    /// Splits the socket into its parts, for example to split the connection into a sender and a receiver.
    ///
    /// The messages are no longer limited; use [`RateLimiter::check`](tower_admission::RateLimiter::check). The connection
    /// counts until the permit is dropped, unless it has ended before.
    #[must_use = "dropping the permit releases it"]
    pub fn into_parts(self) -> SocketParts {
        let closing = self.closing.map(ClosingHandshake::into_close_frame);
        SocketParts {
            socket: self.socket,
            permit: self.permit,
            received: self.received,
            unsent: closing.unwrap_or(self.notice).into_unsent(),
        }
    }
}

impl fmt::Debug for LimitedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedSocket").finish_non_exhaustive()
    }
}
