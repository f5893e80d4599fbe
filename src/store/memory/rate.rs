//! governor's decisions over the bounded table, for one quota.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::{RateLimitingMiddleware, StateSnapshot};
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::clock::FromZero;
use super::table::{Judge, Place, Table};
use crate::decision::Usage;
use crate::key::Key;
use crate::quota::Rate;
use crate::store::RateStats;

/// governor over a table of its own.
pub(super) struct RateMeter<C: Clock> {
    numbers: Numbers,
    table: Arc<Table>,
    governor: RateLimiter<Access, Buckets, FromZero<C>, Verdict>,
}

/// A quota in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) burst: u32,
    pub(super) interval: u64,
    pub(super) refill: u64,
}

/// The time until a bucket is full, at the rate of a quota with this interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Debt {
    pub(super) interval: u64,
    pub(super) time: u64,
}

impl Debt {
    /// The time at another rate: as many requests stay spent, but for what is more than an empty
    /// bucket owes.
    pub(super) fn at(self, numbers: &Numbers) -> u64 {
        let time = if self.interval == numbers.interval {
            self.time
        } else {
            let time = u128::from(self.time) * u128::from(numbers.interval);
            u64::try_from(time.div_ceil(u128::from(self.interval.max(1)))).unwrap_or(u64::MAX)
        };
        time.min(numbers.refill)
    }
}

impl Numbers {
    pub(super) fn of(rate: Rate) -> Self {
        Self {
            burst: rate.limit(),
            interval: nanos(rate.interval()),
            refill: nanos(rate.refill()),
        }
    }

    #[inline]
    fn judge(&self, now: u64) -> Judge {
        let empty = now.saturating_add(self.refill);
        Judge {
            now,
            admits: empty - self.interval,
            empty,
            latest: empty.saturating_add(SKEW),
        }
    }
}

impl<C: Clock> RateMeter<C> {
    pub(super) fn new(rate: Rate, max_keys: usize, clock: C) -> Self {
        let interval = rate.interval();
        let burst = NonZeroU32::new(rate.limit()).expect("a rate's burst is above 0");
        let quota = governor::Quota::with_period(interval)
            .expect("a rate's interval is above 0")
            .allow_burst(burst);
        let numbers = Numbers::of(rate);
        let table = Arc::new(Table::new(max_keys));
        let buckets = Buckets {
            table: table.clone(),
            numbers,
        };
        let governor = RateLimiter::new(quota, buckets, FromZero::new(clock));
        governor.clock().start();
        Self {
            numbers,
            table,
            governor,
        }
    }

    #[inline]
    pub(super) fn take_one(&self, key: &Key) -> bool {
        let access = Access {
            place: Place::new(key.place_bits()),
            mode: Mode::TakeUnseen,
            weight: self.numbers.interval,
            seen: Cell::new(Seen::default()),
        };
        self.governor.check_key(&access).is_ok()
    }

    #[inline]
    pub(super) fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage {
        // A request that costs nothing asks what one of cost 1 would find, and takes nothing.
        let (cells, mode) = match NonZeroU32::new(cost) {
            Some(cost) => (cost, mode),
            None => (NonZeroU32::MIN, Mode::Peek),
        };
        if cells.get() > self.numbers.burst {
            return self.refuse_for_good(key);
        }
        let access = Access {
            place: Place::new(key.place_bits()),
            mode,
            weight: self.numbers.interval * u64::from(cells.get()),
            seen: Cell::new(Seen::default()),
        };
        let seen = || access.seen.get();
        match self.governor.check_key_n(&access, cells) {
            Ok(Err(())) if cost > 0 => seen().refused(&self.numbers, access.weight),
            Ok(_) => seen().admitted(&self.numbers),
            // Not reached: the cost is at most the burst.
            Err(_) => Usage::refused(self.numbers.burst, 0, Duration::ZERO, None),
        }
    }

    pub(super) fn refund(&self, key: &Key, cost: u32) {
        let amount = self.numbers.interval.saturating_mul(u64::from(cost));
        let place = Place::new(key.place_bits());
        self.table.give_back(place, amount);
    }

    /// What a key owes until its bucket is full, and the time between two requests; nothing if its
    /// bucket is full.
    pub(super) fn debt(&self, key: &Key) -> Option<Debt> {
        let seen = self.seen(key);
        (seen.debt() > 0).then(|| Debt {
            interval: self.numbers.interval,
            time: seen.debt(),
        })
    }

    pub(super) fn knows(&self, key: &Key) -> bool {
        self.table.has(Place::new(key.place_bits()))
    }

    /// Has a key owe at least so much.
    pub(super) fn owe(&self, key: &Key, debt: Debt) {
        let now = self.seen(key).now;
        let arrival = now.saturating_add(debt.at(&self.numbers));
        let place = Place::new(key.place_bits());
        let judge = || self.numbers.judge(now);
        let _ = self.table.update(place, judge, |current| {
            Ok::<_, ()>(((), arrival.max(current.unwrap_or(0))))
        });
    }

    /// Has a key owe so much.
    pub(super) fn set_debt(&self, key: &Key, debt: Option<Debt>) {
        let place = Place::new(key.place_bits());
        let now = self.seen(key).now;
        match debt {
            Some(debt) => {
                let arrival = now.saturating_add(debt.at(&self.numbers));
                let judge = || self.numbers.judge(now);
                let _ = self
                    .table
                    .update(place, judge, |_| Ok::<_, ()>(((), arrival)));
            }
            None => self.table.lower(place, now),
        }
    }

    /// The bucket as it is, and the time.
    fn seen(&self, key: &Key) -> Seen {
        let access = Access {
            place: Place::new(key.place_bits()),
            mode: Mode::Peek,
            weight: self.numbers.interval,
            seen: Cell::new(Seen::default()),
        };
        let _ = self.governor.check_key(&access);
        access.seen.get()
    }

    pub(super) fn stats(&self) -> RateStats {
        RateStats::new(self.table.len() as u64, self.table.evictions())
    }

    /// Refuses what costs more than a full bucket ever holds. governor would do so as well, but
    /// only after a multiplication that overflows.
    #[cold]
    fn refuse_for_good(&self, key: &Key) -> Usage {
        let rest = self.decide(key, 0, Mode::Peek);
        Usage::refused(rest.limit(), rest.remaining(), rest.reset(), None)
    }
}

/// Of a quota, which keeps durations below 100 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What governor calls a key: whose bucket, what to do with it, and what was found there.
#[derive(Clone, Debug)]
struct Access {
    place: Place,
    mode: Mode,
    /// The request's cost as time at the steady rate.
    weight: u64,
    seen: Cell<Seen>,
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
    fn remaining(self, numbers: &Numbers) -> u32 {
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
struct Buckets {
    table: Arc<Table>,
    numbers: Numbers,
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
        self.table.update(access.place, judge, |arrival| {
            let (value, stepped) = step(arrival.map(Nanos::from))?;
            Ok((value, u64::from(stepped)))
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
            self.table.update(access.place, judge, step)
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
fn now<T, E>(
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
struct Verdict;

impl<P: Reference> RateLimitingMiddleware<P> for Verdict {
    type PositiveOutcome = ();
    type NegativeOutcome = ();

    #[inline]
    fn allow<K>(_: &K, _: impl Into<StateSnapshot>) {}

    #[inline]
    fn disallow<K>(_: &K, _: impl Into<StateSnapshot>, _: P) {}
}
