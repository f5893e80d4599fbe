//! What the bound on keys forgets, and the limit per address that keeps it from forgetting.

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

/// Many keys that have used almost all that they may.
fn flood(limiter: &RateLimiter) {
    for number in 0..5000 {
        admits(limiter, &format!("made up {number}"), 19);
    }
}

#[test]
fn a_key_that_is_rejected_at_a_cost_of_one_is_never_forgotten() {
    for quota in QUOTAS {
        let limiter = small(quota);
        assert!(admits(&limiter, "victim", 20));
        flood(&limiter);
        for cost in [1, 10] {
            assert!(!admits(&limiter, "victim", cost), "{quota} at {cost}");
        }
    }
}

/// The rest of the sentence in the documentation.
#[test]
fn a_key_that_is_rejected_at_a_higher_cost_may_be_forgotten() {
    for quota in QUOTAS {
        let limiter = small(quota);
        assert!(admits(&limiter, "victim", 15));
        assert!(!admits(&limiter, "victim", 10));
        flood(&limiter);
        assert!(admits(&limiter, "victim", 10), "{quota}");
    }
}

/// How many buckets are forgotten that are not full, when so many addresses make up a token for each
/// request, as fast as they are admitted, next to a limit of 10/s burst 20 for a token and of 100/s for
/// an address.
async fn forgotten_with(addresses: usize, max_keys: usize) -> u64 {
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
    // An address starts at most its burst and what it regains within the 2 s in which a token's bucket
    // fills: 100 + 2 * 100. Three of them start 900 tokens.
    assert_eq!(forgotten_with(3, 1000).await, 0);
    // Twenty start 2,000 at once.
    assert!(forgotten_with(20, 1000).await > 0);
}
