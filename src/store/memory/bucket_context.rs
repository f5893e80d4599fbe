//! The rule and the time of one decision over buckets.

use std::num::NonZeroU32;
use std::time::Duration;

use super::bucket::{Debt, DebtSource, MAX_CLOCK_SKEW_NANOS};
use super::gcra::Gcra;
use super::phases::{EntryPhase, FIRST_OVERRIDE, Phases, RateParams, RuleNumber};
use super::table::{BucketState, EvictionCriteria};
use crate::decision::Usage;

/// The rule and the time of one decision.
pub(super) struct BucketContext<'a> {
    pub(super) phases: &'a Phases,
    /// governor for this rule, if the rule is the default.
    pub(super) gcra: Option<&'a Gcra>,
    pub(super) rule: RateParams,
    pub(super) rule_number: RuleNumber,
    pub(super) now: u64,
}

impl BucketContext<'_> {
    /// Returns the debt after `cells` more requests, or `None` if they do not fit. `cells` must not
    /// exceed the burst.
    #[inline]
    pub(super) fn admit(&self, debt: u64, cells: NonZeroU32) -> Option<u64> {
        match self.gcra {
            Some(gcra) => gcra.admit(debt, cells),
            None => Gcra::new(self.rule).admit(debt, cells),
        }
    }

    /// Handles a debt above that of an empty bucket. Under a default, the clock stepped back;
    /// without this, the key would be blocked for the length of the step. Under an override, it may
    /// also have replaced one with a larger burst.
    #[cold]
    pub(super) fn clamped_debt(&self) -> Debt {
        let source = match self.rule_number < FIRST_OVERRIDE {
            true => DebtSource::Converted,
            false => DebtSource::OtherRule { is_clamped: true },
        };
        let nanos = self.rule.refill;
        Debt { nanos, source }
    }

    /// The state of a bucket that this rule charged, with a debt as of now.
    #[inline]
    pub(super) fn state(&self, debt: u64) -> BucketState {
        BucketState {
            rule_number: self.rule_number,
            full_at: self.now.saturating_add(debt),
        }
    }

    #[inline]
    fn remaining(&self, debt: u64) -> u32 {
        // At most the burst, which fits into 32 bits.
        (self.rule.refill.saturating_sub(debt) / self.rule.length) as u32
    }

    #[inline]
    pub(super) fn admitted(&self, debt: u64) -> Usage {
        let reset = Duration::from_nanos(debt);
        Usage::admitted(self.rule.limit, self.remaining(debt), reset)
    }

    pub(super) fn rejected(&self, debt: u64, wait: Option<u64>) -> Usage {
        let reset = Duration::from_nanos(debt);
        let wait = wait.map(Duration::from_nanos);
        Usage::rejected(self.rule.limit, self.remaining(debt), reset, wait)
    }
}

impl EvictionCriteria for BucketContext<'_> {
    #[inline]
    fn now(&self) -> u64 {
        self.now
    }

    /// The time under the default. A key with an override is evicted only when its bucket is full,
    /// because the burst of the override is unknown here.
    fn full_at(&self, state: BucketState) -> Option<u64> {
        let Self { phases, now, .. } = *self;
        if state.rule_number >= FIRST_OVERRIDE {
            return (state.full_at <= now).then_some(state.full_at);
        }
        let rule = phases.rule()?;
        let full_at = match phases.phase_of(state.rule_number) {
            EntryPhase::Current => state.full_at,
            EntryPhase::Past(at) => phases.convert_full_at(at, state.full_at),
            EntryPhase::Expired => 0,
            EntryPhase::Newer => return None,
        };
        let empty = now.saturating_add(rule.refill);
        let has_stepped_back = full_at > empty.saturating_add(MAX_CLOCK_SKEW_NANOS);
        (full_at <= empty - rule.length || has_stepped_back).then_some(full_at)
    }
}
