//! The buckets of one quota: decisions over the bounded table, by one rule after another.

use std::num::NonZeroU32;
use std::time::Duration;

use super::gcra::Gcra;
use super::intervals::{Intervals, UNNUMBERED};
use super::phases::{FIRST_OVERRIDE, Number, Numbers, Origin, Phases, rescaled, rescaled_length};
use super::table::{Judge, Place, State, Table};
use crate::decision::Usage;
use crate::key::Key;
use crate::rule::Rule;
use crate::store::RateStats;

/// How far threads' readings of the clock may lie apart before it is taken to have stepped back:
/// the longest that a thread may be held up between its reading and its charge. (A longer one
/// gives a key that was used up at that moment the difference as credit.)
const SKEW: u64 = 1_000_000_000;

/// The buckets of one quota.
pub(super) struct Buckets {
    table: Table,
    intervals: Intervals,
}

/// The rule of one decision, and the time.
pub(super) struct By<'a> {
    phases: &'a Phases,
    /// governor for this rule, if it is the default.
    gcra: Option<&'a Gcra>,
    rule: Numbers,
    number: Number,
    now: u64,
}

/// What a key lacks by a rule.
#[derive(Clone, Copy)]
struct Debt {
    nanos: u64,
    found: Found,
}

/// How a debt was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// As it is stored.
    Stored,
    /// It is another one than what is stored, whoever looks.
    Changed,
    /// It was charged by another rule, and one of the two is an override's. A decision is held up now and then, so this
    /// may be the rule that was replaced.
    Foreign { clamps: bool },
}

/// The rules that a decision was made by were replaced before it was done. It changed nothing and is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stale;

impl Buckets {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            table: Table::new(max_keys),
            intervals: Intervals::default(),
        }
    }

    /// What a decision is made by: an override, else the default. `None`: the default is no rate.
    #[inline(always)]
    pub(super) fn by<'a>(
        &self,
        default: (&'a Phases, &'a Gcra),
        own: Option<&Rule>,
        now: u64,
    ) -> Option<By<'a>> {
        let (phases, gcra) = default;
        let (rule, number, gcra) = match own {
            None => (phases.rule()?, phases.number(), Some(gcra)),
            Some(rule) => {
                let rule = Numbers::of(rule);
                (rule, self.intervals.number(rule, now), None)
            }
        };
        Some(By {
            phases,
            gcra,
            rule,
            number,
            now,
        })
    }

    /// Takes 1 if it fits, and returns no more than whether it did.
    #[inline]
    pub(super) fn take_one(&self, by: &By<'_>, key: &Key) -> Result<bool, Stale> {
        Ok(self.take(by, key, NonZeroU32::MIN)?.0)
    }

    /// Decides about a request, and takes its cost if it fits and `takes`.
    #[inline]
    pub(super) fn decide(
        &self,
        by: &By<'_>,
        key: &Key,
        cost: u32,
        takes: bool,
    ) -> Result<Usage, Stale> {
        // A request that costs nothing asks what one of cost 1 would find, and takes nothing.
        let cells = NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN);
        let takes = takes && cost > 0 && cost <= by.rule.limit;
        let (fits, debt) = if takes {
            self.take(by, key, cells)?
        } else {
            self.peek(by, key, cells)?
        };
        if fits || cost == 0 {
            return Ok(by.admitted(debt.nanos));
        }
        // More than a full bucket holds never fits.
        let wait = (cost <= by.rule.limit).then(|| {
            let weight = by.rule.length * u64::from(cost);
            let lacks = debt.nanos.saturating_add(weight);
            lacks.saturating_sub(by.rule.refill)
        });
        let rejected = by.rejected(debt.nanos, wait);
        Ok(match debt.found {
            Found::Foreign { clamps } if clamps || !takes => rejected.requiring_conversion(),
            _ => rejected,
        })
    }

    /// Takes so much if it fits. Returns whether it did, and the debt after that.
    #[inline]
    fn take(&self, by: &By<'_>, key: &Key, cells: NonZeroU32) -> Result<(bool, Debt), Stale> {
        self.table.update(place(key), by, |state| {
            let debt = match self.debt(by, state) {
                Ok(debt) => debt,
                Err(stale) => return (Err(stale), None),
            };
            if let Some(nanos) = by.admit(debt.nanos, cells) {
                return (Ok((true, Debt { nanos, ..debt })), Some(by.state(nanos)));
            }
            // A rejection charges nothing, but a conversion is made once. What it would forgive is not its to forgive.
            let converts = matches!(
                debt.found,
                Found::Changed | Found::Foreign { clamps: false }
            );
            (Ok((false, debt)), converts.then(|| by.state(debt.nanos)))
        })
    }

    /// Returns whether so much fits, and the debt.
    fn peek(&self, by: &By<'_>, key: &Key, cells: NonZeroU32) -> Result<(bool, Debt), Stale> {
        let state = self.table.get(place(key), by);
        let debt = self.debt(by, state)?;
        let fits = cells.get() <= by.rule.limit && by.admit(debt.nanos, cells).is_some();
        Ok((fits, debt))
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, by: &By<'_>, key: &Key, cost: u32) -> Result<(), Stale> {
        let amount = by.rule.length.saturating_mul(cost.into());
        self.table
            .update(place(key), by, |state| match self.debt(by, state) {
                Ok(debt) => {
                    let nanos = debt.nanos.saturating_add(amount).min(by.rule.refill);
                    let forgives = debt.found == Found::Foreign { clamps: true };
                    (Ok(()), (!forgives).then(|| by.state(nanos)))
                }
                Err(stale) => (Err(stale), None),
            })
    }

    /// Gives back what a request took. With a cost of 0 the key's bucket is by this rule from now on; that is to be asked
    /// for in the order in which the key's rules change.
    pub(super) fn refund(&self, by: &By<'_>, key: &Key, cost: u32) -> Result<(), Stale> {
        let step = |stored: State| {
            let debt = self.debt(by, Some(stored))?;
            if cost > 0 && debt.found == (Found::Foreign { clamps: true }) {
                // In requests of the rule that it was charged by.
                let (state, from) = self.charged(by, stored)?;
                let amount = from.length.saturating_mul(cost.into());
                let full_at = state.full_at.saturating_sub(amount);
                return Ok(Some(State { full_at, ..state }));
            }
            // An override of the same rate and a smaller burst has the same number.
            let clamped = debt.nanos.min(by.rule.refill);
            let takes_off = debt.nanos > 0 && cost > 0;
            let changes = debt.found != Found::Stored || clamped < debt.nanos || takes_off;
            let amount = by.rule.length.saturating_mul(cost.into());
            Ok(changes.then(|| by.state(clamped.saturating_sub(amount))))
        };
        let refunded =
            self.table
                .update_known(place(key), |stored| match stored.map(step).transpose() {
                    Ok(state) => (Ok(()), state.flatten()),
                    Err(stale) => (Err(stale), None),
                });
        refunded.unwrap_or(Ok(()))
    }

    /// The debt of a bucket by a rule.
    #[inline]
    fn debt(&self, by: &By<'_>, state: Option<State>) -> Result<Debt, Stale> {
        let stored = |nanos| Debt {
            nanos,
            found: Found::Stored,
        };
        let Some(state) = state else {
            return Ok(stored(0));
        };
        if state.number != by.number {
            return self.converted(by, state);
        }
        let debt = state.full_at.saturating_sub(by.now);
        if debt > by.rule.refill.saturating_add(SKEW) {
            return Ok(by.too_far());
        }
        Ok(stored(debt))
    }

    pub(super) fn stats(&self) -> RateStats {
        RateStats::new(self.table.len() as u64, self.table.evictions())
    }

    /// What is left of a debt that was charged by another rule, by this one.
    #[cold]
    fn converted(&self, by: &By<'_>, state: State) -> Result<Debt, Stale> {
        let (charged, from) = self.charged(by, state)?;
        let debt = charged.full_at.saturating_sub(by.now);
        let nanos = rescaled(debt, from, by.rule);
        let found = if state.number.max(by.number) < FIRST_OVERRIDE {
            Found::Changed
        } else {
            let clamps = rescaled_length(debt, from.length, by.rule.length) > nanos;
            Found::Foreign { clamps }
        };
        Ok(Debt { nanos, found })
    }

    /// What is stored of a key, and the rule that it is by: one of an override, or the default as it is now.
    #[cold]
    fn charged(&self, by: &By<'_>, state: State) -> Result<(State, Numbers), Stale> {
        if state.number == by.number {
            return Ok((state, by.rule));
        }
        if state.number >= FIRST_OVERRIDE {
            let length = match state.number {
                UNNUMBERED => None,
                number => self.intervals.length(number),
            };
            let length = length.unwrap_or(by.rule.length);
            return Ok((state, Numbers { length, ..by.rule }));
        }
        let from = by.phases.rule().unwrap_or(by.rule);
        let full_at = match by.phases.origin(state.number) {
            Origin::Current => state.full_at,
            Origin::Past(at) => by.phases.carried(at, state.full_at),
            Origin::Gone => 0,
            Origin::Newer => return Err(Stale),
        };
        let number = by.phases.number();
        Ok((State { number, full_at }, from))
    }
}

fn place(key: &Key) -> Place {
    Place::new(key.hash_words())
}

impl By<'_> {
    /// The debt after so many requests, if they fit. They are no more than the burst.
    #[inline]
    fn admit(&self, debt: u64, cells: NonZeroU32) -> Option<u64> {
        match self.gcra {
            Some(gcra) => gcra.admit(debt, cells),
            None => Gcra::new(self.rule).admit(debt, cells),
        }
    }

    /// A debt above that of an empty bucket. Of the default the clock stepped back: left alone, the key would be locked
    /// out for the step. An override may also have replaced one of a larger burst.
    #[cold]
    fn too_far(&self) -> Debt {
        let found = match self.number < FIRST_OVERRIDE {
            true => Found::Changed,
            false => Found::Foreign { clamps: true },
        };
        let nanos = self.rule.refill;
        Debt { nanos, found }
    }

    /// A bucket that is charged by this rule, with a debt as of now.
    #[inline]
    fn state(&self, debt: u64) -> State {
        State {
            number: self.number,
            full_at: self.now.saturating_add(debt),
        }
    }

    #[inline]
    fn remaining(&self, debt: u64) -> u32 {
        // At most the burst, which fits.
        (self.rule.refill.saturating_sub(debt) / self.rule.length) as u32
    }

    #[inline]
    fn admitted(&self, debt: u64) -> Usage {
        let reset = Duration::from_nanos(debt);
        Usage::admitted(self.rule.limit, self.remaining(debt), reset)
    }

    fn rejected(&self, debt: u64, wait: Option<u64>) -> Usage {
        let reset = Duration::from_nanos(debt);
        let wait = wait.map(Duration::from_nanos);
        Usage::rejected(self.rule.limit, self.remaining(debt), reset, wait)
    }
}

impl Judge for By<'_> {
    #[inline]
    fn now(&self) -> u64 {
        self.now
    }

    /// By the default. A key with an override is evicted only when its bucket is full, as the burst of the override is not
    /// known here.
    fn full_at(&self, state: State) -> Option<u64> {
        let Self { phases, now, .. } = *self;
        if state.number >= FIRST_OVERRIDE {
            return (state.full_at <= now).then_some(state.full_at);
        }
        let rule = phases.rule()?;
        let full_at = match phases.origin(state.number) {
            Origin::Current => state.full_at,
            Origin::Past(at) => phases.carried(at, state.full_at),
            Origin::Gone => 0,
            Origin::Newer => return None,
        };
        let empty = now.saturating_add(rule.refill);
        let stepped_back = full_at > empty.saturating_add(SKEW);
        (full_at <= empty - rule.length || stepped_back).then_some(full_at)
    }
}
