//! The quotas that one key has of its own, and what it has used of them.
//!
//! What is used outlives a change of the quotas: a bucket's state names the interval that it is in, and a
//! window's the length of its sub-windows, so the next decision takes it over, whichever thread makes it.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;

use super::buckets::Meter;
use super::governed::{Mode, SKEW, Seen};
use super::rate::{Debt, Numbers};
use super::sliding::{self, Window};
use crate::decision::Usage;
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;
use crate::sync::{AtomicU128, Mutex, Ordering, lock};

/// One key's quotas of one policy, with what is used of each.
pub(super) struct Own {
    /// Alone, as a decision of a limiter with one policy has it.
    policies: Arc<Vec<Policy>>,
    quotas: Box<[OwnQuota]>,
}

/// One of them.
pub(super) struct OwnQuota {
    rule: Rule,
    used: Arc<Used>,
}

enum Rule {
    DenyAll,
    Bucket(Numbers),
    Window(sliding::Numbers),
}

/// What is used of a quota.
pub(super) enum Used {
    Bucket(Bucket),
    Window(Mutex<Parted>),
}

/// What was used at some time.
pub(super) enum Copied {
    Debt(Option<Debt>),
    Counted(Window),
}

/// The interval in the high half and the arrival time in the low one, see [`Debt`].
pub(super) struct Bucket(AtomicU128);

/// A window and the length of its sub-windows.
#[derive(Default)]
pub(super) struct Parted {
    length: u64,
    window: Window,
}

impl Own {
    /// The quotas of `policy`, of which so much is used.
    pub(super) fn new(policy: Policy, used: impl IntoIterator<Item = Arc<Used>>) -> Self {
        let quotas = policy.all_quotas().map(NamedQuota::quota);
        Self {
            quotas: quotas
                .zip(used)
                .map(|(quota, used)| OwnQuota {
                    rule: Rule::of(quota),
                    used,
                })
                .collect(),
            policies: Arc::new(vec![policy]),
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policies[0]
    }

    pub(super) fn alone(&self) -> &Arc<Vec<Policy>> {
        &self.policies
    }

    pub(super) fn quotas(&self) -> &[OwnQuota] {
        &self.quotas
    }
}

impl Rule {
    fn of(quota: Quota) -> Self {
        match quota.rate() {
            Some(rate) if rate.is_sliding() => Self::Window(sliding::Numbers::of(rate)),
            Some(rate) => Self::Bucket(Numbers::of(rate)),
            None => Self::DenyAll,
        }
    }
}

impl OwnQuota {
    pub(super) fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// What is decided at a time, which is read under the lock of what has one.
    #[inline]
    pub(super) fn decide(&self, time: &impl Fn() -> u64, cost: u32, mode: Mode) -> Usage {
        match (&self.rule, &*self.used) {
            (Rule::Bucket(numbers), Used::Bucket(bucket)) => {
                bucket.decide(numbers, time(), cost, mode)
            }
            (Rule::Window(numbers), Used::Window(parted)) => {
                let mut parted = lock(parted);
                let now = time();
                let window = parted.at(*numbers, now);
                window.decide(*numbers, now, cost, mode != Mode::Peek)
            }
            _ if cost == 0 => Usage::admitted(0, 0, Duration::ZERO),
            _ => Usage::refused(0, 0, Duration::ZERO, None),
        }
    }

    /// Has a key unused of everybody's quota, and charges what was found there beyond what was copied.
    pub(super) fn take_from<C: Clock>(
        &self,
        meter: &Meter<C>,
        key: &Key,
        copied: Option<&Copied>,
        time: &impl Fn() -> u64,
    ) {
        match (meter, copied) {
            (Meter::Rate(meter), Some(Copied::Debt(copied))) => {
                self.add(*copied, meter.remove(key), time());
            }
            (Meter::Rate(meter), _) => self.add(None, meter.remove(key), time()),
            (Meter::Sliding(meter), copied) => {
                let copied = match copied {
                    Some(Copied::Counted(window)) => Some(window),
                    _ => None,
                };
                let more = meter.remove(*key, copied);
                if more > 0 {
                    self.charge(time, more);
                }
            }
            (Meter::DenyAll, _) => {}
        }
    }

    fn add(&self, copied: Option<Debt>, found: Option<Debt>, now: u64) {
        let (Rule::Bucket(numbers), Used::Bucket(bucket)) = (&self.rule, &*self.used) else {
            return;
        };
        let time = |debt: Option<Debt>| debt.map_or(0, |debt| debt.time);
        let more = Debt {
            interval: found.map_or(0, |found| found.interval),
            time: time(found).saturating_sub(time(copied)),
        };
        if more.time > 0 {
            let more = more.at(numbers);
            bucket.change(numbers, now, |debt| {
                debt.saturating_add(more).min(numbers.refill)
            });
        }
    }

    /// After a change: what is more than an empty bucket owes is forgiven.
    pub(super) fn settle(&self, now: u64) {
        if let (Rule::Bucket(numbers), Used::Bucket(bucket)) = (&self.rule, &*self.used) {
            bucket.change(numbers, now, |debt| debt);
        }
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, time: &impl Fn() -> u64, cost: u32) {
        let charged =
            |debt: u64, amount, numbers: &Numbers| debt.saturating_add(amount).min(numbers.refill);
        self.change(time, cost, charged, Window::charge);
    }

    pub(super) fn refund(&self, time: &impl Fn() -> u64, cost: u32) {
        let given_back = |debt: u64, amount, _: &Numbers| debt.saturating_sub(amount);
        self.change(time, cost, given_back, Window::give_back);
    }

    fn change(
        &self,
        time: &impl Fn() -> u64,
        cost: u32,
        debt: impl Fn(u64, u64, &Numbers) -> u64,
        counts: impl FnOnce(&mut Window, u32),
    ) {
        match (&self.rule, &*self.used) {
            (Rule::Bucket(numbers), Used::Bucket(bucket)) => {
                let amount = numbers.interval.saturating_mul(u64::from(cost));
                bucket.change(numbers, time(), |owed| debt(owed, amount, numbers));
            }
            (Rule::Window(numbers), Used::Window(parted)) => {
                let mut parted = lock(parted);
                let now = time();
                let window = parted.at(*numbers, now);
                window.advance(*numbers, now);
                counts(window, cost);
            }
            _ => {}
        }
    }
}

impl Used {
    /// What a key has used of everybody's quota, for its own.
    pub(super) fn carried_from<C: Clock>(
        meter: &Meter<C>,
        key: &Key,
        own: Quota,
        now: u64,
    ) -> Self {
        match meter {
            Meter::Rate(meter) => Self::bucket(meter.debt(key, 0), now),
            Meter::Sliding(meter) => Self::window(meter.counted(*key)),
            Meter::DenyAll if own.is_sliding() => Self::window(None),
            Meter::DenyAll => Self::bucket(None, now),
        }
    }

    /// Has everybody's quota count what a key has used of its own, in place of what it used before it
    /// had that.
    pub(super) fn carry_to<C: Clock>(&self, meter: &Meter<C>, key: &Key, now: u64) {
        match (self, meter) {
            (Self::Bucket(bucket), Meter::Rate(meter)) => {
                meter.set_debt(key, bucket.debt(now));
            }
            (Self::Window(parted), Meter::Sliding(meter)) => {
                let parted = lock(parted);
                if parted.length > 0 {
                    meter.put(*key, parted.length, &parted.window, false);
                }
            }
            _ => {}
        }
    }

    pub(super) fn bucket(debt: Option<Debt>, now: u64) -> Self {
        let word = debt.map(|debt| pack(debt.interval, now.saturating_add(debt.time)));
        Self::Bucket(Bucket(AtomicU128::new(word.unwrap_or_default())))
    }

    pub(super) fn window(counted: Option<(u64, Window)>) -> Self {
        let parted = counted.map(|(length, window)| Parted { length, window });
        Self::Window(Mutex::new(parted.unwrap_or_default()))
    }

    /// What is used now.
    pub(super) fn copied(&self, now: u64) -> Copied {
        match self {
            Self::Bucket(bucket) => Copied::Debt(bucket.debt(now)),
            Self::Window(parted) => Copied::Counted(lock(parted).window.clone()),
        }
    }

    /// Whether this is how a quota is counted; one that denies everything counts nothing.
    pub(super) fn suits(&self, quota: Quota) -> bool {
        let is_window = matches!(self, Self::Window(_));
        quota.denies_all() || quota.is_sliding() == is_window
    }
}

impl Parted {
    /// The window, in sub-windows of the quota's length.
    fn at(&mut self, numbers: sliding::Numbers, now: u64) -> &mut Window {
        if self.length != numbers.part {
            if self.length > 0 {
                self.window = self.window.parted(self.length, numbers, now);
            }
            self.length = numbers.part;
        }
        &mut self.window
    }
}

impl Bucket {
    fn debt(&self, now: u64) -> Option<Debt> {
        let (interval, arrival) = unpack(self.0.load(Ordering::Acquire));
        let time = arrival.saturating_sub(now);
        (time > 0).then_some(Debt { interval, time })
    }

    /// As governor decides: the virtual scheduling of the generic cell rate algorithm.
    #[inline]
    fn decide(&self, numbers: &Numbers, now: u64, cost: u32, mode: Mode) -> Usage {
        let cells = cost.max(1);
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let (interval, arrival) = unpack(word);
            let ahead = Debt {
                interval,
                time: arrival.saturating_sub(now),
            };
            let debt = ahead.at(numbers);
            let seen = |debt: u64| Seen {
                now,
                arrival: now.saturating_add(debt),
            };
            let changed = ahead.time > 0 && interval != numbers.interval;
            if changed || ahead.time > numbers.refill.saturating_add(SKEW) {
                // The quota was changed, or the clock stepped back. Left alone, what is beyond an
                // empty bucket would lock the key out for that time.
                if self.replace(&mut word, pack(numbers.interval, now.saturating_add(debt))) {
                    word = self.0.load(Ordering::Acquire);
                }
                continue;
            }
            if cells > numbers.burst {
                let rest = seen(debt).admitted(numbers);
                return Usage::refused(numbers.burst, rest.remaining(), rest.reset(), None);
            }
            let weight = numbers.interval * u64::from(cells);
            if cost == 0 {
                return seen(debt).admitted(numbers);
            }
            if debt + weight > numbers.refill {
                return seen(debt).refused(numbers, weight);
            }
            if mode == Mode::Peek {
                return seen(debt).admitted(numbers);
            }
            let taken = debt + weight;
            if self.replace(&mut word, pack(numbers.interval, now.saturating_add(taken))) {
                return seen(taken).admitted(numbers);
            }
        }
    }

    fn change(&self, numbers: &Numbers, now: u64, change: impl Fn(u64) -> u64) {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let (interval, arrival) = unpack(word);
            let time = arrival.saturating_sub(now);
            let debt = change(Debt { interval, time }.at(numbers));
            if self.replace(&mut word, pack(numbers.interval, now.saturating_add(debt))) {
                return;
            }
        }
    }

    /// Replaces what was read; if another came first, reads what that one left.
    fn replace(&self, read: &mut u128, word: u128) -> bool {
        let replaced = self
            .0
            .compare_exchange(*read, word, Ordering::AcqRel, Ordering::Acquire);
        if let Err(current) = replaced {
            *read = current;
        }
        replaced.is_ok()
    }
}

fn pack(interval: u64, arrival: u64) -> u128 {
    u128::from(interval) << 64 | u128::from(arrival)
}

fn unpack(word: u128) -> (u64, u64) {
    ((word >> 64) as u64, word as u64)
}
