//! Tiers in Redis.

use tower_admission::store::{Charge, FailureMode, RateStore, Reply};
use tower_admission::{
    ClientIp, Key, KeyName, Limits, LimitsError, Policy, Quota, RateLimitLayer, RateLimiter,
    RequestHead, SharedLimiters,
};

use crate::limits::{acme, burst};
use crate::server::{Server, store, until};

fn quota(text: &str) -> Quota {
    text.parse().unwrap()
}

fn org_acme() -> KeyName {
    "org:acme".parse().unwrap()
}

fn free_and_pro() -> Policy {
    Policy::from(quota("3/h")).tier("pro", quota("10/h"))
}

fn from_cache(limiter: &RateLimiter) -> bool {
    let decided = limiter.decide(&acme(), 1);
    matches!(decided, Reply::Ready(decision) if !decision.is_admitted())
}

#[tokio::test]
async fn each_tier_has_its_own_buckets() {
    let server = Server::start().await;
    let policy = free_and_pro().tier("a b", "default=2/h");
    let limiter = RateLimiter::with_store(policy, &server.store());
    let [pro, spaced] = ["pro", "a b"].map(|tier| limiter.tier(tier).unwrap());
    for _ in 0..2 {
        assert_eq!(burst(&limiter).await, 3);
        assert_eq!(burst(&pro).await, 10);
        assert_eq!(burst(&spaced).await, 2);
        let mut keys = server.keys().await;
        keys.sort_unstable();
        let begins = [
            "admission:rate:default:",
            "admission:rate:default@a%20b:",
            "admission:rate:default@pro:",
        ];
        assert!(
            keys.iter()
                .zip(begins)
                .all(|(key, begin)| key.starts_with(begin)),
            "{keys:?}"
        );
        assert_eq!(keys.len(), 3);
        // A refund is of one tier.
        pro.refund_all(&acme(), 4).await;
        assert_eq!(burst(&limiter).await, 0);
        assert_eq!(burst(&pro).await, 4);
        // What is cached of one tier says nothing of another.
        assert!([&limiter, &pro, &spaced].into_iter().all(from_cache));
        limiter.refund_all(&acme(), 3).await;
        pro.refund_all(&acme(), 10).await;
        spaced.refund_all(&acme(), 2).await;
    }
}

#[tokio::test]
async fn replicas_share_each_tier() {
    let server = Server::start().await;
    let [one, other] = [(); 2].map(|()| RateLimiter::with_store(free_and_pro(), &server.store()));
    let [one_pro, other_pro] = [&one, &other].map(|limiter| limiter.tier("pro").unwrap());
    assert_eq!(burst(&one_pro).await, 10);
    assert_eq!(burst(&other_pro).await, 0);
    assert_eq!(burst(&other).await, 3);
    assert_eq!(burst(&one).await, 0);
    other_pro.refund_all(&acme(), 2).await;
    // A third, which has denied nothing.
    let third = RateLimiter::with_store(free_and_pro(), &server.store());
    assert_eq!(burst(&third.tier("pro").unwrap()).await, 2);
    assert_eq!(burst(&third).await, 0);
}

#[tokio::test]
async fn a_new_tier_changes_no_usage() {
    let server = Server::start().await;
    let limits = Limits::new();
    let plain = RateLimiter::with_limits(quota("3/h"), &server.store(), &limits);
    assert!(plain.decide(&acme(), 2).await.is_admitted());
    // A later version of the service.
    let tiered = RateLimiter::with_store(free_and_pro(), &server.store());
    assert_eq!(tiered.peek_all(&acme(), 0).await.remaining(), Some(1));
    assert!(
        tiered
            .tier("pro")
            .unwrap()
            .decide(&acme(), 2)
            .await
            .is_admitted()
    );
    // While it runs, for all limiters and for one.
    limits.try_tier("pro", "9/h".parse().unwrap()).unwrap();
    let max = free_and_pro().tier("max", quota("20/h"));
    plain.set_policy(max).unwrap();
    assert_eq!(plain.decide(&acme(), 1).await.remaining(), Some(0));
    let [pro, max] = ["pro", "max"].map(|tier| plain.tier(tier).unwrap());
    assert_eq!(
        pro.decide(&acme(), 0).await.limit(),
        Some(10),
        "its own goes first"
    );
    assert_eq!(burst(&pro).await, 8);
    assert_eq!(burst(&max).await, 20);
}

#[tokio::test]
async fn overrides_and_changes_count_in_each_tier() {
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
        assert!(pro.decide(&acme(), 4).await.is_admitted());
        limits
            .set(&org_acme(), "5/h".parse().unwrap())
            .await
            .unwrap();
        assert_eq!(burst(&limiter).await, 2, "{kind}");
        assert_eq!(burst(&pro).await, 1, "{kind}");
        assert_eq!(pro.decide(&acme(), 1).await.limit(), Some(5));
        limits.delete(&org_acme()).await.unwrap();
        assert_eq!(burst(&limiter).await, 0);
        assert_eq!(burst(&pro).await, 5, "{kind}");
        limiter.set_policy(tiered("8/h", "20/h")).unwrap();
        assert_eq!(burst(&limiter).await, 3, "{kind}");
        assert_eq!(burst(&pro).await, 10, "{kind}");
        server.clear().await;
    }
}

/// A quota that denies everything for a while keeps what its key has used, be it of a bucket or a window.
#[tokio::test]
async fn a_rejection_in_a_tier_is_not_stored() {
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
        // First seen while its tier is denied, in the place of which is nothing.
        limiter.set_policy(tiered("deny all", "10/h")).unwrap();
        let denied = limiter.decide(&acme(), 1).await;
        assert!(denied.can_never_fit(), "{denied:?}");
        assert!(pro.decide(&acme(), 4).await.is_admitted());
        limiter.set_policy(tiered("3/h", "10/h")).unwrap();
        assert_eq!(burst(&limiter).await, 3, "{kind}");
        // Then with something there.
        limits
            .set(&org_acme(), "deny all".parse().unwrap())
            .await
            .unwrap();
        for tier in [&limiter, &pro] {
            let denied = tier.decide(&acme(), 1).await;
            assert!(
                denied.can_never_fit() && denied.remaining() == Some(0),
                "{denied:?}"
            );
            assert!(tier.decide(&acme(), 0).await.is_admitted());
        }
        limits.delete(&org_acme()).await.unwrap();
        assert_eq!(burst(&limiter).await, 0, "{kind}");
        assert_eq!(burst(&pro).await, 6, "{kind}");
        // Nothing counts meanwhile, so there is nothing to give back.
        limiter.set_policy(tiered("deny all", "deny all")).unwrap();
        pro.refund_all(&acme(), 1).await;
        assert!(!pro.decide(&acme(), 1).await.is_admitted());
        limiter.set_policy(tiered("3/h", "10/h")).unwrap();
        assert_eq!(burst(&pro).await, 0, "{kind}");
        server.clear().await;
    }
}

/// A quota without an algorithm of its own has that of the tier, and replicas of both leave each other alone.
#[tokio::test]
async fn a_window_and_a_bucket_of_one_tier_count_separately() {
    let server = Server::start().await;
    let store = server.store().on_failure(FailureMode::Closed);
    let pro = |tier: &str| {
        let limiter =
            RateLimiter::with_store(Policy::from(Quota::off()).tier("pro", quota(tier)), &store);
        // The next one has its name.
        limiter.tier("pro").unwrap()
    };
    let mut admitted = [0, 0];
    for _ in 0..6 {
        for (n, tier) in ["5/h", "5/h sliding"].into_iter().enumerate() {
            let decision = pro(tier).decide(&acme(), 1).await;
            assert!(!decision.is_unavailable(), "{decision:?}");
            admitted[n] += u32::from(decision.is_admitted());
        }
    }
    assert_eq!(admitted, [5, 5]);
}

/// A tier keeps its algorithm while the default has none.
#[tokio::test]
async fn the_usage_of_a_tier_stays_while_the_default_is_off() {
    let server = Server::start().await;
    let limits = Limits::new().tier("pro", "calls=10/h");
    let calls = |text: &str| Policy::new("calls", quota(text));
    for store in [
        &server.store() as &dyn RateStore,
        &tower_admission::MemoryStore::new(),
    ] {
        let limiter = RateLimiter::with_limits(calls("3/h sliding"), store, &limits);
        let pro = limiter.tier("pro").unwrap();
        assert!(pro.decide(&acme(), 4).await.is_admitted());
        for (n, text) in ["off", "deny all", "3/h sliding"]
            .into_iter()
            .cycle()
            .take(24)
            .enumerate()
        {
            limiter.set_policy(calls(text)).unwrap();
            let left = pro.peek_all(&acme(), 0).await.remaining();
            assert_eq!(left, Some(6), "{text}, change {n}");
        }
    }
}

#[tokio::test]
async fn the_order_of_setters_does_not_change_the_name() {
    let server = Server::start().await;
    let by_user = |_: RequestHead<'_>| Some(acme()[0]);
    let layer = RateLimitLayer::by(by_user, free_and_pro()).tier_by(|_| Some("pro"));
    let layer = layer
        .store(server.store())
        .limits(&Limits::new())
        .store(server.store());
    assert!(layer.limiter().decide(&acme(), 1).await.is_admitted());
    drop(layer);
    let store = server.store();
    let ip = RateLimitLayer::by(by_user, free_and_pro()).store(store.clone());
    let ip = ip
        .and_by(ClientIp::peer(), quota("9/h"))
        .limits(&Limits::new())
        .store(store);
    assert!(ip.limiter().decide(&acme(), 1).await.is_admitted());
    let keys = server.keys().await;
    assert!(keys.iter().all(|key| !key.contains('*')), "{keys:?}");
}

#[tokio::test]
async fn a_stored_tier_reaches_every_replica() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()).tier("pro", "10/h"));
    let limiter = RateLimiter::with_limits(quota("3/h"), &server.store(), &there);
    assert_eq!(burst(&limiter).await, 3);
    here.set(&org_acme(), "tier=pro".parse().unwrap())
        .await
        .unwrap();
    until("the other replica knows", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(10)
    })
    .await;
    assert_eq!(burst(&limiter).await, 10);
    let unknown = here.set(&org_acme(), "tier=max".parse().unwrap()).await;
    assert!(
        matches!(unknown, Err(LimitsError::UnknownTier { .. })),
        "{unknown:?}"
    );

    // A tool that declares none may store any. One that a replica does not know is the default.
    let tool = Limits::in_store(&server.store());
    tool.set(&org_acme(), "tier=max".parse().unwrap())
        .await
        .unwrap();
    until("the other replica knows", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(3)
    })
    .await;
    assert_eq!(burst(&limiter).await, 0);
    let used = there.usage(&org_acme()).await;
    let used: Vec<_> = used
        .iter()
        .map(|usage| (usage.tier.as_deref(), usage.used))
        .collect();
    assert_eq!(used, [(None, 3), (Some("pro"), 10)]);
    // Until it does.
    there.try_tier("max", "20/h".parse().unwrap()).unwrap();
    assert_eq!(burst(&limiter).await, 20);
    // What replaces numbers does so in the tier.
    tool.set(&org_acme(), "tier=max, default=22/h".parse().unwrap())
        .await
        .unwrap();
    until("the other replica knows", async || {
        limiter.decide(&acme(), 0).await.limit() == Some(22)
    })
    .await;
    assert_eq!(burst(&limiter).await, 2);
}

/// What a request is charged to is known before its denial is: by the override that was in force.
#[tokio::test]
async fn a_cached_rejection_applies_only_to_its_override() {
    let server = Server::start().await;
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(quota("3/h"), &server.store(), &limits);
    assert_eq!(burst(&limiter).await, 3);
    for own in ["5/h", "7/h"] {
        // What is cached is forgotten with it.
        limits
            .set(&org_acme(), "1/h".parse().unwrap())
            .await
            .unwrap();
        let late = limiter.decide(&acme(), 1);
        assert!(matches!(late, Reply::Pending(_)));
        limits.set(&org_acme(), own.parse().unwrap()).await.unwrap();
        assert!(!late.await.is_admitted());
        assert_eq!(burst(&limiter).await, 2, "{own}");
    }
}

/// Nothing is asked of Redis about what is not limited.
#[tokio::test]
async fn a_quota_that_is_off_stays_off_in_every_failure_mode() {
    let closed = store("redis://127.0.0.1:1").on_failure(FailureMode::Closed);
    let limits = Limits::new();
    let policy = Policy::from(quota("4/h")).tier("staff", Quota::off());
    let limiter = RateLimiter::with_limits(policy, &closed, &limits);
    let staff = limiter.tier("staff").unwrap();
    assert!(limiter.decide(&acme(), 1).await.is_unavailable());
    for cost in [0, 1, 1_000] {
        assert!(staff.check_n(&acme()[0], cost).now().unwrap().is_admitted());
    }
    limits
        .set(&org_acme(), "unlimited".parse().unwrap())
        .await
        .unwrap();
    assert!(limiter.check_now(&acme()[0]).unwrap().is_admitted());
    assert!(limiter.refund_all(&acme(), 1).now().is_some());
    limits
        .set(&org_acme(), "deny all".parse().unwrap())
        .await
        .unwrap();
    assert!(staff.decide(&acme(), 1).await.is_unavailable());
}

/// Whether decisions are there at once, as no call is made.
async fn is_known_to_be_away(limiter: &RateLimiter) -> bool {
    let reply = limiter.decide(&acme(), 0);
    let is_known = matches!(reply, Reply::Ready(_));
    let _ = reply.await;
    is_known
}

#[tokio::test]
async fn a_share_has_tiers() {
    let policy = Policy::from(quota("4/h")).tier("pro", quota("10/h"));
    let mode = FailureMode::LocalShare { replicas: 2 };
    // Away from the beginning.
    let away = store("redis://127.0.0.1:1").on_failure(mode);
    let limits = Limits::new();
    let limiter = RateLimiter::with_limits(policy.clone(), &away, &limits);
    until("it is known to be away", async || {
        is_known_to_be_away(&limiter).await
    })
    .await;
    let pro = limiter.tier("pro").unwrap();
    assert_eq!(burst(&limiter).await, 2);
    assert_eq!(burst(&pro).await, 5);
    // It fits the tier, if not the share of it.
    let hopeless = |limiter: &RateLimiter, cost| {
        let decided = limiter.decide(&acme(), cost);
        matches!(decided, Reply::Ready(decision) if decision.can_never_fit())
    };
    assert!(hopeless(&limiter, 9) && !hopeless(&pro, 9) && hopeless(&pro, 11));
    // It follows overrides, changes and tiers that are added.
    limits
        .set(&org_acme(), "30/h".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(burst(&limiter).await, 13);
    assert_eq!(burst(&pro).await, 10);
    assert_eq!(pro.decide(&acme(), 0).await.limit(), Some(30));
    limits.delete(&org_acme()).await.unwrap();
    let more = Policy::from(quota("40/h")).tier("pro", quota("50/h"));
    limiter.set_policy(more.tier("max", quota("60/h"))).unwrap();
    // A bucket in memory lacks no more than an empty one: 2 of 4 and 5 of 10.
    assert_eq!(burst(&limiter).await, 18);
    assert_eq!(burst(&pro).await, 20);
    assert_eq!(burst(&limiter.tier("max").unwrap()).await, 30);
    limits.try_tier("new", quota("8/h").into()).unwrap();
    assert_eq!(burst(&limiter.tier("new").unwrap()).await, 4);

    // It is charged for what Redis admits, in the tier.
    let mut server = Server::start().await;
    let limiter = RateLimiter::with_store(policy, &server.store().on_failure(mode));
    let pro = limiter.tier("pro").unwrap();
    assert!(pro.decide(&acme(), 3).await.is_admitted());
    server.kill();
    until("it is known to be away", async || {
        is_known_to_be_away(&limiter).await
    })
    .await;
    assert_eq!(burst(&limiter).await, 2);
    assert_eq!(burst(&pro).await, 2);
}

/// What a tool sees of a limit: its tier, what is used, the limit, and the default.
type Seen<'a> = (Option<&'a str>, u64, Option<u64>, Option<u64>);

async fn is_seen(server: &Server, tool: &Limits, expected: &[Seen<'_>]) {
    until(&format!("a tool sees {expected:?}"), async || {
        tool.refresh().await.unwrap();
        let seen = SharedLimiters::read(tool, &server.store()).await.unwrap();
        let usages = seen.usage(&org_acme()).await.unwrap();
        let usages = usages.iter().map(|usage| {
            let default = seen.default_limit(usage);
            (usage.tier.as_deref(), usage.used, usage.limit, default)
        });
        usages.collect::<Vec<_>>() == expected
    })
    .await;
}

#[tokio::test]
async fn a_tool_sees_every_tier() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    // One whose first policy limits nothing.
    let off = RateLimitLayer::by(|_: RequestHead<'_>| Some(acme()[0]), Quota::off());
    let off = off.and_by(ClientIp::peer(), quota("7/h"));
    let off = off.store(server.store()).limits(&limits);
    // Which a layer opens once it is complete.
    let _off = off.limiter();
    // Of another store of the same process.
    let store = server.store();
    let _plain = RateLimiter::with_limits(Policy::new("plain", quota("9/h")), &store, &limits);
    let policy = Policy::new("free", quota("3/h")).tier("pro", quota("10/h"));
    let limiter = RateLimiter::with_limits(policy.tier("staff", Quota::off()), &store, &limits);
    let pro = limiter.tier("pro").unwrap();
    assert!(pro.decide(&acme(), 5).await.is_admitted());
    let tool = Limits::in_store(&server.store());
    let plain = (None, 0, Some(9), Some(9));
    let in_pro = (Some("pro"), 5, Some(10), Some(10));
    is_seen(
        &server,
        &tool,
        &[(None, 0, Some(3), Some(3)), in_pro, plain],
    )
    .await;
    // One that has another tier stored, one that nobody knows, and one of a tier that limits nothing.
    for (tier, expected) in [
        ("tier=pro", &[in_pro, plain][..]),
        ("tier=other", &[(None, 0, Some(3), Some(3)), in_pro, plain]),
        ("tier=staff", &[in_pro, plain]),
        ("tier=pro, unlimited", &[]),
        (
            "tier=pro, free=20/h",
            &[
                (None, 0, Some(20), Some(3)),
                (Some("pro"), 5, Some(20), Some(10)),
                plain,
            ],
        ),
    ] {
        tool.set(&org_acme(), tier.parse().unwrap()).await.unwrap();
        is_seen(&server, &tool, expected).await;
    }
    // What the tool declares for itself is nothing to the limiters of others.
    for n in 0..Policy::MAX_TIERS {
        tool.try_tier(&n.to_string(), "1/s".parse().unwrap())
            .unwrap();
    }
    tool.delete(&org_acme()).await.unwrap();
    is_seen(
        &server,
        &tool,
        &[(None, 0, Some(3), Some(3)), in_pro, plain],
    )
    .await;
}

#[tokio::test]
async fn a_tool_sees_a_window_with_deny_all() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store()).tier("pro", "10/h sliding");
    let policy = |text: &str| Policy::new("free", quota(text));
    let limiter = RateLimiter::with_limits(policy("3/h sliding"), &server.store(), &limits);
    let pro = limiter.tier("pro").unwrap();
    assert!(limiter.decide(&acme(), 1).await.is_admitted());
    assert!(pro.decide(&acme(), 2).await.is_admitted());
    limits
        .set(&org_acme(), "free=5/h".parse().unwrap())
        .await
        .unwrap();
    limiter.set_policy(policy("deny all")).unwrap();
    limits.try_tier("pro", "deny all".parse().unwrap()).unwrap();
    let tool = Limits::in_store(&server.store());
    let expected = [
        (None, 1, Some(5), Some(0)),
        (Some("pro"), 2, Some(5), Some(0)),
    ];
    is_seen(&server, &tool, &expected).await;
}

#[tokio::test]
async fn a_store_adds_tiers_to_each_policy() {
    let store = store("redis://127.0.0.1:1").on_failure(FailureMode::Closed);
    let buckets = store.open(&[free_and_pro(), Policy::new("ip", quota("3/h"))]);
    let mut sets = Vec::new();
    for policy in 0..2 {
        for tier in 0..2 * Policy::MAX_TIERS {
            let name = format!("tier {tier}");
            sets.extend(buckets.add_tier(policy, &name, &quota("3/h").into()));
        }
    }
    assert_eq!(sets, (2..66).collect::<Vec<_>>());
    assert_eq!(buckets.add_tier(0, "more", &quota("3/h").into()), None);
    // Of a set that there is not.
    assert!(!buckets.set_quotas(66, &[quota("3/h")]));
    let nowhere = [Charge::new(Key::SHARED, 99)];
    assert!(buckets.take(&nowhere, 1).await.is_admitted());
}

/// A tier keeps the algorithm that it was opened with, whatever the default has by now.
#[tokio::test]
async fn a_tool_sees_a_tier_whose_default_has_another_algorithm() {
    let server = Server::start().await;
    for (opened, tier, default, changed) in [
        ("off", "10/h sliding", "3/h", "10/h sliding"),
        ("3/h sliding", "deny all", "3/h sliding", "10/h sliding"),
    ] {
        server.clear().await;
        let limits = Limits::in_store(&server.store()).tier("pro", tier);
        let policy = |text: &str| Policy::new("free", quota(text));
        let limiter = RateLimiter::with_limits(policy(opened), &server.store(), &limits);
        limiter.set_policy(policy(default)).unwrap();
        limits.try_tier("pro", changed.parse().unwrap()).unwrap();
        let pro = limiter.tier("pro").unwrap();
        assert!(pro.decide(&acme(), 2).await.is_admitted());
        let tool = Limits::in_store(&server.store());
        let free = (None, 0, Some(3), Some(3));
        let in_pro = (Some("pro"), 2, Some(10), Some(10));
        is_seen(&server, &tool, &[free, in_pro]).await;
    }
}

#[tokio::test]
async fn a_tool_fails_if_it_cannot_read_a_tier() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
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
    let free = (None, 0, Some(3), Some(3));
    is_seen(
        &server,
        &tool,
        &[free, (Some("pro"), 5, Some(10), Some(10))],
    )
    .await;
    let key = server
        .keys()
        .await
        .into_iter()
        .find(|key| key.contains("@pro"))
        .unwrap();
    server.command(&["SET", &key, "junk"]).await.unwrap();
    let store = server.store().on_failure(FailureMode::Closed);
    let seen = SharedLimiters::read(&tool, &store).await.unwrap();
    let usage = seen.usage(&org_acme()).await;
    assert!(usage.is_err(), "{usage:?}");
}
