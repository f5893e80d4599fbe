//! Decides one request with governor.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::{RateLimitingMiddleware, StateSnapshot};
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::phases::RateParams;

/// The generic cell rate algorithm for one rule, as governor implements it.
///
/// governor sees the *debt* of a bucket: the time until the bucket is full. Its clock always reads
/// zero. A `Gcra` is therefore two numbers, and different rules can charge one bucket in turn.
pub(super) struct Gcra(RateLimiter<DebtCell, DebtInKey, ZeroClock, OutcomeOnly>);

impl Gcra {
    #[inline]
    pub(super) fn new(rule: RateParams) -> Self {
        let burst = NonZeroU32::new(rule.limit).unwrap_or(NonZeroU32::MIN);
        let interval = Duration::from_nanos(rule.length.max(1));
        let quota = governor::Quota::with_period(interval).expect("an interval above 0");
        Self(RateLimiter::new(
            quota.allow_burst(burst),
            DebtInKey,
            ZeroClock,
        ))
    }

    /// Returns the debt after `cells` more requests, or `None` if they do not fit. `cells` must not
    /// exceed the burst.
    #[inline]
    pub(super) fn admit(&self, debt: u64, cells: NonZeroU32) -> Option<u64> {
        let debt = DebtCell(Cell::new(debt));
        let admits = match cells {
            NonZeroU32::MIN => self.0.check_key(&debt).is_ok(),
            cells => self
                .0
                .check_key_n(&debt, cells)
                .is_ok_and(|fits| fits.is_ok()),
        };
        admits.then(|| debt.0.get())
    }
}

/// governor's key: the debt itself.
#[derive(Clone)]
struct DebtCell(Cell<u64>);

// governor requires these traits of a key. `DebtInKey` stores no keys and calls none of them.
impl PartialEq for DebtCell {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for DebtCell {}

impl Hash for DebtCell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

/// governor's state store: it reads and writes the debt in the key.
struct DebtInKey;

impl StateStore for DebtInKey {
    type Key = DebtCell;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, debt: &DebtCell, step: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (value, after) = step(Some(Nanos::from(debt.0.get())))?;
        debt.0.set(u64::from(after));
        Ok(value)
    }
}

/// A clock that always reads zero: debts are relative to now.
#[derive(Clone, Copy, Debug)]
struct ZeroClock;

impl Clock for ZeroClock {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::from(0)
    }
}

/// Reduces governor's answer to admitted or rejected.
#[derive(Debug)]
struct OutcomeOnly;

impl<P: Reference> RateLimitingMiddleware<P> for OutcomeOnly {
    type PositiveOutcome = ();
    type NegativeOutcome = ();

    #[inline]
    fn allow<K>(_: &K, _: impl Into<StateSnapshot>) {}

    #[inline]
    fn disallow<K>(_: &K, _: impl Into<StateSnapshot>, _: P) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_grows_by_an_interval_for_each_request_up_to_the_burst() {
        let rule = RateParams {
            length: 7,
            limit: 3,
            refill: 21,
        };
        let gcra = Gcra::new(rule);
        let admit = |debt, cells| gcra.admit(debt, NonZeroU32::new(cells).unwrap());
        assert_eq!(admit(0, 1), Some(7));
        assert_eq!(admit(14, 1), Some(21));
        assert_eq!(admit(15, 1), None);
        assert_eq!(admit(0, 3), Some(21));
        assert_eq!(admit(1, 3), None);
        assert_eq!(admit(u64::MAX / 2, 1), None);
    }
}
