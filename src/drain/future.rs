//! The response future: delays a rejection until the request body has been read.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::layer::{DrainBounds, DrainSlot};

/// A response future that keeps the body of a rejected request.
///
/// The response futures of this crate's layers implement it.
pub trait KeepsRejectedBody<B> {
    /// Takes the body of the request, if the request was rejected.
    fn take_rejected_body(self: Pin<&mut Self>) -> Option<B>;
}

pin_project! {
    /// The response of a [`DrainRejected`](super::DrainRejected) service.
    pub struct ResponseFuture<F, B, R> {
        #[pin]
        inner: F,
        // `None` if the body must not be read.
        bounds: Option<Arc<DrainBounds>>,
        rejected: Option<Box<PendingRejection<B, R>>>,
    }
}

/// A rejection that waits for the end of the request body.
struct PendingRejection<B, R> {
    response: R,
    body: Pin<Box<B>>,
    left: u64,
    timer: Pin<Box<Sleep>>,
    /// Releases the slot when the body has been read.
    _slot: DrainSlot,
}

/// The number of frames to read before other tasks get a turn.
const FRAMES_AT_A_TIME: usize = 32;

impl<F, B, R> ResponseFuture<F, B, R> {
    pub(super) fn new(inner: F, bounds: Option<Arc<DrainBounds>>) -> Self {
        Self {
            inner,
            bounds,
            rejected: None,
        }
    }
}

impl<F, B, R, E> Future for ResponseFuture<F, B, R>
where
    F: Future<Output = Result<R, E>> + KeepsRejectedBody<B>,
    B: Body,
{
    type Output = Result<R, E>;

    /// # Panics
    ///
    /// Panics when polled again after completion.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut inner = this.inner;
        if this.rejected.is_none() {
            let response = ready!(inner.as_mut().poll(cx))?;
            let Some(bounds) = this.bounds.take() else {
                return Poll::Ready(Ok(response));
            };
            let body = inner.take_rejected_body();
            match body.and_then(|body| begin(body, &bounds)) {
                Some((body, slot)) => {
                    *this.rejected = Some(Box::new(PendingRejection {
                        response,
                        body,
                        left: bounds.max_bytes,
                        timer: Box::pin(sleep(bounds.max_time)),
                        _slot: slot,
                    }));
                }
                None => return Poll::Ready(Ok(response)),
            }
        }
        if let Some(rejected) = this.rejected {
            ready!(rejected.poll_drained(cx));
        }
        let rejected = this
            .rejected
            .take()
            .expect("polled again after it was ready");
        Poll::Ready(Ok(rejected.response))
    }
}

/// Starts to read a body, if it can be read completely.
fn begin<B: Body>(body: B, bounds: &Arc<DrainBounds>) -> Option<(Pin<Box<B>>, DrainSlot)> {
    // Reading a part of a body that is too long would not help the client.
    if body.is_end_stream() || body.size_hint().lower() > bounds.max_bytes {
        return None;
    }
    Some((Box::pin(body), bounds.begin()?))
}

impl<B: Body, R> PendingRejection<B, R> {
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..FRAMES_AT_A_TIME {
            match self.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Buf::remaining);
                    match self.left.checked_sub(length as u64) {
                        Some(left) => self.left = left,
                        None => return Poll::Ready(()),
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
        // A body that is always ready would otherwise exceed the maximum time.
        if self.timer.as_mut().poll(cx).is_pending() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl<F, B, R> fmt::Debug for ResponseFuture<F, B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
