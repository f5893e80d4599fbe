//! governor as the engine of one decision.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::{RateLimitingMiddleware, StateSnapshot};
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::phases::Numbers;

/// The generic cell rate algorithm for one rule, as governor has it.
///
/// governor decides about the *debt* of a bucket, the time until it is full: its clock stands still at zero. So it is no
/// more than two numbers, and a bucket can be charged by one rule after another.
pub(super) struct Gcra(RateLimiter<Debt, Debts, Still, Verdict>);

impl Gcra {
    #[inline]
    pub(super) fn new(rule: Numbers) -> Self {
        let burst = NonZeroU32::new(rule.limit).unwrap_or(NonZeroU32::MIN);
        let interval = Duration::from_nanos(rule.length.max(1));
        let quota = governor::Quota::with_period(interval).expect("an interval above 0");
        Self(RateLimiter::new(quota.allow_burst(burst), Debts, Still))
    }

    /// The debt after so many requests, if they fit. They are no more than the burst.
    #[inline]
    pub(super) fn admit(&self, debt: u64, cells: NonZeroU32) -> Option<u64> {
        let debt = Debt(Cell::new(debt));
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

/// What governor calls a key: the debt itself.
#[derive(Clone)]
struct Debt(Cell<u64>);

// governor asks for these of a key. None is used, as `Debts` keeps no keys.
impl PartialEq for Debt {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Debt {}

impl Hash for Debt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

/// Where governor finds the debt: in its key.
struct Debts;

impl StateStore for Debts {
    type Key = Debt;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, debt: &Debt, step: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (value, after) = step(Some(Nanos::from(debt.0.get())))?;
        debt.0.set(u64::from(after));
        Ok(value)
    }
}

/// A clock at zero: debts are relative to now.
#[derive(Clone, Copy, Debug)]
struct Still;

impl Clock for Still {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::from(0)
    }
}

/// Has governor say yes or no and nothing else.
#[derive(Debug)]
struct Verdict;

impl<P: Reference> RateLimitingMiddleware<P> for Verdict {
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
        let rule = Numbers {
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
