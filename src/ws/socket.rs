//! A WebSocket within limits.

use std::fmt;

use axum::Error;
use axum::extract::ws::{Message, WebSocket};
use http::HeaderValue;

use super::limits::say_goodbye;
use super::messages::{Excess, Messages};
use crate::limiter::Permit;

/// A WebSocket that counts as a connection for as long as it is there, and passes on only messages
/// that are within the limits.
pub struct LimitedSocket {
    socket: WebSocket,
    messages: Messages,
    /// A message that is here and not decided on yet.
    received: Option<Message>,
    is_closed: bool,
    permit: Permit,
}

impl LimitedSocket {
    pub(super) fn new(socket: WebSocket, permit: Permit, messages: Messages) -> Self {
        Self {
            socket,
            messages,
            received: None,
            is_closed: false,
            permit,
        }
    }

    /// The next message that is within the limits; `None` when the connection has ended, or was
    /// closed because of [too many](super::SocketLimits::close_after) that were not.
    ///
    /// It may be dropped before it is ready, as `tokio::select!` does: no message is lost then, or
    /// charged again.
    ///
    /// # Errors
    ///
    /// When the connection fails, or a message that was not within the limits cannot be answered.
    pub async fn recv(&mut self) -> Option<Result<Message, Error>> {
        while !self.is_closed {
            if self.received.is_none() {
                match self.socket.recv().await? {
                    Ok(message) => self.received = Some(message),
                    Err(error) => return Some(Err(error)),
                }
            }
            if let Some(Message::Text(_) | Message::Binary(_)) = &self.received
                && let Err(excess) = self.messages.take().await
            {
                self.received = None;
                if let Err(error) = self.refuse(excess).await {
                    return Some(Err(error));
                }
                continue;
            }
            return self.received.take().map(Ok);
        }
        None
    }

    async fn refuse(&mut self, excess: Excess) -> Result<(), Error> {
        match excess {
            Excess::Answer(None) => Ok(()),
            Excess::Answer(Some(answer)) => self.socket.send(answer).await,
            Excess::Close(rejection) => {
                self.is_closed = true;
                say_goodbye(&mut self.socket, &rejection).await;
                Ok(())
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// As [`WebSocket::send`].
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }

    /// The subprotocol that was agreed on.
    #[must_use]
    pub fn protocol(&self) -> Option<&HeaderValue> {
        self.socket.protocol()
    }

    /// The socket and its permit, for those who part it into a sending and a receiving half.
    ///
    /// Messages are not limited any more; [`RateLimiter::check`](crate::RateLimiter::check) does
    /// that by hand. The connection counts for as long as the permit is kept.
    #[must_use = "the connection counts only for as long as the permit is kept"]
    pub fn into_parts(self) -> (WebSocket, Permit) {
        (self.socket, self.permit)
    }
}

impl fmt::Debug for LimitedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedSocket").finish_non_exhaustive()
    }
}
