//! Messages that the socket itself sends: notices and close frames.

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

/// The time that a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The bytes that are read until the close frame of the client: the client may have sent them before it read ours.
const MAX_DRAINED_BYTES: usize = 4 << 20;

/// The longest message of a client that is rejected with a close frame. A thousand such clients at a time must cost
/// little memory.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// The minimum header of a frame from a client (RFC 6455 §5.2).
const FRAME_HEADER: usize = 6;

/// The messages that one poll reads or rejects.
pub(super) const MESSAGES_PER_POLL: usize = 32;

/// A message that is being sent. Its state is not in a future, so that a dropped future loses no message.
#[derive(Default)]
pub(super) struct PendingMessage {
    unsent: Option<Message>,
    is_unflushed: bool,
}

impl PendingMessage {
    pub(super) fn new(message: Option<Message>) -> Self {
        Self {
            unsent: message,
            is_unflushed: false,
        }
    }

    pub(super) fn into_unsent(self) -> Option<Message> {
        self.unsent
    }

    /// Ready after the message is sent and flushed.
    pub(super) fn poll(
        &mut self,
        socket: &mut WebSocket,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut socket = Pin::new(socket);
        if self.unsent.is_some() {
            let ready = ready!(socket.as_mut().poll_ready(cx));
            // The message is taken also if the connection fails, or each later poll would fail.
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

/// The closing handshake: sends a close frame, and reads until the close frame of the client. Its time and bytes are
/// bounded.
pub(super) struct ClosingHandshake {
    close_frame: PendingMessage,
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl ClosingHandshake {
    pub(super) fn new(rejection: &Rejection) -> Self {
        Self {
            close_frame: PendingMessage::new(Some(close_frame(rejection))),
            deadline: Box::pin(sleep(CLOSE_TIMEOUT)),
            bytes_left: MAX_DRAINED_BYTES,
        }
    }

    pub(super) fn into_close_frame(self) -> PendingMessage {
        self.close_frame
    }

    /// Ready after the handshake, or when its bounds are reached.
    pub(super) fn poll(&mut self, socket: &mut WebSocket, cx: &mut Context<'_>) -> Poll<()> {
        if self.deadline.as_mut().poll(cx).is_ready()
            || ready!(self.close_frame.poll(socket, cx)).is_err()
        {
            return Poll::Ready(());
        }
        // The client may not see our close frame if the connection ends before the client sends its own.
        for _ in 0..MESSAGES_PER_POLL {
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

/// Accepts a connection, and closes it at once with the reason of the rejection.
pub(super) fn close(upgrade: WebSocketUpgrade, rejection: Rejection, permit: Permit) -> Response {
    let upgrade = upgrade
        .read_buffer_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES);
    handshake::upgrade(upgrade, permit, move |mut socket, permit| async move {
        let mut closing = ClosingHandshake::new(&rejection);
        poll_fn(|cx| closing.poll(&mut socket, cx)).await;
        drop(permit);
    })
}

/// RFC 6455 §7.4.1: 1008 for a limit of the client. IANA registers 1013 for capacity.
fn close_frame(rejection: &Rejection) -> Message {
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
