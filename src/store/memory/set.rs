//! The buckets of one policy, or of one tier of it, and the rules that are in force for them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Buckets, Stale};
use super::clock::Timer;
use super::gcra::Gcra;
use super::phases::{Numbers, Phases};
use super::sliding::{By, Windows};
use crate::decision::Usage;
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;
use crate::rule::{Rule, RuleKind};
use crate::store::{Charge, RateStats};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use arc_swap::{ArcSwap, Guard};

/// The buckets of one policy, one table for each of its quotas.
///
/// Until the defaults are changed for the first time, they are found without a look-up.
pub(super) struct Set {
    slots: Box<[Slot]>,
    first: Arc<Rules>,
    is_changed: AtomicBool,
    now: ArcSwap<Rules>,
    /// Held while the defaults are changed.
    changing: Mutex<()>,
}

/// What counts one quota.
#[expect(
    clippy::large_enum_variant,
    reason = "the larger one is the usual, and a box would be one more load of a decision"
)]
enum Slot {
    Buckets(Buckets),
    Windows(Windows),
}

/// The defaults of a set, one for each quota.
pub(super) struct Rules(Box<[SlotRule]>);

/// The default of one quota.
struct SlotRule {
    rule: Rule,
    phases: Phases,
    /// For the last phase.
    gcra: Gcra,
}

/// The rules that are in force.
pub(super) enum InForce<'a> {
    First(&'a Arc<Rules>),
    Later(Guard<Arc<Rules>>),
}

impl Deref for InForce<'_> {
    type Target = Rules;

    #[inline]
    fn deref(&self) -> &Rules {
        match self {
            Self::First(first) => first,
            Self::Later(later) => later,
        }
    }
}

impl Set {
    pub(super) fn new(policy: &Policy, max_keys: usize) -> Self {
        let quotas = || policy.quotas().iter().map(NamedQuota::quota);
        let slot = |quota: Quota| match quota.is_sliding() {
            true => Slot::Windows(Windows::new(max_keys)),
            false => Slot::Buckets(Buckets::new(max_keys)),
        };
        let first = Arc::new(Rules(quotas().map(SlotRule::new).collect()));
        Self {
            slots: quotas().map(slot).collect(),
            now: ArcSwap::new(first.clone()),
            first,
            is_changed: AtomicBool::new(false),
            changing: Mutex::new(()),
        }
    }

    #[inline]
    pub(super) fn rules(&self) -> InForce<'_> {
        if self.is_changed.load(Ordering::Acquire) {
            InForce::Later(self.now.load())
        } else {
            InForce::First(&self.first)
        }
    }

    /// Sets the defaults, from `now` on, and returns whether it did: there is one for each quota, of its algorithm.
    pub(super) fn set_quotas(&self, quotas: &[Quota], now: u64) -> bool {
        let fits = |(quota, slot): (&Quota, &Slot)| {
            let slides = matches!(slot, Slot::Windows(_));
            quota.rate().is_none_or(|rate| rate.is_sliding() == slides)
        };
        if quotas.len() != self.slots.len() || !quotas.iter().zip(&self.slots).all(fits) {
            return false;
        }
        let _changing = lock(&self.changing);
        let rules = self.now.load();
        let changed = rules.0.iter().zip(quotas).zip(&self.slots);
        let changed = changed.map(|((default, quota), slot)| {
            let slides = matches!(slot, Slot::Windows(_));
            default.then(*quota, now, slides)
        });
        let changed = Rules(changed.collect());
        self.now.store(Arc::new(changed));
        self.is_changed.store(true, Ordering::Release);
        true
    }

    /// How many quotas there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// One quota of this set as it is for a key.
    #[inline]
    pub(super) fn meter<'a>(
        &'a self,
        rules: &'a Rules,
        at: usize,
        charge: &'a Charge,
    ) -> Meter<'a> {
        Meter {
            slot: &self.slots[at],
            default: &rules.0[at],
            own: charge.rule(at),
            key: &charge.key,
        }
    }

    pub(super) fn stats(&self) -> RateStats {
        let mut all = RateStats::default();
        for slot in &self.slots {
            let one = match slot {
                Slot::Buckets(buckets) => buckets.stats(),
                Slot::Windows(windows) => windows.stats(),
            };
            all.tracked_keys += one.tracked_keys;
            all.evictions += one.evictions;
        }
        all
    }
}

impl SlotRule {
    fn new(quota: Quota) -> Self {
        let rule = Rule::new(quota);
        let phases = match quota.rate() {
            Some(_) => Phases::starting(Numbers::of(&rule)),
            None => Phases::default(),
        };
        Self::of(rule, phases)
    }

    #[inline]
    fn parts(&self) -> (&Phases, &Gcra) {
        (&self.phases, &self.gcra)
    }

    fn of(rule: Rule, phases: Phases) -> Self {
        let gcra = Gcra::new(phases.rule().unwrap_or(Numbers::of(&rule)));
        Self { rule, phases, gcra }
    }

    /// Another default from `now` on. While it is off or denies everything, what is used regains at the rate before.
    fn then(&self, quota: Quota, now: u64, slides: bool) -> Self {
        let rule = Rule::new(quota);
        let numbers = Numbers::of(&rule);
        let is_rate = quota.rate().is_some();
        let phases = if is_rate && self.phases.rule() != Some(numbers) {
            self.phases.then(numbers, now, slides)
        } else {
            self.phases.clone()
        };
        Self::of(rule, phases)
    }
}

/// One quota as it is for one key.
#[derive(Clone, Copy)]
pub(super) struct Meter<'a> {
    slot: &'a Slot,
    default: &'a SlotRule,
    own: Option<&'a Rule>,
    key: &'a Key,
}

impl Meter<'_> {
    /// The effective rule: the key's override, else the default.
    #[inline]
    fn rule(&self) -> &Rule {
        self.own.unwrap_or(&self.default.rule)
    }

    pub(super) fn key(&self) -> &Key {
        self.key
    }

    /// As [`decide`](Self::decide) to take 1, where the numbers are of no use and there is a quicker way.
    #[inline]
    pub(super) fn take_one(&self, time: &Timer) -> Result<bool, Stale> {
        let rule = self.rule();
        match (self.slot, rule.kind()) {
            (Slot::Buckets(buckets), RuleKind::Bucket) => {
                match buckets.by(self.default.parts(), self.own, time.now()) {
                    Some(by) => buckets.take_one(&by, self.key),
                    None => Ok(false),
                }
            }
            (_, kind) => Ok(kind == RuleKind::Unlimited),
        }
    }

    /// Decides about a request, and takes its cost if it fits and `takes`. `None`: nothing limits it.
    #[inline]
    pub(super) fn decide(
        &self,
        cost: u32,
        takes: bool,
        time: &Timer,
    ) -> Result<Option<Usage>, Stale> {
        let rule = self.rule();
        let usage = match (self.slot, rule.kind()) {
            (_, RuleKind::Unlimited) => return Ok(None),
            (_, RuleKind::DenyAll) if cost == 0 => Usage::admitted(0, 0, Duration::ZERO),
            (_, RuleKind::DenyAll) => Usage::rejected(0, 0, Duration::ZERO, None),
            (Slot::Buckets(buckets), _) => {
                let Some(by) = buckets.by(self.default.parts(), self.own, time.now()) else {
                    return Ok(None);
                };
                buckets.decide(&by, self.key, cost, takes)?
            }
            (Slot::Windows(windows), _) => {
                let Some(by) = self.window_by() else {
                    return Ok(None);
                };
                windows.decide(by, self.key, cost, takes, time)?
            }
        };
        Ok(Some(usage.with_rule(rule)))
    }

    /// Gives back what a request took, and has what the key used be by its effective rule from now on; with a cost of 0 no
    /// more than that. A rule that is off or denies everything took nothing.
    pub(super) fn refund(&self, cost: u32, time: &Timer) -> Result<(), Stale> {
        let cost = if self.counts() { cost } else { 0 };
        match self.slot {
            Slot::Buckets(buckets) => match self.bucket_by(buckets, time) {
                Some(by) => buckets.refund(&by, self.key, cost),
                None => Ok(()),
            },
            Slot::Windows(windows) => match self.window_by() {
                Some(by) => windows.refund(by, self.key, cost, time),
                None => Ok(()),
            },
        }
    }

    /// Charges a request that was admitted elsewhere, whether it fits or not.
    pub(super) fn charge(&self, cost: u32, time: &Timer) -> Result<(), Stale> {
        if !self.counts() {
            return Ok(());
        }
        match self.slot {
            Slot::Buckets(buckets) => match self.bucket_by(buckets, time) {
                Some(by) => buckets.charge(&by, self.key, cost),
                None => Ok(()),
            },
            Slot::Windows(windows) => match self.window_by() {
                Some(by) => windows.charge(by, self.key, cost, time),
                None => Ok(()),
            },
        }
    }

    fn counts(&self) -> bool {
        matches!(self.rule().kind(), RuleKind::Bucket | RuleKind::Window)
    }

    /// By the effective rule, or, while that is off or denies everything, by the last default that was a rate.
    fn bucket_by(&self, buckets: &Buckets, time: &Timer) -> Option<super::bucket::By<'_>> {
        let own = self.own.filter(|rule| rule.kind() == RuleKind::Bucket);
        buckets.by(self.default.parts(), own, time.now())
    }

    #[inline]
    fn window_by(&self) -> Option<By<'_>> {
        let phases = &self.default.phases;
        match self.own.filter(|rule| rule.kind() == RuleKind::Window) {
            Some(own) => Some(By::overridden(phases, Numbers::of(own))),
            None => By::default_of(phases),
        }
    }
}
