//! governor's decisions over the bounded table, for one quota.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::Clock;

use super::clock::FromZero;
use super::governed::{Access, Buckets, Mode, SKEW, Seen, Verdict};
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
    /// What is left of it after a time.
    pub(super) fn after(self, passed: u64) -> Option<Self> {
        let time = self.time.saturating_sub(passed);
        (time > 0).then_some(Self { time, ..self })
    }

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
    pub(super) fn judge(&self, now: u64) -> Judge {
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
        let access = Access::new(key, Mode::TakeUnseen, self.numbers.interval);
        self.governor.check_key(&access).is_ok()
    }

    /// As [`take_one`](Self::take_one) for a key that has a bucket; nothing for one that has none.
    #[inline]
    pub(super) fn take_one_of_known(&self, key: &Key) -> Option<bool> {
        let mut access = Access::new(key, Mode::TakeUnseen, self.numbers.interval);
        access.only_known = true;
        let taken = self.governor.check_key(&access).is_ok();
        (!access.missed.get()).then_some(taken)
    }

    /// As [`decide`](Self::decide) to take, likewise.
    #[inline]
    pub(super) fn take_of_known(&self, key: &Key, cost: u32) -> Option<Usage> {
        let cells = NonZeroU32::new(cost).filter(|cells| cells.get() <= self.numbers.burst)?;
        let weight = self.numbers.interval * u64::from(cost);
        let mut access = Access::new(key, Mode::Take, weight);
        access.only_known = true;
        let decided = self.governor.check_key_n(&access, cells).ok()?;
        let seen = access.seen.get();
        (!access.missed.get()).then(|| match decided {
            Ok(()) => seen.admitted(&self.numbers),
            Err(()) => seen.refused(&self.numbers, weight),
        })
    }

    /// Forgets a key that has quotas of its own from now on, and returns what it owed.
    pub(super) fn remove(&self, key: &Key) -> Option<Debt> {
        let arrival = self.table.remove(Place::new(key.place_bits()))?;
        let time = arrival.saturating_sub(self.seen(key).now);
        (time > 0).then_some(Debt {
            interval: self.numbers.interval,
            time,
        })
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, key: &Key, cost: u32) {
        let now = self.seen(key).now;
        let weight = self.numbers.interval.saturating_mul(u64::from(cost));
        let empty = now.saturating_add(self.numbers.refill);
        let place = Place::new(key.place_bits());
        let judge = || self.numbers.judge(now);
        let _ = self.table.update(place, judge, |current| {
            let arrival = current.unwrap_or(now).max(now).saturating_add(weight);
            Ok::<_, ()>(((), arrival.min(empty)))
        });
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
        let access = Access::new(key, mode, self.numbers.interval * u64::from(cells.get()));
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

    /// What a key owed at a time so long ago until its bucket would have been full, if it owed
    /// anything then.
    pub(super) fn debt(&self, key: &Key, ago: u64) -> Option<Debt> {
        let Seen { now, arrival } = self.seen(key);
        let time = arrival.saturating_add(ago).saturating_sub(now);
        (time > 0).then_some(Debt {
            interval: self.numbers.interval,
            time,
        })
    }

    /// What an empty bucket owes.
    pub(super) fn empty(&self) -> Debt {
        Debt {
            interval: self.numbers.interval,
            time: self.numbers.refill,
        }
    }

    /// The same requests as time at this quota's rate.
    pub(super) fn converted(&self, debt: Debt) -> Debt {
        Debt {
            interval: self.numbers.interval,
            time: debt.at(&self.numbers),
        }
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

    /// Has a key owe so much; nothing as well is known of it then.
    pub(super) fn set_debt(&self, key: &Key, debt: Option<Debt>) {
        let place = Place::new(key.place_bits());
        let now = self.seen(key).now;
        let time = debt.map_or(0, |debt| debt.at(&self.numbers));
        let judge = || self.numbers.judge(now);
        let arrival = now.saturating_add(time);
        let known = self
            .table
            .update_known(place, |_| Ok::<_, ()>(((), arrival)));
        if known.is_none() {
            // Keys without room share a bucket, which is not filled for one of them.
            let _ = self.table.update(place, judge, |current| {
                Ok::<_, ()>(((), arrival.max(current.unwrap_or(0))))
            });
        }
    }

    /// The bucket as it is, and the time.
    fn seen(&self, key: &Key) -> Seen {
        let access = Access::new(key, Mode::Peek, self.numbers.interval);
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
