//! Waiting in line for a permit, for a bounded time.

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

/// How many may wait in line, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) max_waiting: usize,
    pub(crate) max_time: Duration,
}

/// A limiter's answer to who comes now.
pub(crate) enum Acquire {
    Admitted(Permit),
    Refused(Rejected),
    /// After a wait in line, or when the store has answered.
    Later(Acquiring),
}

/// A rejection, and whose limit it was.
pub(crate) struct Rejected {
    pub(crate) rejection: Rejection,
    /// The place of the key that is full; `None` when it was none of the request's keys.
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

/// Resolves to a permit or to a rejection.
///
/// Dropping it leaves the line and takes no slot; one that was on its way goes to whoever is next.
pub(crate) struct Acquiring(Stage);

enum Stage {
    InLine(Box<InLine>),
    Asking(Pin<Box<dyn Future<Output = Result<Permit, Rejected>> + Send>>),
}

/// A place in the line, until the time is up.
struct InLine {
    // Before `limiter`, which has to outlive the place.
    place: Place,
    keys: KeySlots,
    deadline: Instant,
    /// When a response may be stalled that could be reclaimed.
    search_at: Instant,
    /// Ends at the earlier of the two.
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
                    // The line is cleared only when its limiter is gone, and this holds it.
                    Err(_) => Acquire::Refused(self.limiter.at_capacity().into()),
                });
            }
            let now = Instant::now();
            if now < self.deadline && self.search_at <= now {
                let next = self.limiter.make_room();
                self.search_at = next.map_or(self.deadline, |next| next.min(self.deadline));
                self.timer.as_mut().reset(self.search_at);
                // The room may have become ours.
                continue;
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(self.time_is_up());
            }
        }
    }

    fn time_is_up(&mut self) -> Acquire {
        // A slot may have been sent since it was looked for.
        self.place.slot.close();
        match self.place.slot.try_recv() {
            Ok(slot) => self.limiter.admit(slot, std::mem::take(&mut self.keys)),
            Err(_) => Acquire::Refused(self.limiter.at_capacity().into()),
        }
    }
}

/// A time that no request waits for.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
