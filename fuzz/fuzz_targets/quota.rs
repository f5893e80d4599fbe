//! Any text is a quota, a limit, the name of a key, or an error. Each value formats to a text that
//! parses to it, and can be counted with.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, KeyName, Limit, Limits, MemoryStore, Policy, Quota, RateLimiter};

fuzz_target!(|text: &str| {
    name(text);
    limit(text);
    let Ok(quota) = text.parse::<Quota>() else {
        return;
    };
    assert_eq!(quota.to_string().parse(), Ok(quota));
    let store = MemoryStore::new().max_keys(8).clock(TestClock::default());
    let limiter = RateLimiter::with_store(quota, &store);
    count(&limiter);
});

fn name(text: &str) {
    // Kinds are never freed, and the number of kinds that are read is bounded.
    if !text.starts_with("org") && !text.starts_with("ip") {
        return;
    }
    if let Ok(name) = text.parse::<KeyName>() {
        let again: KeyName = name.as_str().parse().expect("a formatted name parses");
        assert_eq!((again.key(), &again), (name.key(), &name));
    }
}

fn limit(text: &str) {
    let Ok(limit) = text.parse::<Limit>() else {
        return;
    };
    assert_eq!(limit.to_string().parse(), Ok(limit.clone()));
    for all in [Quota::per_second(10), Quota::per_minute(60).sliding()] {
        let store = MemoryStore::new().max_keys(8).clock(TestClock::default());
        let limits = Limits::new();
        let policy = Policy::new("a", all);
        let limiter = RateLimiter::with_limits(policy, &store, &limits);
        count(&limiter);
        let name = "user:alice".parse().expect("a name");
        set(&limits, &name, &limit);
        count(&limiter);
    }
}

fn set(limits: &Limits, name: &KeyName, limit: &Limit) {
    let mut set = std::pin::pin!(limits.set(name, limit.clone()));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(set.as_mut().poll(&mut cx).is_ready());
}

fn count(limiter: &RateLimiter) {
    let key = Key::id("user", "alice");
    for cost in [0, 1, u32::MAX] {
        let decision = limiter.check_n(&key, cost).now().unwrap();
        assert!(
            decision.is_admitted() || decision.can_never_fit() || decision.retry_after().is_some()
        );
    }
}
