//! Waiting in line for a permit, for a bounded time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use super::concurrency::ConcurrencyLimiter;
use super::per_key::KeySlot;
use super::permit::Permit;
use super::slots::Place;
use crate::rejection::Rejection;

/// A limiter's answer to who comes now.
pub(crate) enum Acquire {
    Admitted(Permit),
    Refused(Rejection),
    InLine(Acquiring),
}

/// A place in the line: resolves to a permit, or to a rejection when the time is up.
///
/// Dropping it leaves the line; a slot that was on its way goes to whoever is next.
pub(crate) struct Acquiring {
    // Before `limiter`, which has to outlive the place.
    place: Place,
    key: Option<KeySlot>,
    deadline: Pin<Box<Sleep>>,
    limiter: ConcurrencyLimiter,
}

impl Acquiring {
    pub(super) fn new(
        limiter: ConcurrencyLimiter,
        place: Place,
        key: Option<KeySlot>,
        deadline: Sleep,
    ) -> Self {
        Self {
            place,
            key,
            deadline: Box::pin(deadline),
            limiter,
        }
    }
}

impl Future for Acquiring {
    type Output = Result<Permit, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(slot) = Pin::new(&mut this.place.slot).poll(cx) {
            return Poll::Ready(match slot {
                Ok(slot) => Ok(this.limiter.permit(slot, this.key.take())),
                // The line is cleared only when its limiter is gone, and this holds it.
                Err(_) => Err(this.limiter.at_capacity()),
            });
        }
        if this.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        // A slot may have been sent since it was looked for.
        this.place.slot.close();
        Poll::Ready(match this.place.slot.try_recv() {
            Ok(slot) => Ok(this.limiter.permit(slot, this.key.take())),
            Err(_) => Err(this.limiter.at_capacity()),
        })
    }
}
