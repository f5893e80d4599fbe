//! The buckets of one policy or tier, and the default rules in force.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Buckets, StaleRules};
use super::clock::MonotonicClock;
use super::gcra::Gcra;
use super::phases::{Phases, RateParams};
use super::sliding::{WindowContext, Windows};
use crate::decision::Usage;
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;
use crate::rule::{Rule, RuleKind};
use crate::store::{Charge, RateStats};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use arc_swap::{ArcSwap, Guard};

/// The buckets of one policy, with one table for each quota.
///
/// Until the first change of the defaults, decisions read them without a lookup.
pub(super) struct BucketSet {
    tables: Box<[QuotaTable]>,
    initial: Arc<DefaultRules>,
    has_changed: AtomicBool,
    current: ArcSwap<DefaultRules>,
    /// Locked while the defaults change.
    change_lock: Mutex<()>,
}

/// The table that counts one quota.
#[expect(
    clippy::large_enum_variant,
    reason = "the larger one is the usual, and a box would be one more load of a decision"
)]
enum QuotaTable {
    Buckets(Buckets),
    Windows(Windows),
}

/// The default rules of a set, one for each quota.
pub(super) struct DefaultRules(Box<[DefaultRule]>);

/// The default rule of one quota.
struct DefaultRule {
    rule: Rule,
    phases: Phases,
    /// governor for the last phase.
    gcra: Gcra,
}

/// The rules in force.
pub(super) enum CurrentRules<'a> {
    Initial(&'a Arc<DefaultRules>),
    Changed(Guard<Arc<DefaultRules>>),
}

impl Deref for CurrentRules<'_> {
    type Target = DefaultRules;

    #[inline]
    fn deref(&self) -> &DefaultRules {
        match self {
            Self::Initial(initial) => initial,
            Self::Changed(changed) => changed,
        }
    }
}

impl BucketSet {
    pub(super) fn new(policy: &Policy, max_keys: usize) -> Self {
        let quotas = || policy.quotas().iter().map(NamedQuota::quota);
        let table = |quota: Quota| match quota.is_sliding() {
            true => QuotaTable::Windows(Windows::new(max_keys)),
            false => QuotaTable::Buckets(Buckets::new(max_keys)),
        };
        let initial = Arc::new(DefaultRules(quotas().map(DefaultRule::new).collect()));
        Self {
            tables: quotas().map(table).collect(),
            current: ArcSwap::new(initial.clone()),
            initial,
            has_changed: AtomicBool::new(false),
            change_lock: Mutex::new(()),
        }
    }

    #[inline]
    pub(super) fn rules(&self) -> CurrentRules<'_> {
        if self.has_changed.load(Ordering::Acquire) {
            CurrentRules::Changed(self.current.load())
        } else {
            CurrentRules::Initial(&self.initial)
        }
    }

    /// Sets the defaults from `now` on. Returns `false` and changes nothing unless there is one
    /// quota for each table, with its algorithm.
    pub(super) fn set_quotas(&self, quotas: &[Quota], now: u64) -> bool {
        let is_fitting = |(quota, table): (&Quota, &QuotaTable)| {
            let is_sliding = matches!(table, QuotaTable::Windows(_));
            quota
                .rate()
                .is_none_or(|rate| rate.is_sliding() == is_sliding)
        };
        if quotas.len() != self.tables.len() || !quotas.iter().zip(&self.tables).all(is_fitting) {
            return false;
        }
        let _changing = lock(&self.change_lock);
        let rules = self.current.load();
        let changed = rules.0.iter().zip(quotas).zip(&self.tables);
        let changed = changed.map(|((default, quota), table)| {
            let is_sliding = matches!(table, QuotaTable::Windows(_));
            default.changed_to(*quota, now, is_sliding)
        });
        let changed = DefaultRules(changed.collect());
        self.current.store(Arc::new(changed));
        self.has_changed.store(true, Ordering::Release);
        true
    }

    /// The number of quotas.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.tables.len()
    }

    /// Pairs one quota of this set with a key.
    #[inline]
    pub(super) fn keyed<'a>(
        &'a self,
        rules: &'a DefaultRules,
        at: usize,
        charge: &'a Charge,
    ) -> KeyedQuota<'a> {
        KeyedQuota {
            table: &self.tables[at],
            default: &rules.0[at],
            override_rule: charge.rule(at),
            key: &charge.key,
        }
    }

    pub(super) fn stats(&self) -> RateStats {
        let mut all = RateStats::default();
        for table in &self.tables {
            let one = match table {
                QuotaTable::Buckets(buckets) => buckets.stats(),
                QuotaTable::Windows(windows) => windows.stats(),
            };
            all.tracked_keys += one.tracked_keys;
            all.evictions += one.evictions;
        }
        all
    }
}

impl DefaultRule {
    fn new(quota: Quota) -> Self {
        let rule = Rule::new(quota);
        let phases = match quota.rate() {
            Some(_) => Phases::starting_with(RateParams::from_rule(&rule)),
            None => Phases::default(),
        };
        Self::with_phases(rule, phases)
    }

    #[inline]
    fn parts(&self) -> (&Phases, &Gcra) {
        (&self.phases, &self.gcra)
    }

    fn with_phases(rule: Rule, phases: Phases) -> Self {
        let gcra = Gcra::new(phases.rule().unwrap_or(RateParams::from_rule(&rule)));
        Self { rule, phases, gcra }
    }

    /// Changes the default from `now` on. While it is unlimited or denies everything, used requests
    /// are regained at the previous rate.
    fn changed_to(&self, quota: Quota, now: u64, is_sliding: bool) -> Self {
        let rule = Rule::new(quota);
        let params = RateParams::from_rule(&rule);
        let is_rate = quota.rate().is_some();
        let phases = if is_rate && self.phases.rule() != Some(params) {
            self.phases.with_next(params, now, is_sliding)
        } else {
            self.phases.clone()
        };
        Self::with_phases(rule, phases)
    }
}

/// One quota for one key.
#[derive(Clone, Copy)]
pub(super) struct KeyedQuota<'a> {
    table: &'a QuotaTable,
    default: &'a DefaultRule,
    override_rule: Option<&'a Rule>,
    key: &'a Key,
}

impl KeyedQuota<'_> {
    /// The effective rule: the key's override, else the default.
    #[inline]
    fn rule(&self) -> &Rule {
        self.override_rule.unwrap_or(&self.default.rule)
    }

    pub(super) fn key(&self) -> &Key {
        self.key
    }

    /// Like [`decide`](Self::decide) with cost 1, but faster and without the numbers.
    #[inline]
    pub(super) fn take_one(&self, clock: &MonotonicClock) -> Result<bool, StaleRules> {
        let rule = self.rule();
        match (self.table, rule.kind()) {
            (QuotaTable::Buckets(buckets), RuleKind::Bucket) => {
                match buckets.context(self.default.parts(), self.override_rule, clock.now()) {
                    Some(context) => buckets.take_one(&context, self.key),
                    None => Ok(false),
                }
            }
            (_, kind) => Ok(kind == RuleKind::Unlimited),
        }
    }

    /// Decides a request. If it fits and `should_charge` is set, charges its cost. `None`: the
    /// quota is unlimited.
    #[inline]
    pub(super) fn decide(
        &self,
        cost: u32,
        should_charge: bool,
        clock: &MonotonicClock,
    ) -> Result<Option<Usage>, StaleRules> {
        let rule = self.rule();
        let usage = match (self.table, rule.kind()) {
            (_, RuleKind::Unlimited) => return Ok(None),
            (_, RuleKind::DenyAll) if cost == 0 => Usage::admitted(0, 0, Duration::ZERO),
            (_, RuleKind::DenyAll) => Usage::rejected(0, 0, Duration::ZERO, None),
            (QuotaTable::Buckets(buckets), _) => {
                let Some(context) =
                    buckets.context(self.default.parts(), self.override_rule, clock.now())
                else {
                    return Ok(None);
                };
                buckets.decide(&context, self.key, cost, should_charge)?
            }
            (QuotaTable::Windows(windows), _) => {
                let Some(context) = self.window_context() else {
                    return Ok(None);
                };
                windows.decide(context, self.key, cost, should_charge, clock)?
            }
        };
        Ok(Some(usage.with_rule(rule)))
    }

    /// Refunds a request and converts what the key used to its effective rule. With a cost of 0 it
    /// only converts. An unlimited or denying rule charged nothing.
    pub(super) fn refund(&self, cost: u32, clock: &MonotonicClock) -> Result<(), StaleRules> {
        let cost = if self.is_counting() { cost } else { 0 };
        match self.table {
            QuotaTable::Buckets(buckets) => match self.bucket_context(buckets, clock) {
                Some(context) => buckets.refund(&context, self.key, cost),
                None => Ok(()),
            },
            QuotaTable::Windows(windows) => match self.window_context() {
                Some(context) => windows.refund(context, self.key, cost, clock),
                None => Ok(()),
            },
        }
    }

    /// Charges a request that another store admitted, whether it fits or not.
    pub(super) fn charge(&self, cost: u32, clock: &MonotonicClock) -> Result<(), StaleRules> {
        if !self.is_counting() {
            return Ok(());
        }
        match self.table {
            QuotaTable::Buckets(buckets) => match self.bucket_context(buckets, clock) {
                Some(context) => buckets.charge(&context, self.key, cost),
                None => Ok(()),
            },
            QuotaTable::Windows(windows) => match self.window_context() {
                Some(context) => windows.charge(context, self.key, cost, clock),
                None => Ok(()),
            },
        }
    }

    fn is_counting(&self) -> bool {
        matches!(self.rule().kind(), RuleKind::Bucket | RuleKind::Window)
    }

    /// Uses the effective rule. While that is unlimited or denies everything, uses the last default
    /// that was a rate.
    fn bucket_context(
        &self,
        buckets: &Buckets,
        clock: &MonotonicClock,
    ) -> Option<super::bucket_context::BucketContext<'_>> {
        let override_rule = self
            .override_rule
            .filter(|rule| rule.kind() == RuleKind::Bucket);
        buckets.context(self.default.parts(), override_rule, clock.now())
    }

    #[inline]
    fn window_context(&self) -> Option<WindowContext<'_>> {
        let phases = &self.default.phases;
        match self
            .override_rule
            .filter(|rule| rule.kind() == RuleKind::Window)
        {
            Some(override_rule) => Some(WindowContext::for_override(
                phases,
                RateParams::from_rule(override_rule),
            )),
            None => WindowContext::for_default(phases),
        }
    }
}
