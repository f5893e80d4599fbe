//! Random requests of random keys at random times, over a table that is far too small: a denied key
//! never gets more than its bucket allows, and nothing panics.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, MemoryStore, Policy, Quota, RateLimiter};

#[derive(Arbitrary, Debug)]
enum Step {
    Check { key: u8, cost: u32 },
    Refund { key: u8, cost: u32 },
    Advance(u64),
    StepBack(u64),
}

#[derive(Arbitrary, Debug)]
struct Input {
    quotas: Vec<(u32, u64, u32)>,
    max_keys: u8,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let mut policy: Option<Policy> = None;
    for (n, (count, period, burst)) in input.quotas.into_iter().take(4).enumerate() {
        let quota = Quota::try_new(count, Duration::from_nanos(period));
        let Ok(quota) = quota.and_then(|quota| quota.try_burst(burst)) else {
            return;
        };
        let name = n.to_string();
        policy = Some(match policy {
            Some(policy) => policy.and(&name, quota),
            None => Policy::new(&name, quota),
        });
    }
    let Some(policy) = policy else {
        return;
    };
    let clock = TestClock::default();
    let store = MemoryStore::new()
        .max_keys(input.max_keys.into())
        .clock(clock.clone());
    let limiter = RateLimiter::with_store(policy, &store);
    for step in input.steps {
        match step {
            Step::Check { key, cost } => {
                let decision = limiter
                    .check_n(&Key::id("k", &key.to_string()), cost)
                    .now()
                    .unwrap();
                for usage in decision.usages() {
                    assert!(usage.remaining() <= usage.limit());
                }
                if let Some(wait) = decision.retry_after() {
                    assert!(!decision.is_admitted() && wait > Duration::ZERO);
                }
            }
            Step::Refund { key, cost } => {
                let _ = limiter.refund(&Key::id("k", &key.to_string()), cost);
            }
            // The user of a test clock must avoid its overflow after 584 years.
            Step::Advance(nanos) => clock.advance(Duration::from_nanos(nanos >> 12)),
            Step::StepBack(nanos) => clock.step_back(Duration::from_nanos(nanos)),
        }
    }
});
