//! Some of the decisions, for those who watch.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::broadcast;

use crate::key::Key;
use crate::observe::Subject;
use crate::rejection::{Reason, Rejection};

/// Decisions a second that are told of each sort: refused or not. So neither drives out the other, and there
/// are at most 20.
const MOST_A_SECOND: u64 = 10;

/// Those who can watch.
const MOST_LISTENERS: usize = 16;

/// Decisions that wait for a listener that is slow; more, and it misses the oldest.
const QUEUE: usize = 64;

/// A decision.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) limiter: Box<str>,
    pub(crate) limit_type: &'static str,
    pub(crate) policy: Box<str>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<Reason>,
    pub(crate) key: Option<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admitted,
    Refused,
    WouldRefuse,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::WouldRefuse => "would_refuse",
        }
    }
}

pub(super) struct Samples {
    listeners: AtomicUsize,
    admitted: Budget,
    refused: Budget,
    queue: broadcast::Sender<Sample>,
}

impl Samples {
    pub(super) fn new() -> Self {
        Self {
            listeners: AtomicUsize::new(0),
            admitted: Budget::default(),
            refused: Budget::default(),
            queue: broadcast::Sender::new(QUEUE),
        }
    }

    /// Tells of a decision, if anybody watches and this second has not had its share.
    pub(super) fn tell(
        &self,
        subject: &Subject<'_>,
        outcome: Outcome,
        rejection: Option<&Rejection>,
        second: u32,
    ) {
        if self.listeners.load(Ordering::Relaxed) == 0 {
            return;
        }
        let budget = match outcome {
            Outcome::Admitted => &self.admitted,
            _ => &self.refused,
        };
        if budget.takes(second) {
            let sample = Sample {
                limiter: subject.limiter.into(),
                limit_type: subject.limit_type,
                policy: subject.policy.into(),
                outcome,
                reason: rejection.map(Rejection::reason),
                key: subject.key.copied(),
            };
            // The last listener may just have gone.
            let _ = self.queue.send(sample);
        }
    }

    /// A place among the listeners, if there is one; it is held by
    /// [`Listener`](super::Listener).
    pub(super) fn join(&self) -> Option<broadcast::Receiver<Sample>> {
        let one_more = |listeners| (listeners < MOST_LISTENERS).then_some(listeners + 1);
        self.listeners
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(self.queue.subscribe())
    }

    pub(super) fn leave(&self) {
        self.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The second, and in the low byte how many it has had.
#[derive(Default)]
struct Budget(AtomicU64);

impl Budget {
    fn takes(&self, second: u32) -> bool {
        let second = u64::from(second);
        let one_more = |spent: u64| match spent & 0xff {
            _ if spent >> 8 < second => Some(second << 8 | 1),
            count if count < MOST_A_SECOND => Some(spent + 1),
            _ => None,
        };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;

    fn subject() -> Subject<'static> {
        Subject::new("http", "calls", "burst", None)
    }

    #[test]
    fn a_bounded_number_a_second_of_each_sort() {
        let samples = Samples::new();
        samples.tell(&subject(), Outcome::Admitted, None, 0);
        let mut receiver = samples.join().unwrap();
        for second in 0..3 {
            for _ in 0..100 {
                samples.tell(&subject(), Outcome::Admitted, None, second);
            }
            samples.tell(&subject(), Outcome::Refused, None, second);
            samples.tell(&subject(), Outcome::WouldRefuse, None, second);
            let told: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok())
                .map(|sample| sample.outcome)
                .collect();
            assert_eq!(told.len(), 12);
            assert_eq!(told[10..], [Outcome::Refused, Outcome::WouldRefuse]);
        }
    }

    #[test]
    fn a_bounded_number_of_listeners() {
        let samples = Samples::new();
        let listeners: Vec<_> = (0..MOST_LISTENERS).map(|_| samples.join()).collect();
        assert!(listeners.iter().all(Option::is_some));
        assert!(samples.join().is_none());
        samples.leave();
        assert!(samples.join().is_some());
    }
}
