//! What a socket has to say by itself: notices, and why it closes.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Error;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use futures_sink::Sink;
use tokio::time::{Sleep, sleep};
use tower_admission::{Permit, Rejection};

use super::handshake;

/// How long a client may take to answer a close frame.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// How much is read until a client's close frame: what may have been under way when ours was sent.
const MOST_BYTES: usize = 4 << 20;

/// The longest message of a client that is refused by a close frame. A thousand of them at a time
/// are to cost little.
const LONGEST: usize = 16 << 10;

/// What a frame of a client has besides its payload, at least.
const FRAME_HEADER: usize = 6;

/// Messages that are read, or refused, in one go.
pub(super) const MOST_AT_A_TIME: usize = 32;

/// A message on its way out. Its state is here and not in a future, so that one which is dropped
/// loses nothing.
#[derive(Default)]
pub(super) struct Outgoing {
    unsent: Option<Message>,
    is_unflushed: bool,
}

impl Outgoing {
    pub(super) fn new(message: Option<Message>) -> Self {
        Self {
            unsent: message,
            is_unflushed: false,
        }
    }

    pub(super) fn into_unsent(self) -> Option<Message> {
        self.unsent
    }

    /// Ready when there is nothing left to do.
    pub(super) fn poll(
        &mut self,
        socket: &mut WebSocket,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut socket = Pin::new(socket);
        if self.unsent.is_some() {
            let ready = ready!(socket.as_mut().poll_ready(cx));
            // It is taken also when the connection fails, or it would fail for ever.
            if let Some(message) = self.unsent.take() {
                ready?;
                socket.as_mut().start_send(message)?;
                self.is_unflushed = true;
            }
        }
        if self.is_unflushed {
            let flushed = ready!(socket.poll_flush(cx));
            self.is_unflushed = false;
            flushed?;
        }
        Poll::Ready(Ok(()))
    }
}

/// The end of a connection: a close frame, and what the client still sends until its own. A client
/// that reads nothing or sends on cannot hold it up for long.
pub(super) struct Goodbye {
    farewell: Outgoing,
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Goodbye {
    pub(super) fn new(rejection: &Rejection) -> Self {
        Self {
            farewell: Outgoing::new(Some(farewell(rejection))),
            deadline: Box::pin(sleep(CLOSE_WITHIN)),
            bytes_left: MOST_BYTES,
        }
    }

    pub(super) fn into_farewell(self) -> Outgoing {
        self.farewell
    }

    /// Ready when it is said, or nobody listens.
    pub(super) fn poll(&mut self, socket: &mut WebSocket, cx: &mut Context<'_>) -> Poll<()> {
        if self.deadline.as_mut().poll(cx).is_ready()
            || ready!(self.farewell.poll(socket, cx)).is_err()
        {
            return Poll::Ready(());
        }
        // Until the client's own close frame, or else it may never see ours.
        for _ in 0..MOST_AT_A_TIME {
            let Some(Ok(message)) = ready!(pin!(socket.recv()).poll(cx)) else {
                return Poll::Ready(());
            };
            let read = message.into_data().len() + FRAME_HEADER;
            let Some(left) = self.bytes_left.checked_sub(read) else {
                return Poll::Ready(());
            };
            self.bytes_left = left;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Lets a client in only to tell it why it has to go.
pub(super) fn close(upgrade: WebSocketUpgrade, rejection: Rejection, permit: Permit) -> Response {
    let upgrade = upgrade
        .read_buffer_size(LONGEST)
        .max_frame_size(LONGEST)
        .max_message_size(LONGEST);
    handshake::upgrade(upgrade, permit, move |mut socket, permit| async move {
        let mut goodbye = Goodbye::new(&rejection);
        poll_fn(|cx| goodbye.poll(&mut socket, cx)).await;
        drop(permit);
    })
}

/// RFC 6455 §7.4.1: 1008 for a limit of the client's; IANA's registry has 1013 for capacity.
fn farewell(rejection: &Rejection) -> Message {
    let code = if rejection.reason().is_caller_limit() {
        close_code::POLICY
    } else {
        close_code::AGAIN
    };
    Message::Close(Some(CloseFrame {
        code,
        reason: rejection.reason().as_str().into(),
    }))
}
