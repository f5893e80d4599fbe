//! The suite for stores notices a broken store.

use std::slice;
use std::sync::{Arc, Mutex};

use tower_admission::store::{Charge, MemoryStore, RateBuckets, RateStore, Reply};
use tower_admission::test_util::TestClock;
use tower_admission::{Decision, Policy, Quota};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Overrides are ignored.
    Rules,
    RulesInTiers,
    RulesOfLaterCharges,
    RulesWhenTakenAtOnce,
    RulesWhenRefunded,
    RulesWhenPeeked,
    /// An override is one of all keys.
    RulesOfOthers,
    /// Which set it is, is ignored.
    SetWhenTakenAtOnce,
    SetWhenRefunded,
    /// What is taken before a rejection is not given back.
    Part,
    PartUnderRules,
    /// What is used is forgotten.
    ForgetsWhenChanged,
    ForgetsWhenTierIsAdded,
    ForgetsWhenSettled,
    /// Changes are those of the first set, or not made.
    ChangesOfFirst,
    ChangesOfTiers,
    /// One set for two tiers.
    TiersTogether,
    TiersOfPoliciesTogether,
    TierIsDefault,
    /// The usages are in the order of the decision, addresses first.
    UsagesInOtherOrder,
}

struct Wrong(Flaw, MemoryStore);

impl RateStore for Wrong {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        Arc::new(WrongBuckets {
            flaw: self.0,
            store: self.1.clone(),
            policies: policies.to_vec(),
            inner: Mutex::new(self.1.open(policies)),
            tiers: Mutex::default(),
        })
    }
}

struct WrongBuckets {
    flaw: Flaw,
    store: MemoryStore,
    policies: Vec<Policy>,
    inner: Mutex<Arc<dyn RateBuckets>>,
    tiers: Mutex<Vec<(usize, String, Policy)>>,
}

impl WrongBuckets {
    fn inner(&self) -> Arc<dyn RateBuckets> {
        self.inner.lock().unwrap().clone()
    }

    fn forget(&self, policies: &[Policy]) {
        let buckets = self.store.open(policies);
        for (policy, tier, quotas) in &*self.tiers.lock().unwrap() {
            buckets.add_tier(*policy, tier, quotas).unwrap();
        }
        *self.inner.lock().unwrap() = buckets;
    }

    fn seen(&self, charges: &[Charge]) -> Vec<Charge> {
        let without = |at: usize, charge: &Charge| match self.flaw {
            Flaw::Rules => true,
            Flaw::RulesInTiers => charge.set >= self.policies.len(),
            Flaw::RulesOfLaterCharges => at > 0,
            _ => false,
        };
        let charges = charges.iter().enumerate();
        charges
            .map(|(at, charge)| match without(at, charge) {
                true => Charge::new(charge.key, charge.set),
                false => charge.clone(),
            })
            .collect()
    }
}

fn without_rules(charges: &[Charge]) -> Vec<Charge> {
    let charges = charges.iter();
    charges.map(|of| Charge::new(of.key, of.set)).collect()
}

fn in_default(charges: &[Charge]) -> Vec<Charge> {
    let charges = charges.iter();
    let default = |of: &Charge| {
        let mut of = of.clone();
        of.set = 0;
        of
    };
    charges.map(default).collect()
}

impl RateBuckets for WrongBuckets {
    fn take(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        let charges = &*self.seen(charges);
        let inner = self.inner();
        let has_rules = charges.iter().any(Charge::is_overridden);
        match self.flaw {
            Flaw::RulesOfOthers => {
                for charge in charges {
                    let count = self.policies[0].quotas().len();
                    let rules = (0..count).filter_map(|at| charge.rule(at));
                    let quotas: Vec<_> = rules.map(|rule| rule.quota()).collect();
                    if quotas.len() == count {
                        inner.set_quotas(charge.set, &quotas);
                    }
                }
            }
            Flaw::PartUnderRules if !has_rules => {}
            Flaw::Part | Flaw::PartUnderRules
                if !inner.peek(charges, cost).now().unwrap().is_admitted() =>
            {
                for charge in charges {
                    let _ = inner.take(slice::from_ref(charge), cost);
                }
                return inner.peek(charges, cost);
            }
            Flaw::UsagesInOtherOrder => {
                let mut charges = charges.to_vec();
                charges.sort_by_key(|charge| !charge.key.is_ip());
                return inner.take(&charges, cost);
            }
            _ => {}
        }
        inner.take(charges, cost)
    }

    fn take_one(&self, charge: &Charge) -> bool {
        let mut charges = self.seen(slice::from_ref(charge));
        match self.flaw {
            Flaw::RulesWhenTakenAtOnce => charges = without_rules(&charges),
            Flaw::SetWhenTakenAtOnce => charges = in_default(&charges),
            _ => {}
        }
        self.inner().take_one(&charges[0])
    }

    fn peek(&self, charges: &[Charge], cost: u32) -> Reply<Decision> {
        let mut charges = self.seen(charges);
        if self.flaw == Flaw::RulesWhenPeeked {
            charges = without_rules(&charges);
        }
        self.inner().peek(&charges, cost)
    }

    fn refund(&self, charges: &[Charge], cost: u32) -> Reply<()> {
        let mut charges = self.seen(charges);
        match self.flaw {
            Flaw::RulesWhenRefunded => charges = without_rules(&charges),
            Flaw::SetWhenRefunded => charges = in_default(&charges),
            _ => {}
        }
        self.inner().refund(&charges, cost)
    }

    fn settle(&self, charges: &[Charge]) {
        self.inner().settle(&self.seen(charges));
        if self.flaw == Flaw::ForgetsWhenSettled {
            let _ = self.inner().refund(charges, 1000);
        }
    }

    fn set_quotas(&self, set: usize, quotas: &[Quota]) -> bool {
        match self.flaw {
            Flaw::ForgetsWhenChanged => self.forget(&self.policies),
            Flaw::ChangesOfFirst => return self.inner().set_quotas(0, quotas),
            Flaw::ChangesOfTiers if set >= self.policies.len() => return true,
            _ => {}
        }
        self.inner().set_quotas(set, quotas)
    }

    fn add_tier(&self, policy: usize, tier: &str, quotas: &Policy) -> Option<usize> {
        let mut tiers = self.tiers.lock().unwrap();
        let same = match self.flaw {
            Flaw::TierIsDefault => return Some(policy),
            Flaw::TiersTogether => tiers.iter().position(|(of, ..)| *of == policy),
            Flaw::TiersOfPoliciesTogether => tiers.iter().position(|(_, name, _)| name == tier),
            _ => None,
        };
        if let Some(same) = same {
            return Some(self.policies.len() + same);
        }
        tiers.push((policy, tier.to_owned(), quotas.clone()));
        if self.flaw == Flaw::ForgetsWhenTierIsAdded {
            let set = self.policies.len() + tiers.len() - 1;
            drop(tiers);
            self.forget(&self.policies);
            return Some(set);
        }
        self.inner().add_tier(policy, tier, quotas)
    }
}

fn passes(flaw: Flaw) -> bool {
    let run = std::thread::spawn(move || {
        let clock = TestClock::default();
        let store = Wrong(flaw, MemoryStore::new().clock(clock.clone()));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(tower_admission_testkit::rate_store(&store, async |time| {
            clock.advance(time)
        }));
    });
    run.join().is_ok()
}

#[test]
fn every_flaw_is_noticed() {
    assert!(passes(Flaw::None));
    let mut unnoticed = Vec::new();
    for flaw in [
        Flaw::Rules,
        Flaw::RulesInTiers,
        Flaw::RulesOfLaterCharges,
        Flaw::RulesWhenTakenAtOnce,
        Flaw::RulesWhenRefunded,
        Flaw::RulesWhenPeeked,
        Flaw::RulesOfOthers,
        Flaw::SetWhenTakenAtOnce,
        Flaw::SetWhenRefunded,
        Flaw::Part,
        Flaw::PartUnderRules,
        Flaw::ForgetsWhenChanged,
        Flaw::ForgetsWhenTierIsAdded,
        Flaw::ForgetsWhenSettled,
        Flaw::ChangesOfFirst,
        Flaw::ChangesOfTiers,
        Flaw::TiersTogether,
        Flaw::TiersOfPoliciesTogether,
        Flaw::TierIsDefault,
        Flaw::UsagesInOtherOrder,
    ] {
        if passes(flaw) {
            unnoticed.push(flaw);
        }
    }
    assert_eq!(unnoticed, []);
}
