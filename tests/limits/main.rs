//! Overrides and default policies that change while they are in use.
#![cfg(feature = "test-util")]

mod base;
mod changes;
mod edits;
mod ends;
mod explain;
mod layers;
mod model;
mod races;
mod rules;
mod stale;
mod tiers;

use std::time::Duration;

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{Key, KeyName, Limit, Limits, Policy, RateLimiter};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A limiter on a stopped clock, and the limits of its keys.
pub(crate) struct Bench {
    pub(crate) clock: TestClock,
    pub(crate) limits: Limits,
    pub(crate) limiter: RateLimiter,
}

impl Bench {
    pub(crate) fn new(policy: impl Into<Policy>) -> Self {
        let clock = TestClock::default();
        // Leaves room for the clock to step back.
        clock.advance(1_000_000 * SECOND);
        let store = MemoryStore::new().clock(clock.clone());
        let limits = Limits::new().clock(clock.clone());
        Self {
            limiter: RateLimiter::with_limits(policy, &store, &limits),
            limits,
            clock,
        }
    }

    /// The number of requests of cost 1 that are admitted now.
    pub(crate) fn burst(&self, key: &Key) -> u32 {
        let mut admitted = 0;
        while self.limiter.check_now(key).unwrap().is_admitted() {
            admitted += 1;
        }
        admitted
    }

    pub(crate) fn set(&self, key: &str, limit: &str) -> Option<Limit> {
        now(self.limits.set(&name(key), limit.parse().unwrap())).unwrap()
    }

    pub(crate) fn delete(&self, key: &str) -> Option<Limit> {
        now(self.limits.delete(&name(key))).unwrap()
    }
}

pub(crate) fn name(key: &str) -> KeyName {
    key.parse().unwrap()
}

/// The value of a future that is ready.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut task = tokio_test::task::spawn(future);
    match task.poll() {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("the future is pending"),
    }
}

pub(crate) fn acme() -> Key {
    Key::id("org", "acme")
}
