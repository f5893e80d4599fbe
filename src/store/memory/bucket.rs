//! The buckets of one quota: decisions over the bounded table, under changing rules.

use std::num::NonZeroU32;

use super::bucket_context::BucketContext;
use super::gcra::Gcra;
use super::intervals::{Intervals, UNNUMBERED};
use super::phases::{EntryPhase, FIRST_OVERRIDE, Phases, RateParams, rescaled, rescaled_unclamped};
use super::table::{BucketState, Table, TableKey};
use crate::decision::Usage;
use crate::key::Key;
use crate::rule::Rule;
use crate::store::RateStats;

/// The largest difference between two threads' clock readings that does not count as a clock that
/// stepped back. A thread may be held up for this long between its reading and its charge. After a
/// longer delay, a key that was just used up gets the difference as credit.
pub(super) const MAX_CLOCK_SKEW_NANOS: u64 = 1_000_000_000;

/// The buckets of one quota.
pub(super) struct Buckets {
    table: Table,
    intervals: Intervals,
}

/// The debt of a key under one rule.
#[derive(Clone, Copy)]
pub(super) struct Debt {
    pub(super) nanos: u64,
    pub(super) source: DebtSource,
}

/// How a debt follows from the stored state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DebtSource {
    /// The debt is stored as it is.
    Stored,
    /// The debt differs from the stored one, under every rule in force.
    Converted,
    /// Another rule charged the bucket, and one of the two rules is an override's. A decision can
    /// be delayed, so the current rule of this decision may be the replaced one.
    OtherRule { is_clamped: bool },
}

/// The rules of a decision were replaced before it finished. It changed nothing and must be
/// retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StaleRules;

impl Buckets {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            table: Table::new(max_keys),
            intervals: Intervals::default(),
        }
    }

    /// Returns what a decision needs: the override's rule, else the default's. `None` if the
    /// default is not a rate.
    #[inline(always)]
    pub(super) fn context<'a>(
        &self,
        default: (&'a Phases, &'a Gcra),
        override_rule: Option<&Rule>,
        now: u64,
    ) -> Option<BucketContext<'a>> {
        let (phases, gcra) = default;
        let (rule, rule_number, gcra) = match override_rule {
            None => (phases.rule()?, phases.number(), Some(gcra)),
            Some(rule) => {
                let rule = RateParams::from_rule(rule);
                (rule, self.intervals.number(rule, now), None)
            }
        };
        Some(BucketContext {
            phases,
            gcra,
            rule,
            rule_number,
            now,
        })
    }

    /// Charges 1 if it fits. Returns only whether it did.
    #[inline]
    pub(super) fn take_one(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
    ) -> Result<bool, StaleRules> {
        Ok(self.take(context, key, NonZeroU32::MIN)?.0)
    }

    /// Decides a request. If it fits and `should_charge` is set, charges its cost.
    #[inline]
    pub(super) fn decide(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
        cost: u32,
        should_charge: bool,
    ) -> Result<Usage, StaleRules> {
        // A request of cost 0 reports what a request of cost 1 would find, and charges nothing.
        let cells = NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN);
        let should_charge = should_charge && cost > 0 && cost <= context.rule.limit;
        let (fits, debt) = if should_charge {
            self.take(context, key, cells)?
        } else {
            self.peek(context, key, cells)?
        };
        if fits || cost == 0 {
            return Ok(context.admitted(debt.nanos));
        }
        // A cost above the burst never fits.
        let wait = (cost <= context.rule.limit).then(|| {
            let weight = context.rule.length * u64::from(cost);
            let lacks = debt.nanos.saturating_add(weight);
            lacks.saturating_sub(context.rule.refill)
        });
        let rejected = context.rejected(debt.nanos, wait);
        Ok(match debt.source {
            DebtSource::OtherRule { is_clamped } if is_clamped || !should_charge => {
                rejected.requiring_conversion()
            }
            _ => rejected,
        })
    }

    /// Charges the cells if they fit. Returns whether they did, and the debt afterwards.
    #[inline]
    fn take(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
        cells: NonZeroU32,
    ) -> Result<(bool, Debt), StaleRules> {
        self.table.update(table_key(key), context, |state| {
            let debt = match self.debt(context, state) {
                Ok(debt) => debt,
                Err(stale) => return (Err(stale), None),
            };
            if let Some(nanos) = context.admit(debt.nanos, cells) {
                return (
                    Ok((true, Debt { nanos, ..debt })),
                    Some(context.state(nanos)),
                );
            }
            // A rejection charges nothing but stores a conversion once. It must not store one that
            // is_clamped: that would forgive what another rule charged.
            let should_store = matches!(
                debt.source,
                DebtSource::Converted | DebtSource::OtherRule { is_clamped: false }
            );
            (
                Ok((false, debt)),
                should_store.then(|| context.state(debt.nanos)),
            )
        })
    }

    /// Returns whether the cells fit, and the debt.
    fn peek(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
        cells: NonZeroU32,
    ) -> Result<(bool, Debt), StaleRules> {
        let state = self.table.get(table_key(key), context);
        let debt = self.debt(context, state)?;
        let fits = cells.get() <= context.rule.limit && context.admit(debt.nanos, cells).is_some();
        Ok((fits, debt))
    }

    /// Charges a request that another store admitted, whether it fits or not.
    pub(super) fn charge(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
        cost: u32,
    ) -> Result<(), StaleRules> {
        let amount = context.rule.length.saturating_mul(cost.into());
        self.table.update(table_key(key), context, |state| {
            match self.debt(context, state) {
                Ok(debt) => {
                    let nanos = debt.nanos.saturating_add(amount).min(context.rule.refill);
                    let would_forgive = debt.source == DebtSource::OtherRule { is_clamped: true };
                    (Ok(()), (!would_forgive).then(|| context.state(nanos)))
                }
                Err(stale) => (Err(stale), None),
            }
        })
    }

    /// Refunds a request. With a cost of 0 it only should_store the key's bucket to this rule; call
    /// that in the order in which the key's rules change.
    pub(super) fn refund(
        &self,
        context: &BucketContext<'_>,
        key: &Key,
        cost: u32,
    ) -> Result<(), StaleRules> {
        let step = |stored: BucketState| {
            let debt = self.debt(context, Some(stored))?;
            if cost > 0 && debt.source == (DebtSource::OtherRule { is_clamped: true }) {
                // The refund is in requests of the rule that charged them.
                let (state, from) = self.stored_under(context, stored)?;
                let amount = from.length.saturating_mul(cost.into());
                let full_at = state.full_at.saturating_sub(amount);
                return Ok(Some(BucketState { full_at, ..state }));
            }
            // An override with the same rate and a smaller burst has the same rule_number.
            let clamped = debt.nanos.min(context.rule.refill);
            let is_refund = debt.nanos > 0 && cost > 0;
            let should_store =
                debt.source != DebtSource::Stored || clamped < debt.nanos || is_refund;
            let amount = context.rule.length.saturating_mul(cost.into());
            Ok(should_store.then(|| context.state(clamped.saturating_sub(amount))))
        };
        let refunded = self.table.update_known(table_key(key), |stored| {
            match stored.map(step).transpose() {
                Ok(state) => (Ok(()), state.flatten()),
                Err(stale) => (Err(stale), None),
            }
        });
        refunded.unwrap_or(Ok(()))
    }

    /// The debt of a bucket under this rule.
    #[inline]
    fn debt(
        &self,
        context: &BucketContext<'_>,
        state: Option<BucketState>,
    ) -> Result<Debt, StaleRules> {
        let stored = |nanos| Debt {
            nanos,
            source: DebtSource::Stored,
        };
        let Some(state) = state else {
            return Ok(stored(0));
        };
        if state.rule_number != context.rule_number {
            return self.converted_debt(context, state);
        }
        let debt = state.full_at.saturating_sub(context.now);
        if debt > context.rule.refill.saturating_add(MAX_CLOCK_SKEW_NANOS) {
            return Ok(context.clamped_debt());
        }
        Ok(stored(debt))
    }

    pub(super) fn stats(&self) -> RateStats {
        RateStats::new(self.table.len() as u64, self.table.evictions())
    }

    /// Converts a debt that another rule charged to this rule.
    #[cold]
    fn converted_debt(
        &self,
        context: &BucketContext<'_>,
        state: BucketState,
    ) -> Result<Debt, StaleRules> {
        let (charged, from) = self.stored_under(context, state)?;
        let debt = charged.full_at.saturating_sub(context.now);
        let nanos = rescaled(debt, from, context.rule);
        let source = if state.rule_number.max(context.rule_number) < FIRST_OVERRIDE {
            DebtSource::Converted
        } else {
            let is_clamped = rescaled_unclamped(debt, from.length, context.rule.length) > nanos;
            DebtSource::OtherRule { is_clamped }
        };
        Ok(Debt { nanos, source })
    }

    /// Returns the stored state and the rule that it follows: an override's, or the default in
    /// force.
    #[cold]
    fn stored_under(
        &self,
        context: &BucketContext<'_>,
        state: BucketState,
    ) -> Result<(BucketState, RateParams), StaleRules> {
        if state.rule_number == context.rule_number {
            return Ok((state, context.rule));
        }
        if state.rule_number >= FIRST_OVERRIDE {
            let length = match state.rule_number {
                UNNUMBERED => None,
                rule_number => self.intervals.length(rule_number),
            };
            let length = length.unwrap_or(context.rule.length);
            return Ok((
                state,
                RateParams {
                    length,
                    ..context.rule
                },
            ));
        }
        let from = context.phases.rule().unwrap_or(context.rule);
        let full_at = match context.phases.phase_of(state.rule_number) {
            EntryPhase::Current => state.full_at,
            EntryPhase::Past(at) => context.phases.convert_full_at(at, state.full_at),
            EntryPhase::Expired => 0,
            EntryPhase::Newer => return Err(StaleRules),
        };
        let rule_number = context.phases.number();
        Ok((
            BucketState {
                rule_number,
                full_at,
            },
            from,
        ))
    }
}

fn table_key(key: &Key) -> TableKey {
    TableKey::new(key.hash_words())
}
