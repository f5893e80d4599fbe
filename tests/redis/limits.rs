//! Limits that change, in Redis.

use std::time::Duration;

use tower_admission::store::FailureMode;
use tower_admission::{Key, Limits, Policy, Quota, RateLimiter};

use crate::server::{Server, store, until};

const SECOND: Duration = Duration::from_secs(1);

fn acme() -> [Key; 1] {
    [Key::id("org", "acme")]
}

fn calls(quota: &str) -> Policy {
    Policy::new("calls", quota.parse::<Quota>().unwrap())
}

async fn set(limits: &Limits, limit: &str) {
    let key = "org:acme".parse().unwrap();
    limits.set(&key, limit.parse().unwrap()).await.unwrap();
}

async fn burst(limiter: &RateLimiter) -> u32 {
    let mut admitted = 0;
    while limiter.decide(&acme(), 1).await.is_admitted() {
        admitted += 1;
    }
    admitted
}

#[tokio::test]
async fn a_key_has_its_own_quota() {
    let server = Server::start().await;
    for kind in ["", " sliding"] {
        let limits = Limits::new();
        let all = calls(&format!("10/h{kind}"));
        let limiter = RateLimiter::with_limits(all.clone(), &server.store(), &limits);
        assert_eq!(burst(&limiter).await, 10);
        // The denial that is kept here does not outlive the limit.
        set(&limits, "25/h").await;
        assert_eq!(burst(&limiter).await, 15, "{kind}");
        let denied = limiter.decide(&acme(), 1).await;
        assert_eq!(
            denied.policies(),
            Some(&[calls(&format!("25/h{kind}"))][..])
        );
        limits.delete(&"org:acme".parse().unwrap()).await.unwrap();
        assert_eq!(burst(&limiter).await, 0);
        limiter.set_policy(calls(&format!("12/h{kind}"))).unwrap();
        // The bucket that was lowered owes no more than an empty one; the window counts on.
        let rest = burst(&limiter).await;
        assert_eq!(rest, if kind.is_empty() { 2 } else { 0 });
        let other = [Key::id("org", "other")];
        assert_eq!(limiter.decide(&other, 1).await.limit(), Some(12));
    }
}

/// Retry-After is kept: what is more than an empty bucket owes is forgiven for good.
#[tokio::test]
async fn a_lowered_limit_comes_back_when_it_says() {
    let server = Server::start().await;
    for (all, own) in [
        ("1/s burst 1000", "20/s burst 2"),
        ("1/s burst 1000", "1 per 100ms burst 1"),
        ("20/s burst 1000", "20/s burst 2"),
        ("1000/h sliding", "5/s"),
        ("5/s burst 1000 sliding", "5/s"),
    ] {
        let limits = Limits::new();
        let limiter = RateLimiter::with_limits(calls(all), &server.store(), &limits);
        assert!(limiter.decide(&acme(), 900).await.is_admitted());
        set(&limits, own).await;
        let denied = limiter.decide(&acme(), 1).await;
        assert!(!denied.is_admitted(), "{own}");
        let wait = denied.retry_after().unwrap();
        assert!(wait <= 2 * SECOND, "{own} after {all}: {wait:?}");
        tokio::time::sleep(wait).await;
        assert!(
            limiter.decide(&acme(), 1).await.is_admitted(),
            "{own} after {all}"
        );
        server.clear().await;
    }
}

#[tokio::test]
async fn a_share_goes_by_the_keys_own_quota() {
    let store = store("redis://127.0.0.1:1").on_failure(FailureMode::LocalShare { replicas: 2 });
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(calls("10/h"), &store, &limits);
    until("it is known to be away", async || {
        limiter.decide(&acme(), 0).await.remaining() == Some(5)
    })
    .await;
    assert_eq!(burst(&limiter).await, 5);
    set(&limits, "30/h").await;
    assert_eq!(burst(&limiter).await, 10);
    let decision = limiter.decide(&acme(), 0).await;
    assert_eq!(decision.policies(), Some(&[calls("30/h")][..]));
}
