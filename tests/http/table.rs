//! Evictions at the bound on keys, and the limit per address that prevents them.

use std::time::Duration;

use http::Request;
use http::header::AUTHORIZATION;
use tower::Layer;
use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;
use tower_admission::{ByToken, ClientIp, Key, Policy, Quota, RateLimitLayer, RateLimiter};

use crate::common::{Counting, from_peer, status, store};

/// Twenty requests an hour for each key, counted in either way.
const QUOTAS: [Quota; 2] = [Quota::per_hour(20), Quota::per_hour(20).sliding()];

/// A limiter with room for few keys.
fn small(quota: Quota) -> RateLimiter {
    RateLimiter::with_store(quota, &store(&TestClock::default()).max_keys(200))
}

fn admits(limiter: &RateLimiter, key: &str, cost: u32) -> bool {
    let decision = limiter.check_n(&Key::id("user", key), cost).now().unwrap();
    decision.is_admitted()
}

/// Many keys that have used almost all of their quota.
fn flood(limiter: &RateLimiter) {
    for number in 0..5000 {
        admits(limiter, &format!("made up {number}"), 19);
    }
}

#[test]
fn a_key_rejected_at_cost_one_is_never_evicted() {
    for quota in QUOTAS {
        let limiter = small(quota);
        assert!(admits(&limiter, "victim", 20));
        flood(&limiter);
        for cost in [1, 10] {
            assert!(!admits(&limiter, "victim", cost), "{quota} at {cost}");
        }
    }
}

/// The second half of the sentence in the documentation.
#[test]
fn a_key_rejected_at_a_higher_cost_may_be_evicted() {
    for quota in QUOTAS {
        let limiter = small(quota);
        assert!(admits(&limiter, "victim", 15));
        assert!(!admits(&limiter, "victim", 10));
        flood(&limiter);
        assert!(admits(&limiter, "victim", 10), "{quota}");
    }
}

/// The number of evicted buckets that were not full, when this many addresses make up a token for
/// each request, as fast as they are admitted. The limits are 10/s burst 20 per token and 100/s per
/// address.
async fn evicted_with(addresses: usize, max_keys: usize) -> u64 {
    let clock = TestClock::default();
    let store = MemoryStore::new().max_keys(max_keys).clock(clock.clone());
    let layer = RateLimitLayer::by(
        ByToken::default(),
        Policy::new("token", Quota::per_second(10).burst(20)),
    )
    .and_by(
        ClientIp::peer(),
        Policy::new("address", Quota::per_second(100)),
    )
    .store(store);
    let service = layer.layer(Counting::default());
    let mut made_up = 0;
    let mut request = |address: usize| -> Request<()> {
        let mut request = from_peer(&format!("192.0.2.{address}"));
        made_up += 1;
        let token = format!("Bearer {made_up}").parse().unwrap();
        request.headers_mut().insert(AUTHORIZATION, token);
        request
    };
    for _ in 0..300 {
        for address in 0..addresses {
            while status(&service, request(address)).await == 200 {}
        }
        clock.advance(Duration::from_millis(10));
    }
    layer.limiter().stats().unwrap().evictions
}

#[tokio::test]
async fn a_limit_per_address_protects_the_table() {
    // An address starts at most its burst and what it regains in the 2 s in which a token's bucket
    // fills: 100 + 2 * 100. Three addresses start 900 tokens.
    assert_eq!(evicted_with(3, 1000).await, 0);
    // Twenty start 2,000 at once.
    assert!(evicted_with(20, 1000).await > 0);
}
