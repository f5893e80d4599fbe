//! Random changes against a naive model, and an override against the same default.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{Decision, Key, Quota, RateLimiter};

use super::{Bench, SECOND};

/// (requests per period, period in seconds, burst)
pub(crate) type Numbers = (u32, u32, u32);

/// Their intervals are whole powers of two of a second, so that a floating-point model is exact.
pub(crate) fn numbers() -> impl Strategy<Value = Numbers> {
    let (count, period) = (0..4_u32, 0..4_u32);
    (count, period, 1..20_u32).prop_map(|(count, period, burst)| (1 << count, 1 << period, burst))
}

/// Requests per period, and the period in seconds. Most intervals are not multiples of each other,
/// so that conversions round.
const RATES: [(u32, u32); 4] = [(7, 60), (11, 60), (13, 3600), (14, 60)];

fn uneven_numbers() -> impl Strategy<Value = Numbers> {
    let rate = prop::sample::select(&RATES[..]);
    (rate, 1..20_u32).prop_map(|((count, period), burst)| (count, period, burst))
}

pub(crate) fn text((count, period, burst): Numbers) -> String {
    format!("{count} per {period}s burst {burst}")
}

fn check_n(limiter: &RateLimiter, key: &Key, cost: u32) -> Decision {
    limiter.check_n(key, cost).now().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize, u32),
    Refund(usize, u32),
    Pass(Duration),
    Set(usize, Numbers),
    Delete(usize),
    SetAll(Numbers),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..2_usize;
    let nanos = prop_oneof![1..30_u64, 1..20_000_000_000_u64, 1..200_000_000_000_u64];
    prop_oneof![
        6 => (key.clone(), 0..6_u32).prop_map(|(key, cost)| Step::Take(key, cost)),
        1 => (key.clone(), 1..4_u32).prop_map(|(key, cost)| Step::Refund(key, cost)),
        3 => nanos.prop_map(|nanos| Step::Pass(Duration::from_nanos(nanos))),
        2 => (key.clone(), uneven_numbers()).prop_map(|(key, own)| Step::Set(key, own)),
        1 => key.prop_map(Step::Delete),
        1 => uneven_numbers().prop_map(Step::SetAll),
    ]
}

/// Nanoseconds between two requests, rounded up.
fn interval((count, period, _): Numbers) -> u128 {
    (u128::from(period) * 1_000_000_000).div_ceil(count.into())
}

/// The units of one request, chosen so that a nanosecond of every interval is a whole number of
/// units.
fn request() -> u128 {
    let intervals = RATES.map(|(count, period)| interval((count, period, 1)));
    intervals.into_iter().fold(1, |multiple, interval| {
        let (mut a, mut b) = (multiple, interval);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        multiple / a * interval
    })
}

/// What a key has used, in units of a [`request`]. A limiter may count anything in the range.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// The exact value.
    least: u128,
    /// The value rounded up to a nanosecond of the new interval at each change.
    most: u128,
}

impl Spent {
    fn each(&mut self, change: impl Fn(u128) -> u128) {
        (self.least, self.most) = (change(self.least), change(self.most));
    }

    fn contains(self, units: u128) -> bool {
        (self.least..=self.most).contains(&units)
    }
}

struct Model {
    all: Numbers,
    own: HashMap<usize, Numbers>,
    spent: [Spent; 2],
    request: u128,
}

impl Model {
    fn of(&self, key: usize) -> Numbers {
        self.own.get(&key).copied().unwrap_or(self.all)
    }

    /// The units of a nanosecond of the key's quota.
    fn nanosecond(&self, key: usize) -> u128 {
        self.request / interval(self.of(key))
    }

    /// After a change: forgives what a lowered limit does not hold.
    fn convert(&mut self) {
        for key in 0..2 {
            let (.., burst) = self.of(key);
            let (full, unit) = (u128::from(burst) * self.request, self.nanosecond(key));
            let spent = &mut self.spent[key];
            spent.most = spent.most.div_ceil(unit) * unit;
            spent.each(|spent| spent.min(full));
        }
    }

    fn take(&mut self, key: usize, cost: u32, decision: &Decision) -> Result<(), TestCaseError> {
        let (.., burst) = self.of(key);
        let unit = self.nanosecond(key);
        let [full, weight] = [burst, cost].map(|requests| u128::from(requests) * self.request);
        let spent = &mut self.spent[key];
        if decision.is_admitted() {
            prop_assert!(cost == 0 || spent.least + weight <= full);
            spent.each(|spent| (spent + weight).min(full));
        } else {
            prop_assert!(spent.most + weight > full);
        }
        let left = |spent| u32::try_from((full - spent) / self.request).unwrap();
        let left = left(spent.most)..=left(spent.least);
        prop_assert!(left.contains(&decision.remaining().unwrap()));
        prop_assert!(spent.contains(decision.reset().unwrap().as_nanos() * unit));
        let waits = !decision.is_admitted() && cost <= burst;
        prop_assert_eq!(decision.retry_after().is_some(), waits);
        if let Some(wait) = decision.retry_after() {
            prop_assert!(spent.contains(wait.as_nanos() * unit + full - weight));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..Default::default() })]

    #[test]
    fn what_is_spent_stays_spent(
        all in uneven_numbers(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let bench = Bench::new(text(all).parse::<Quota>().unwrap());
        let keys = ["0", "1"].map(|id| Key::id("org", id));
        let spent = [Spent::default(); 2];
        let mut model = Model { all, own: HashMap::new(), spent, request: request() };
        for step in steps {
            match step {
                Step::Take(key, cost) => {
                    let decision = check_n(&bench.limiter, &keys[key], cost);
                    model.take(key, cost, &decision)?;
                }
                Step::Refund(key, cost) => {
                    bench.limiter.refund(&keys[key], cost).now().unwrap();
                    let given_back = u128::from(cost) * model.request;
                    model.spent[key].each(|spent| spent.saturating_sub(given_back));
                }
                Step::Pass(time) => {
                    bench.clock.advance(time);
                    for key in 0..2 {
                        let regained = time.as_nanos() * model.nanosecond(key);
                        model.spent[key].each(|spent| spent.saturating_sub(regained));
                    }
                }
                Step::Set(key, own) => {
                    bench.set(&format!("org:{key}"), &text(own));
                    model.own.insert(key, own);
                    model.convert();
                }
                Step::Delete(key) => {
                    bench.delete(&format!("org:{key}"));
                    model.own.remove(&key);
                    model.convert();
                }
                Step::SetAll(all) => {
                    bench.limiter.set_policy(text(all).parse::<Quota>().unwrap()).unwrap();
                    model.all = all;
                    model.convert();
                }
            }
        }
    }

    #[test]
    fn a_keys_own_quota_counts_as_everybodys_does(
        quota in prop_oneof![numbers(), uneven_numbers()],
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
                    bench.limiter.refund(&key, cost).now().unwrap();
                    plain.refund(&key, cost).now().unwrap();
                }
                1 => {
                    let (own, all) = (bench.limiter.peek(&key).now().unwrap(), plain.peek(&key).now().unwrap());
                    prop_assert_eq!(own.usages(), all.usages());
                }
                _ => {
                    let own = check_n(&bench.limiter, &key, cost);
                    let all = check_n(&plain, &key, cost);
                    prop_assert_eq!(own.usages(), all.usages());
                }
            }
            let passed = Duration::from_millis(millis);
            bench.clock.advance(passed);
            clock.advance(passed);
        }
    }
}
