//! Changes in any order against a naive model, and a key's own quota against everybody's.

use std::collections::HashMap;

use proptest::prelude::*;
use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, Quota, RateLimiter};

use super::{Bench, SECOND};

/// (requests a period, period in seconds, burst)
pub(crate) type Numbers = (u32, u32, u32);

/// Their intervals are whole powers of two of a second, so that a model in floating point is exact.
pub(crate) fn numbers() -> impl Strategy<Value = Numbers> {
    let (count, period) = (0..4_u32, 0..4_u32);
    (count, period, 1..20_u32).prop_map(|(count, period, burst)| (1 << count, 1 << period, burst))
}

pub(crate) fn text((count, period, burst): Numbers) -> String {
    format!("{count} per {period}s burst {burst}")
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize, u32),
    Refund(usize, u32),
    Pass(u32),
    Set(usize, Numbers),
    Delete(usize),
    SetAll(Numbers),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..2_usize;
    prop_oneof![
        6 => (key.clone(), 0..6_u32).prop_map(|(key, cost)| Step::Take(key, cost)),
        1 => (key.clone(), 1..4_u32).prop_map(|(key, cost)| Step::Refund(key, cost)),
        3 => (1..40_u32).prop_map(Step::Pass),
        2 => (key.clone(), numbers()).prop_map(|(key, own)| Step::Set(key, own)),
        1 => key.prop_map(Step::Delete),
        1 => numbers().prop_map(Step::SetAll),
    ]
}

/// What a key has spent, in requests.
struct Model {
    all: Numbers,
    own: HashMap<usize, Numbers>,
    spent: [f64; 2],
}

impl Model {
    fn of(&self, key: usize) -> Numbers {
        self.own.get(&key).copied().unwrap_or(self.all)
    }

    /// What a lowered limit does not hold is forgiven.
    fn settle(&mut self) {
        for key in 0..2 {
            let (.., burst) = self.of(key);
            self.spent[key] = self.spent[key].min(f64::from(burst));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..Default::default() })]

    #[test]
    fn what_is_spent_stays_spent(all in numbers(), steps in prop::collection::vec(step(), 1..60)) {
        let bench = Bench::new(text(all).parse::<Quota>().unwrap());
        let keys = ["0", "1"].map(|id| Key::id("org", id));
        let mut model = Model { all, own: HashMap::new(), spent: [0.0; 2] };
        for step in steps {
            match step.clone() {
                Step::Take(key, cost) => {
                    let (.., burst) = model.of(key);
                    let fits = model.spent[key] + f64::from(cost) <= f64::from(burst);
                    let decision = bench.limiter.check_n(&keys[key], cost);
                    prop_assert_eq!(decision.is_admitted(), fits || cost == 0, "{:?}", step);
                    if fits {
                        model.spent[key] += f64::from(cost);
                    }
                    let left = (f64::from(burst) - model.spent[key]).floor();
                    prop_assert_eq!(decision.remaining().map(f64::from), Some(left), "{:?}", step);
                }
                Step::Refund(key, cost) => {
                    bench.limiter.refund(&keys[key], cost);
                    model.spent[key] = (model.spent[key] - f64::from(cost)).max(0.0);
                }
                Step::Pass(quarters) => {
                    bench.clock.advance(SECOND * quarters / 4);
                    for key in 0..2 {
                        let (count, period, _) = model.of(key);
                        let regained = f64::from(quarters) / 4.0 * f64::from(count) / f64::from(period);
                        model.spent[key] = (model.spent[key] - regained).max(0.0);
                    }
                }
                Step::Set(key, own) => {
                    bench.set(&format!("org:{key}"), &text(own));
                    model.own.insert(key, own);
                }
                Step::Delete(key) => {
                    bench.delete(&format!("org:{key}"));
                    model.own.remove(&key);
                }
                Step::SetAll(all) => {
                    bench.limiter.set_policy(text(all).parse::<Quota>().unwrap()).unwrap();
                    model.all = all;
                }
            }
            model.settle();
        }
    }

    #[test]
    fn a_keys_own_quota_counts_as_everybodys_does(
        quota in numbers(),
        sliding: bool,
        steps in prop::collection::vec((0..25_u32, 0..4_u8, 0..3_000_u64), 1..80),
    ) {
        let quota: Quota = text(quota).parse().unwrap();
        let quota = if sliding { quota.sliding() } else { quota };
        let other = if sliding { "7 per 3s sliding" } else { "7 per 3s" };
        let bench = Bench::new(other.parse::<Quota>().unwrap());
        bench.set("org:acme", &quota.to_string());
        let clock = TestClock::default();
        clock.advance(1_000_000 * SECOND);
        let plain = RateLimiter::with_store(quota, &MemoryStore::new().clock(clock.clone()));
        let key = Key::id("org", "acme");
        for (cost, what, millis) in steps {
            match what {
                0 => {
                    bench.limiter.refund(&key, cost);
                    plain.refund(&key, cost);
                }
                1 => {
                    let (own, all) = (bench.limiter.peek(&key), plain.peek(&key));
                    prop_assert_eq!(own.usages(), all.usages());
                }
                _ => {
                    let (own, all) = (bench.limiter.check_n(&key, cost), plain.check_n(&key, cost));
                    prop_assert_eq!(own.usages(), all.usages());
                }
            }
            let passed = std::time::Duration::from_millis(millis);
            bench.clock.advance(passed);
            clock.advance(passed);
        }
    }
}
