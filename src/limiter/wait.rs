//! Waits for a permit in the wait queue, for a bounded time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::concurrency::ConcurrencyLimiter;
use super::key_counters::KeySlots;
use super::permit::Permit;
use super::slot_counter::QueuePosition;
use crate::rejection::Rejection;

/// The bounds of the wait queue: its length and the waiting time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimits {
    pub(crate) max_waiting: usize,
    pub(crate) max_time: Duration,
}

/// A limiter's answer to a new request.
pub(crate) enum PermitReply {
    Admitted(Permit),
    Rejected(KeyedRejection),
    /// The request waits in the queue, or for the store's answer.
    Pending(PermitFuture),
}

/// A rejection, and the key whose limit caused it.
pub(crate) struct KeyedRejection {
    pub(crate) rejection: Rejection,
    /// The position of the key at its limit; `None` if no key caused the rejection.
    pub(crate) key_place: Option<usize>,
}

impl From<Rejection> for KeyedRejection {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            key_place: None,
        }
    }
}

/// Resolves to a permit or a rejection.
///
/// Dropping it leaves the wait queue and takes no slot. A slot that was already sent goes to the
/// next waiter.
pub(crate) struct PermitFuture(Stage);

enum Stage {
    Queued(Box<QueuedRequest>),
    WaitingForStore(Pin<Box<dyn Future<Output = Result<Permit, KeyedRejection>> + Send>>),
}

/// A queued request with its deadline.
struct QueuedRequest {
    // Dropped before `limiter`, which must outlive the position in the queue.
    place: QueuePosition,
    keys: KeySlots,
    deadline: Instant,
    /// The earliest time at which a stalled response may be reclaimable.
    search_at: Instant,
    /// Fires at the earlier of `deadline` and `search_at`.
    timer: Pin<Box<Sleep>>,
    limiter: ConcurrencyLimiter,
}

impl PermitFuture {
    pub(super) fn queued(
        limiter: ConcurrencyLimiter,
        place: QueuePosition,
        keys: KeySlots,
        max_time: Duration,
    ) -> Self {
        let now = Instant::now();
        let deadline = now.checked_add(max_time).unwrap_or(now + FAR_FUTURE);
        Self(Stage::Queued(Box::new(QueuedRequest {
            place,
            keys,
            deadline,
            search_at: now,
            timer: Box::pin(sleep_until(deadline)),
            limiter,
        })))
    }

    pub(super) fn from_store(
        answer: Pin<Box<dyn Future<Output = Result<Permit, KeyedRejection>> + Send>>,
    ) -> Self {
        Self(Stage::WaitingForStore(answer))
    }
}

impl Future for PermitFuture {
    type Output = Result<Permit, KeyedRejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let acquired = match &mut self.0 {
                Stage::Queued(queued) => ready!(queued.poll(cx)),
                Stage::WaitingForStore(answer) => return answer.as_mut().poll(cx),
            };
            match acquired {
                PermitReply::Admitted(permit) => return Poll::Ready(Ok(permit)),
                PermitReply::Rejected(rejected) => return Poll::Ready(Err(rejected)),
                PermitReply::Pending(acquiring) => *self = acquiring,
            }
        }
    }
}

impl QueuedRequest {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PermitReply> {
        loop {
            if let Poll::Ready(slot) = Pin::new(&mut self.place.slot).poll(cx) {
                return Poll::Ready(match slot {
                    Ok(slot) => self.limiter.admit(slot, std::mem::take(&mut self.keys)),
                    // The queue is cleared only after its limiter is dropped, and this future holds
                    // the limiter.
                    Err(_) => PermitReply::Rejected(self.limiter.at_capacity().into()),
                });
            }
            let now = Instant::now();
            if now < self.deadline && self.search_at <= now {
                let next = self.limiter.make_room();
                self.search_at = next.map_or(self.deadline, |next| next.min(self.deadline));
                self.timer.as_mut().reset(self.search_at);
                // The reclaimed slot may have been sent to this request.
                continue;
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(self.finish_at_deadline());
            }
        }
    }

    fn finish_at_deadline(&mut self) -> PermitReply {
        // A slot may have been sent since the last poll.
        self.place.slot.close();
        match self.place.slot.try_recv() {
            Ok(slot) => self.limiter.admit(slot, std::mem::take(&mut self.keys)),
            Err(_) => PermitReply::Rejected(self.limiter.at_capacity().into()),
        }
    }
}

/// A time that no request waits for.
const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
