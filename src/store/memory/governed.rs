//! What governor needs to decide over the bounded table.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Reference;
use governor::middleware::{RateLimitingMiddleware, StateSnapshot};
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::rate::Numbers;
use super::table::{Judge, Place, Table};
use crate::decision::Usage;
use crate::key::Key;

/// What governor calls a key: whose bucket, what to do with it, and what was found there.
#[derive(Clone, Debug)]
pub(super) struct Access {
    place: Place,
    mode: Mode,
    /// The request's cost as time at the steady rate.
    pub(super) weight: u64,
    pub(super) seen: Cell<Seen>,
    /// Whether a key without a bucket is left alone, and whether it was.
    pub(super) only_known: bool,
    pub(super) missed: Cell<bool>,
}

impl Access {
    #[inline]
    pub(super) fn new(key: &Key, mode: Mode, weight: u64) -> Self {
        Self {
            place: Place::new(key.place_bits()),
            mode,
            weight,
            seen: Cell::new(Seen::default()),
            only_known: false,
            missed: Cell::new(false),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Take,
    /// Without numbers in [`Access::seen`].
    TakeUnseen,
    Peek,
}

/// The bucket as the decision left it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) now: u64,
    pub(super) arrival: u64,
}

impl Seen {
    pub(super) fn debt(self) -> u64 {
        self.arrival.saturating_sub(self.now)
    }

    #[inline]
    pub(super) fn remaining(self, numbers: &Numbers) -> u32 {
        // At most the burst, which fits.
        (numbers.refill.saturating_sub(self.debt()) / numbers.interval) as u32
    }

    #[inline]
    pub(super) fn admitted(self, numbers: &Numbers) -> Usage {
        let reset = Duration::from_nanos(self.debt());
        Usage::admitted(numbers.burst, self.remaining(numbers), reset)
    }

    pub(super) fn refused(self, numbers: &Numbers, weight: u64) -> Usage {
        let debt = self.debt();
        let wait = debt.saturating_add(weight).saturating_sub(numbers.refill);
        Usage::refused(
            numbers.burst,
            self.remaining(numbers),
            Duration::from_nanos(debt),
            Some(Duration::from_nanos(wait)),
        )
    }
}

// What governor asks of a key. The store looks at `place` alone.
impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Access {}

impl Hash for Access {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.place.hash(state);
    }
}

/// governor's view of the table.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) table: Arc<Table>,
    pub(super) numbers: Numbers,
}

impl StateStore for Buckets {
    type Key = Access;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, access: &Access, step: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        match access.mode {
            Mode::TakeUnseen => self.take_unseen(access, step),
            Mode::Take | Mode::Peek => self.take_or_peek(access, step),
        }
    }
}

impl Buckets {
    /// Takes, and leaves no numbers: half of what [`take_or_peek`](Self::take_or_peek) does.
    #[inline]
    fn take_unseen<T, E>(
        &self,
        access: &Access,
        step: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<T, E> {
        // No bucket that is not there denies.
        let judge = || self.numbers.judge(now(access, &step).unwrap_or(0));
        self.update(access, judge, |arrival| {
            let (value, stepped) = step(arrival.map(Nanos::from))?;
            Ok((value, u64::from(stepped)))
        })
    }

    #[inline]
    fn update<T, E>(
        &self,
        access: &Access,
        judge: impl FnOnce() -> Judge,
        step: impl Fn(Option<u64>) -> Result<(T, u64), E>,
    ) -> Result<T, E> {
        if !access.only_known {
            return self.table.update(access.place, judge, step);
        }
        self.table
            .update_known(access.place, &step)
            .unwrap_or_else(|| {
                access.missed.set(true);
                // What governor would say of a new key; nobody asks.
                step(None).map(|(value, _)| value)
            })
    }

    #[inline]
    fn take_or_peek<T, E>(
        &self,
        access: &Access,
        step: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<T, E> {
        let now = now(access, &step)?;
        let judge = || self.numbers.judge(now);
        let step = |arrival: Option<u64>| {
            let seen = |arrival| access.seen.set(Seen { now, arrival });
            seen(arrival.unwrap_or(now));
            let (value, stepped) = step(arrival.map(Nanos::from))?;
            let stepped = u64::from(stepped);
            if access.mode == Mode::Take {
                seen(stepped);
            }
            Ok((value, stepped))
        };
        let result = if access.mode == Mode::Take {
            self.update(access, judge, step)
        } else {
            step(self.table.get(access.place, judge)).map(|(value, _)| value)
        };
        let Judge { empty, latest, .. } = judge();
        if access.seen.get().arrival > latest {
            // The clock stepped back. Left alone, the key would be locked out for the step.
            self.table.lower(access.place, empty);
            access.seen.set(Seen {
                now,
                arrival: empty,
            });
        }
        result
    }
}

/// governor's clock reading, without one of our own: for a bucket that is not there it answers
/// `now + weight`.
#[inline]
pub(super) fn now<T, E>(
    access: &Access,
    step: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
) -> Result<u64, E> {
    Ok(u64::from(step(None)?.1).saturating_sub(access.weight))
}

/// How far threads' readings of the clock may lie apart before it is taken to have stepped back:
/// the longest that a thread may be held up between its reading and its charge. (A longer one
/// gives a key that was used up at that moment the difference as credit.)
pub(super) const SKEW: u64 = 1_000_000_000;

/// Has governor say yes or no and nothing else; the numbers are in [`Seen`].
#[derive(Debug)]
pub(super) struct Verdict;

impl<P: Reference> RateLimitingMiddleware<P> for Verdict {
    type PositiveOutcome = ();
    type NegativeOutcome = ();

    #[inline]
    fn allow<K>(_: &K, _: impl Into<StateSnapshot>) {}

    #[inline]
    fn disallow<K>(_: &K, _: impl Into<StateSnapshot>, _: P) {}
}
