//! Tiers: what a request has to fit comes from its tier, what is used is the key's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, Limits, Policy, Quota, RateLimiter, Usage};

use super::model::{Numbers, numbers, text};
use super::{Bench, SECOND, name, now};

const TIERS: [&str; 3] = ["", "pro", "max"];

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

/// The limiter for requests of a tier; the first is none.
fn of<'a>(limiter: &'a RateLimiter, tier: &str) -> &'a RateLimiter {
    limiter.tier(tier).unwrap_or(limiter)
}

/// A limiter without limits that change, and one with.
fn both(policy: impl Into<Policy>) -> [(RateLimiter, TestClock); 2] {
    let policy = policy.into();
    let clock = TestClock::default();
    clock.advance(1_000_000 * SECOND);
    let store = MemoryStore::new().clock(clock.clone());
    let bench = Bench::new(policy.clone());
    [
        (RateLimiter::with_store(policy, &store), clock),
        (bench.limiter, bench.clock),
    ]
}

fn burst(limiter: &RateLimiter, key: &Key) -> u32 {
    let mut admitted = 0;
    while limiter.check(key).is_admitted() {
        admitted += 1;
    }
    admitted
}

#[test]
fn going_up_or_down_gives_no_fresh_burst() {
    let policy = Policy::from(quota("6/min burst 3")).tier("pro", quota("60/min burst 10"));
    for (limiter, clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let key = Key::id("user", "alice");
        assert_eq!(burst(&limiter, &key), 3);
        assert_eq!(burst(pro, &key), 7, "up: what is spent counts");
        assert_eq!(burst(&limiter, &key), 0, "down");
        assert_eq!(burst(pro, &key), 0, "and up again");
        let wait = limiter.check(&key).retry_after();
        assert_eq!(wait, Some(10 * SECOND), "an empty bucket's first request");
        clock.advance(10 * SECOND);
        assert_eq!(burst(&limiter, &key), 1);
        assert_eq!(burst(pro, &key), 9);
        assert_eq!(limiter.check(&key).retry_after(), Some(10 * SECOND));
    }
}

#[test]
fn who_alternates_gets_no_more_of_a_tier_than_it_allows() {
    let policy = Policy::from(quota("100/min")).tier("dear", quota("10/min"));
    for (limiter, clock) in both(policy) {
        let dear = limiter.tier("dear").unwrap();
        let key = Key::id("user", "alice");
        let mut admitted = [0; 2];
        for _ in 0..600 {
            admitted[0] += u32::from(dear.check(&key).is_admitted());
            admitted[1] += u32::from(limiter.check(&key).is_admitted());
            clock.advance(SECOND);
        }
        // Those of 60/min in the other tier count as well and keep this one empty.
        assert_eq!(admitted[0], 5);
        assert_eq!(admitted[1], 600);
    }
}

#[test]
fn windows_count_what_came_in_by_any_tier() {
    let policy = Policy::from(quota("5/min sliding")).tier("pro", quota("20/min sliding"));
    for (limiter, clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let key = Key::id("user", "alice");
        assert_eq!(burst(pro, &key), 20);
        let refused = limiter.check(&key);
        assert_eq!(refused.remaining(), Some(0));
        assert!(refused.retry_after().unwrap() > 55 * SECOND);
        clock.advance(70 * SECOND);
        assert_eq!(burst(&limiter, &key), 5);
        assert_eq!(burst(pro, &key), 15);
    }
}

#[test]
fn tiers_have_quotas_of_their_own_names_and_number() {
    let pro = Policy::new("pro", quota("60/min")).and("daily", quota("100/day sliding"));
    let policy = Policy::new("free", quota("3/min")).tier("pro", pro);
    for (limiter, _clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let key = Key::id("user", "alice");
        assert_eq!(burst(&limiter, &key), 3);
        let decision = pro.check(&key);
        let left = decision.usages().iter().map(Usage::remaining);
        assert_eq!(left.collect::<Vec<_>>(), [56, 96]);
        let names = pro.policies()[0]
            .quotas()
            .iter()
            .map(|q| q.name().to_owned());
        assert_eq!(names.collect::<Vec<_>>(), ["pro", "daily"]);
        assert_eq!(limiter.check(&key).usages().len(), 1);
        assert!(limiter.tier("other").is_none());
        assert!(pro.tier("pro").is_none(), "a tier has none itself");
    }
}

#[test]
fn a_tier_without_limit_counts_for_the_others() {
    let policy = Policy::from(quota("3/min")).tier("staff", Quota::off());
    for (limiter, _clock) in both(policy) {
        let staff = limiter.tier("staff").unwrap();
        let key = Key::id("user", "alice");
        assert!(!staff.is_off());
        for _ in 0..2 {
            let decision = staff.check(&key);
            assert!(decision.is_admitted());
            assert_eq!(decision.remaining(), None);
        }
        assert_eq!(burst(&limiter, &key), 1);
        assert!(staff.check_n(&key, 1_000_000).is_admitted());
    }
    // And the other way round: nobody is limited but those of a tier.
    let policy = Policy::from(Quota::off()).tier("guest", quota("3/min"));
    for (limiter, _clock) in both(policy) {
        let guest = limiter.tier("guest").unwrap();
        let key = Key::id("user", "alice");
        assert!((0..2).all(|_| limiter.check(&key).is_admitted()));
        assert_eq!(burst(guest, &key), 1);
        assert!(limiter.check(&key).is_admitted());
    }
}

#[test]
fn what_is_given_back_is_given_back_in_every_tier() {
    let policy = Policy::from(quota("3/min")).tier("pro", quota("10/min"));
    for (limiter, _clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let key = Key::id("user", "alice");
        assert!(pro.check_n(&key, 3).is_admitted());
        assert!(!limiter.check(&key).is_admitted());
        pro.refund(&key, 2);
        assert_eq!(pro.peek(&key).remaining(), Some(9));
        assert_eq!(burst(&limiter, &key), 2);
    }
}

#[test]
fn a_look_and_a_refusal_count_nowhere() {
    let policy = Policy::from(quota("3/min")).tier("pro", quota("1/min"));
    for (limiter, _clock) in both(policy) {
        let pro = limiter.tier("pro").unwrap();
        let key = Key::id("user", "alice");
        assert!(pro.peek(&key).is_admitted());
        assert!(pro.check(&key).is_admitted());
        for cost in [0, 1, 5] {
            let _ = pro.check_n(&key, cost);
        }
        assert_eq!(limiter.check_n(&key, 0).remaining(), Some(2));
    }
}

#[test]
fn limits_of_keys_go_before_tiers() {
    let policy = Policy::from(quota("3/min")).tier("pro", quota("10/min"));
    let bench = Bench::new(policy.tier("staff", Quota::off()));
    let key = Key::id("org", "acme");
    assert_eq!(burst(&bench.limiter, &key), 3);
    bench.set("org:acme", "5/min");
    for tier in ["", "pro"] {
        let decision = of(&bench.limiter, tier).peek(&key);
        assert_eq!(decision.limit(), Some(5), "{tier}");
        let told = decision.policies().unwrap();
        assert_eq!(told[0].quotas()[0].quota(), quota("5/min"));
        assert_eq!(told[0].tiers().count(), 0, "of one tier alone");
    }
    assert_eq!(burst(of(&bench.limiter, "pro"), &key), 2);
    assert_eq!(burst(&bench.limiter, &key), 0);
    assert!(of(&bench.limiter, "staff").check(&key).is_admitted());
    bench.delete("org:acme");
    // The one of the staff found an empty bucket, which owes no more than that.
    assert_eq!(burst(of(&bench.limiter, "pro"), &key), 5);
}

#[test]
fn a_single_quota_of_one_tier_is_told_as_that_tiers() {
    // Where a key's only quota is its own there is a shorter way.
    let base = Policy::from(quota("3/min")).tier("staff", Quota::off());
    let tier = Policy::from(Quota::off()).tier("pro", quota("10/min"));
    for (policy, limited) in [(base, ""), (tier, "pro")] {
        let bench = Bench::new(policy);
        let key = Key::id("org", "acme");
        bench.set("org:acme", "5/min");
        for asked in ["", "staff", "pro"] {
            let limiter = of(&bench.limiter, asked);
            for decision in [limiter.check(&key), limiter.peek(&key)] {
                let told = decision.policies().unwrap();
                assert_eq!(told[0].tiers().count(), 0);
                assert_eq!(told[0].quotas().len(), decision.usages().len());
            }
        }
        let decision = of(&bench.limiter, limited).check(&key);
        assert_eq!(decision.policies().unwrap()[0], quota("5/min").into());
    }
}

#[test]
fn the_policy_of_the_beginning_can_be_set() {
    let policy = Policy::new("a", quota("3/min")).and("off", Quota::off());
    let policy = policy
        .tier("staff", Quota::off())
        .tier("pro", quota("9/min"));
    let bench = Bench::new(policy.clone());
    bench.limiter.set_policy(policy).unwrap();
    let key = Key::id("org", "acme");
    assert_eq!(burst(&bench.limiter, &key), 3);
}

#[test]
fn at_the_bound_a_request_counts_in_other_tiers_as_in_its_own() {
    for kind in ["", " sliding"] {
        let of = |text: &str| quota(&format!("{text}{kind}"));
        let policy = Policy::from(of("3/h")).tier("pro", of("100/h"));
        let store = MemoryStore::new().max_keys(1).clock(TestClock::default());
        let limiter = RateLimiter::with_store(policy, &store);
        // Whose bucket denies, so that it is not given up for another.
        assert_eq!(burst(&limiter, &Key::id("user", "bob")), 3);
        let alice = Key::id("user", "alice");
        let pro = limiter.tier("pro").unwrap();
        assert!((0..10).all(|_| pro.check(&alice).is_admitted()));
        assert_eq!(burst(&limiter, &alice), 0, "{kind}");
    }
}

#[test]
fn a_policy_is_changed_with_its_tiers() {
    let tiered = |free, pro| Policy::from(quota(free)).tier("pro", quota(pro));
    let bench = Bench::new(tiered("3/min", "10/min"));
    let key = Key::id("org", "acme");
    let pro = bench.limiter.tier("pro").unwrap();
    assert_eq!(burst(&bench.limiter, &key), 3);
    let error = bench.limiter.set_policy(quota("3/min")).unwrap_err();
    assert!(error.to_string().contains("tiers"), "{error}");
    bench.limiter.set_policy(tiered("5/min", "20/min")).unwrap();
    assert_eq!(pro.current_policies(), [quota("20/min").into()]);
    assert_eq!(pro.peek(&key).policies().unwrap(), pro.current_policies());
    assert_eq!(burst(pro, &key), 17);
    assert_eq!(burst(&bench.limiter, &key), 0);
}

#[test]
fn usage_is_told_by_tier() {
    let bench = Bench::new(Policy::from(quota("3/min")).tier("pro", quota("10/min")));
    let key = Key::id("org", "acme");
    assert!(of(&bench.limiter, "pro").check_n(&key, 5).is_admitted());
    let usage = now(bench.limits.usage(&name("org:acme")));
    let told = usage
        .iter()
        .map(|u| (u.tier.as_deref(), &*u.name, u.used, u.limit));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (None, "default", 3, Some(3)),
            (Some("pro"), "default", 5, Some(10))
        ]
    );
}

#[test]
fn threads_of_several_tiers_get_what_each_allows() {
    let policy = Policy::from(quota("100/day")).tier("pro", quota("1000/day"));
    for (limiter, _clock) in both(policy.tier("max", quota("3000/day"))) {
        let key = Key::id("user", "alice");
        let admitted: [AtomicU32; 3] = Default::default();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (limiter, admitted) = (of(&limiter, TIERS[n % 3]), &admitted[n % 3]);
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        let is_admitted = limiter.check(&key).is_admitted();
                        admitted.fetch_add(is_admitted.into(), Ordering::Relaxed);
                    }
                });
            }
        });
        let [free, pro, max] = admitted.map(AtomicU32::into_inner);
        assert!(free <= 100 && pro <= 1000, "{free} {pro} {max}");
        // A request counts elsewhere a moment after it was admitted, of which each thread has one.
        assert!(
            (3000..3006).contains(&(free + pro + max)),
            "{free} {pro} {max}"
        );
        for tier in TIERS {
            assert!(!of(&limiter, tier).check(&key).is_admitted(), "{tier}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize, usize, u32),
    Refund(usize, u32),
    Pass(u32),
    Set(usize, Numbers),
    Delete(usize),
    SetAll([Numbers; 3]),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..2_usize;
    prop_oneof![
        8 => (key.clone(), 0..3_usize, 0..6_u32)
            .prop_map(|(key, tier, cost)| Step::Take(key, tier, cost)),
        1 => (key.clone(), 1..4_u32).prop_map(|(key, cost)| Step::Refund(key, cost)),
        3 => (1..40_u32).prop_map(Step::Pass),
        1 => (key.clone(), numbers()).prop_map(|(key, own)| Step::Set(key, own)),
        1 => key.prop_map(Step::Delete),
        1 => [numbers(), numbers(), numbers()].prop_map(Step::SetAll),
    ]
}

/// What each key has spent of each tier, in requests.
struct Model {
    all: [Numbers; 3],
    own: HashMap<usize, Numbers>,
    spent: [[f64; 3]; 2],
}

impl Model {
    fn of(&self, key: usize, tier: usize) -> Numbers {
        self.own.get(&key).copied().unwrap_or(self.all[tier])
    }

    fn change(&mut self, key: usize, change: impl Fn(f64, Numbers) -> f64) {
        for tier in 0..3 {
            let numbers = self.of(key, tier);
            let spent = change(self.spent[key][tier], numbers);
            self.spent[key][tier] = spent.clamp(0.0, f64::from(numbers.2));
        }
    }
}

fn policy(all: [Numbers; 3]) -> Policy {
    let [free, pro, max] = all.map(|numbers| quota(&text(numbers)));
    Policy::from(free).tier(TIERS[1], pro).tier(TIERS[2], max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..Default::default() })]

    #[test]
    fn a_request_counts_in_every_tier(
        all in [numbers(), numbers(), numbers()],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let bench = Bench::new(policy(all));
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        // Which is the same as long as nothing was changed.
        let plain = RateLimiter::with_store(policy(all), &store);
        let mut is_plain = true;
        let keys = ["0", "1"].map(|id| Key::id("org", id));
        let mut model = Model { all, own: HashMap::new(), spent: [[0.0; 3]; 2] };
        for step in steps {
            match step.clone() {
                Step::Take(key, tier, cost) => {
                    let (.., most) = model.of(key, tier);
                    let (most, weight) = (f64::from(most), f64::from(cost));
                    let fits = model.spent[key][tier] + weight <= most;
                    let decision = of(&bench.limiter, TIERS[tier]).check_n(&keys[key], cost);
                    prop_assert_eq!(decision.is_admitted(), fits || cost == 0, "{:?}", step);
                    if fits {
                        model.change(key, |spent, _| spent + weight);
                    }
                    let left = (most - model.spent[key][tier]).floor();
                    prop_assert_eq!(decision.remaining().map(f64::from), Some(left), "{:?}", step);
                    if is_plain {
                        let same = of(&plain, TIERS[tier]).check_n(&keys[key], cost);
                        prop_assert_eq!(same.usages(), decision.usages());
                    }
                }
                Step::Refund(key, cost) => {
                    bench.limiter.refund(&keys[key], cost);
                    plain.refund(&keys[key], cost);
                    model.change(key, |spent, _| spent - f64::from(cost));
                }
                Step::Pass(quarters) => {
                    bench.clock.advance(SECOND * quarters / 4);
                    clock.advance(SECOND * quarters / 4);
                    for key in 0..2 {
                        model.change(key, |spent, (count, period, _)| {
                            spent - f64::from(quarters) / 4.0 * f64::from(count) / f64::from(period)
                        });
                    }
                }
                Step::Set(key, own) => {
                    bench.set(&format!("org:{key}"), &text(own));
                    model.own.insert(key, own);
                    is_plain = false;
                }
                Step::Delete(key) => {
                    bench.delete(&format!("org:{key}"));
                    model.own.remove(&key);
                }
                Step::SetAll(all) => {
                    bench.limiter.set_policy(policy(all)).unwrap();
                    model.all = all;
                    is_plain = false;
                }
            }
            // What a lowered limit does not hold is forgiven.
            for key in 0..2 {
                model.change(key, |spent, _| spent);
            }
        }
    }
}

#[test]
fn a_limiter_without_limits_that_change_has_tiers() {
    let limits = Limits::new();
    let policy = Policy::from(quota("3/min")).tier("pro", quota("10/min"));
    let store = MemoryStore::new();
    let limiter = RateLimiter::with_limits(policy.clone(), &store, &limits);
    assert_eq!(limiter.policies()[0], policy);
    let limiter = RateLimiter::new(policy.clone());
    assert_eq!(limiter.current_policies(), [policy]);
    let pro = limiter.tier("pro").unwrap();
    assert_eq!(pro.policies(), pro.current_policies());
    assert!(pro.set_policy(quota("1/min")).is_err());
}
