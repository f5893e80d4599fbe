//! Waits for a permit in the wait queue, for a bounded time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::concurrency::ConcurrencyLimiter;
use super::per_key::KeySlots;
use super::permit::Permit;
use super::slots::Place;
use crate::rejection::Rejection;

/// The bounds of the wait queue: its length and the waiting time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) max_waiting: usize,
    pub(crate) max_time: Duration,
}

/// A limiter's answer to a new request.
pub(crate) enum Acquire {
    Admitted(Permit),
    Refused(Rejected),
    /// The request waits in the queue, or for the store's answer.
    Later(Acquiring),
}

/// A rejection, and the key whose limit caused it.
pub(crate) struct Rejected {
    pub(crate) rejection: Rejection,
    /// The position of the key at its limit; `None` if no key caused the rejection.
    pub(crate) key_place: Option<usize>,
}

impl From<Rejection> for Rejected {
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
pub(crate) struct Acquiring(Stage);

enum Stage {
    InLine(Box<InLine>),
    Asking(Pin<Box<dyn Future<Output = Result<Permit, Rejected>> + Send>>),
}

/// A queued request with its deadline.
struct InLine {
    // Dropped before `limiter`, which must outlive the position in the queue.
    place: Place,
    keys: KeySlots,
    deadline: Instant,
    /// The earliest time at which a stalled response may be reclaimable.
    search_at: Instant,
    /// Fires at the earlier of `deadline` and `search_at`.
    timer: Pin<Box<Sleep>>,
    limiter: ConcurrencyLimiter,
}

impl Acquiring {
    pub(super) fn in_line(
        limiter: ConcurrencyLimiter,
        place: Place,
        keys: KeySlots,
        max_time: Duration,
    ) -> Self {
        let now = Instant::now();
        let deadline = now.checked_add(max_time).unwrap_or(now + FAR);
        Self(Stage::InLine(Box::new(InLine {
            place,
            keys,
            deadline,
            search_at: now,
            timer: Box::pin(sleep_until(deadline)),
            limiter,
        })))
    }

    pub(super) fn asking(
        answer: Pin<Box<dyn Future<Output = Result<Permit, Rejected>> + Send>>,
    ) -> Self {
        Self(Stage::Asking(answer))
    }
}

impl Future for Acquiring {
    type Output = Result<Permit, Rejected>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let acquired = match &mut self.0 {
                Stage::InLine(line) => ready!(line.poll(cx)),
                Stage::Asking(answer) => return answer.as_mut().poll(cx),
            };
            match acquired {
                Acquire::Admitted(permit) => return Poll::Ready(Ok(permit)),
                Acquire::Refused(rejected) => return Poll::Ready(Err(rejected)),
                Acquire::Later(acquiring) => *self = acquiring,
            }
        }
    }
}

impl InLine {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Acquire> {
        loop {
            if let Poll::Ready(slot) = Pin::new(&mut self.place.slot).poll(cx) {
                return Poll::Ready(match slot {
                    Ok(slot) => self.limiter.admit(slot, std::mem::take(&mut self.keys)),
                    // The queue is cleared only after its limiter is dropped, and this future holds
                    // the limiter.
                    Err(_) => Acquire::Refused(self.limiter.at_capacity().into()),
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
                return Poll::Ready(self.time_is_up());
            }
        }
    }

    fn time_is_up(&mut self) -> Acquire {
        // A slot may have been sent since the last poll.
        self.place.slot.close();
        match self.place.slot.try_recv() {
            Ok(slot) => self.limiter.admit(slot, std::mem::take(&mut self.keys)),
            Err(_) => Acquire::Refused(self.limiter.at_capacity().into()),
        }
    }
}

/// A time that no request waits for.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
