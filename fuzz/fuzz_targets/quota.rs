//! Any text is a quota or an error; a quota is written as it is read, and can be counted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, MemoryStore, Quota, RateLimiter};

fuzz_target!(|text: &str| {
    let Ok(quota) = text.parse::<Quota>() else {
        return;
    };
    assert_eq!(quota.to_string().parse(), Ok(quota));
    let store = MemoryStore::new().max_keys(8).clock(TestClock::default());
    let limiter = RateLimiter::with_store(quota, &store);
    let key = Key::id("user", "alice");
    for cost in [0, 1, u32::MAX] {
        let decision = limiter.check_n(&key, cost);
        assert!(
            decision.is_admitted() || decision.is_hopeless() || decision.retry_after().is_some()
        );
    }
});
