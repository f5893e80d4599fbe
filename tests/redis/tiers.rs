//! Tiers of a policy, counted in Redis.

use tower_admission::store::{FailureMode, RateStore, Reply};
use tower_admission::{
    ClientIp, Limits, Policy, Quota, RateLimitLayer, RateLimiter, RequestHead, SharedLimiters,
};

use crate::limits::{acme, burst};
use crate::server::{Server, store, until};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

fn free_and_pro() -> Policy {
    Policy::from(quota("3/h")).tier("pro", quota("10/h"))
}

#[tokio::test]
async fn what_one_tier_is_denied_says_nothing_of_another() {
    let server = Server::start().await;
    let limiter = RateLimiter::with_store(free_and_pro(), &server.store());
    let pro = limiter.tier("pro").unwrap();
    assert_eq!(burst(&limiter).await, 3);
    let from_cache = |limiter: &RateLimiter| {
        let decided = limiter.decide(&acme(), 1);
        matches!(decided, Reply::Ready(decision) if !decision.is_admitted())
    };
    assert!(from_cache(&limiter));
    assert_eq!(burst(pro).await, 7);
    assert!(from_cache(pro));
    // One place for each key, which is the last one's.
    assert!(!from_cache(&limiter));
    // Given back by one, it is there for both.
    pro.refund_all(&acme(), 1).await;
    assert!(limiter.decide(&acme(), 1).await.is_admitted());
    assert!(!pro.decide(&acme(), 1).await.is_admitted());
}

#[tokio::test]
async fn replicas_of_several_tiers_share_what_is_used() {
    let server = Server::start().await;
    let [one, other] = [(); 2].map(|()| RateLimiter::with_store(free_and_pro(), &server.store()));
    assert_eq!(burst(one.tier("pro").unwrap()).await, 10);
    assert_eq!(burst(&other).await, 0);
    other.refund_all(&acme(), 2).await;
    assert_eq!(burst(&one).await, 2);
}

#[tokio::test]
async fn limits_of_keys_and_changed_policies_count_in_tiers() {
    let server = Server::start().await;
    for kind in ["", " sliding"] {
        let tiered = |free: &str, pro: &str| {
            let of = |text: &str| quota(&format!("{text}{kind}"));
            Policy::from(of(free)).tier("pro", of(pro))
        };
        let limits = Limits::new();
        let limiter = RateLimiter::with_limits(tiered("3/h", "10/h"), &server.store(), &limits);
        let pro = limiter.tier("pro").unwrap();
        assert_eq!(burst(&limiter).await, 3);
        limits
            .set(&"org:acme".parse().unwrap(), "5/h".parse().unwrap())
            .await
            .unwrap();
        assert_eq!(burst(pro).await, 2);
        let denied = pro.decide(&acme(), 1).await;
        let own: Policy = quota(&format!("5/h{kind}")).into();
        assert_eq!(denied.policies(), Some(&[own][..]), "{kind}");
        limits.delete(&"org:acme".parse().unwrap()).await.unwrap();
        limiter.set_policy(tiered("8/h", "20/h")).unwrap();
        assert_eq!(burst(&limiter).await, 3);
        assert_eq!(burst(pro).await, 12);
        assert_eq!(burst(&limiter).await, 0);
    }
}

/// A quota that denies everything for a while keeps what its key has used, be it of a bucket or a window.
#[tokio::test]
async fn a_denial_is_none_of_what_is_stored() {
    let server = Server::start().await;
    for kind in ["", " sliding"] {
        let tiered = |free: &str, pro: &str| {
            let of = |text: &str| match text {
                "deny all" => Quota::deny_all(),
                text => quota(&format!("{text}{kind}")),
            };
            Policy::from(of(free)).tier("pro", of(pro))
        };
        let limits = Limits::new();
        let limiter = RateLimiter::with_limits(tiered("3/h", "10/h"), &server.store(), &limits);
        let pro = limiter.tier("pro").unwrap();
        // First seen while a tier is denied, in the place of which is nothing.
        limiter.set_policy(tiered("deny all", "10/h")).unwrap();
        assert_eq!(burst(&limiter).await, 0, "{kind}");
        let denied = limiter.decide(&acme(), 1).await;
        assert!(denied.is_hopeless(), "{denied:?}");
        for _ in 0..4 {
            assert!(pro.decide(&acme(), 1).await.is_admitted());
        }
        limiter.set_policy(tiered("3/h", "10/h")).unwrap();
        assert_eq!(burst(pro).await, 6, "{kind}");
        limiter.refund_all(&acme(), 10).await;
        assert_eq!(burst(&limiter).await, 3, "{kind}");
        // Then with something there.
        let key = "org:acme".parse().unwrap();
        limits.set(&key, "deny all".parse().unwrap()).await.unwrap();
        for tier in [&limiter, pro] {
            let denied = tier.decide(&acme(), 1).await;
            assert!(
                denied.is_hopeless() && denied.remaining() == Some(0),
                "{denied:?}"
            );
            assert!(tier.decide(&acme(), 0).await.is_admitted());
        }
        limits.delete(&key).await.unwrap();
        assert_eq!(burst(&limiter).await, 0, "{kind}");
        assert_eq!(burst(pro).await, 7, "{kind}");
        // What is given back meanwhile was not counted meanwhile.
        limiter.set_policy(tiered("deny all", "deny all")).unwrap();
        limiter.refund_all(&acme(), 1).await;
        assert!(!pro.decide(&acme(), 1).await.is_admitted());
        limiter.set_policy(tiered("3/h", "10/h")).unwrap();
        assert_eq!(burst(pro).await, 0, "{kind}");
        server.clear().await;
    }
}

#[tokio::test]
async fn the_order_in_which_a_layer_is_built_gives_it_no_other_name() {
    let server = Server::start().await;
    let by_user = |_: RequestHead<'_>| Some(acme()[0]);
    let layer = || RateLimitLayer::by(by_user, free_and_pro()).tier_by(|_| Some("pro"));
    let layer = layer()
        .store(server.store())
        .limits(&Limits::new())
        .store(server.store());
    assert!(layer.limiter().decide(&acme(), 1).await.is_admitted());
    let ip = layer.and_by(ClientIp::peer(), quota("9/h"));
    assert!(ip.limiter().decide(&acme(), 1).await.is_admitted());
    let keys = server.keys().await;
    assert!(keys.iter().all(|key| !key.contains('*')), "{keys:?}");
}

#[tokio::test]
async fn a_share_is_charged_in_every_tier() {
    let mut server = Server::start().await;
    // Shares of 10 and 5.
    let policy = Policy::from(quota("100/h")).tier("dear", quota("50/h"));
    let mode = FailureMode::LocalShare { replicas: 10 };
    let limiter = RateLimiter::with_store(policy, &server.store().on_failure(mode));
    let dear = limiter.tier("dear").unwrap();
    for _ in 0..20 {
        assert!(dear.decide(&acme(), 1).await.is_admitted());
    }
    server.kill();
    until("it is known to be away", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(10)
    })
    .await;
    assert_eq!(burst(&limiter).await, 0);
}

#[tokio::test]
async fn a_share_has_tiers() {
    let policy = Policy::from(quota("4/h"))
        .tier("pro", quota("10/h"))
        .tier("staff", Quota::off());
    let mode = FailureMode::LocalShare { replicas: 2 };
    // Away from the beginning.
    let away = store("redis://127.0.0.1:1").on_failure(mode);
    let limiter = RateLimiter::with_store(policy.clone(), &away);
    until("it is known to be away", async || {
        limiter.decide(&acme(), 0).await.remaining() == Some(2)
    })
    .await;
    let [pro, staff] = ["pro", "staff"].map(|tier| limiter.tier(tier).unwrap());
    assert_eq!(burst(&limiter).await, 2);
    assert_eq!(burst(pro).await, 3);
    assert!(staff.decide(&acme(), 1).await.is_admitted());
    // What is off is off, however the store fails.
    let closed = store("redis://127.0.0.1:1").on_failure(FailureMode::Closed);
    let closed = RateLimiter::with_store(policy.clone(), &closed);
    assert!(closed.decide(&acme(), 1).await.is_unavailable());
    let staff = closed.tier("staff").unwrap();
    assert!(staff.decide(&acme(), 1).await.is_admitted());
    // It fits the tier, if not the share of it.
    let hopeless = |limiter: &RateLimiter, cost| {
        let decided = limiter.decide(&acme(), cost);
        matches!(decided, Reply::Ready(decision) if decision.is_hopeless())
    };
    assert!(hopeless(&limiter, 9) && !hopeless(pro, 9) && hopeless(pro, 11));

    // It is charged for what Redis admits.
    let mut server = Server::start().await;
    let limiter = RateLimiter::with_store(policy, &server.store().on_failure(mode));
    let pro = limiter.tier("pro").unwrap();
    assert_eq!(burst(pro).await, 10);
    server.kill();
    until("it is known to be away", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(2)
    })
    .await;
    assert_eq!(burst(&limiter).await, 0);
    assert_eq!(burst(pro).await, 0);
}

#[tokio::test]
async fn a_tool_sees_every_tier() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    // One that has nothing to tell of its first policy.
    let off = RateLimitLayer::by(|_: RequestHead<'_>| Some(acme()[0]), Quota::off());
    let off = off.and_by(ClientIp::peer(), quota("7/h"));
    let _off = off.store(server.store()).limits(&limits);
    // Of the same name, without that tier.
    let store = server.store();
    let _plain = RateLimiter::with_limits(quota("9/h"), &store, &Limits::in_store(&store));
    let policy = Policy::new("free", quota("3/h")).tier("pro", quota("10/h"));
    let limiter = RateLimiter::with_limits(policy, &server.store(), &limits);
    assert!(
        limiter
            .tier("pro")
            .unwrap()
            .decide(&acme(), 5)
            .await
            .is_admitted()
    );
    let tool = Limits::in_store(&server.store());
    until("it is written down", async || {
        tool.refresh().await.unwrap();
        let seen = SharedLimiters::read(&tool, &server.store()).await.unwrap();
        let usages = seen.usage(&"org:acme".parse().unwrap()).await.unwrap();
        let told = usages.iter().map(|usage| {
            let default = seen.default_limit(usage);
            (usage.tier.as_deref(), usage.used, usage.limit, default)
        });
        told.collect::<Vec<_>>()
            == [
                (None, 0, Some(9), Some(9)),
                (None, 3, Some(3), Some(3)),
                (Some("pro"), 5, Some(10), Some(10)),
            ]
    })
    .await;
}

#[tokio::test]
async fn a_tool_sees_windows_that_deny_everything_for_now() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    let policy = |text: &str| Policy::new("free", quota(text)).tier("pro", quota("10/h sliding"));
    let limiter = RateLimiter::with_limits(policy("3/h sliding"), &server.store(), &limits);
    assert!(limiter.decide(&acme(), 1).await.is_admitted());
    let key = "org:acme".parse().unwrap();
    limits.set(&key, "free=5/h".parse().unwrap()).await.unwrap();
    limiter.set_policy(policy("deny all")).unwrap();
    let tool = Limits::in_store(&server.store());
    until("it is written down", async || {
        tool.refresh().await.unwrap();
        let seen = SharedLimiters::read(&tool, &server.store()).await.unwrap();
        let usages = seen.usage(&key).await.unwrap();
        let told = usages
            .iter()
            .map(|usage| (usage.used, usage.limit, seen.default_limit(usage)));
        told.collect::<Vec<_>>() == [(1, Some(5), Some(0)), (1, Some(10), Some(10))]
    })
    .await;
}

#[test]
fn what_counts_in_tiers_is_of_those_that_a_policy_has() {
    let store = store("redis://127.0.0.1:1");
    let buckets = store.open(&[free_and_pro()]);
    assert!(buckets.clone().tier("pro").is_some());
    assert!(buckets.tier("other").is_none());
}
