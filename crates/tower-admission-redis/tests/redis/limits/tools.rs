//! Limiters in Redis, as tools see them.

use tower_admission::store::StoreStatus;
use tower_admission::{
    ByToken, ClientIp, ConcurrencyLimitLayer, CountedIn, Key, Leases, LimitUsage, Limits,
    LimitsError, Policy, Quota, RateLimiter, SharedLimiters,
};

use super::{acme, calls, name, set};
use crate::server::{Server, until};

/// What a tool sees: for each limit its name, what is used, the limit, and whether it is the key's own.
async fn seen(
    limits: &Limits,
    server: &Server,
    key: &str,
) -> Vec<(String, u64, Option<u64>, bool)> {
    limits.refresh().await.unwrap();
    let limiters = SharedLimiters::read(limits, &server.store()).await.unwrap();
    let usages = limiters.usage(&name(key)).await.unwrap();
    let usages = usages.iter();
    usages
        .map(|usage| {
            (
                usage.name.to_string(),
                usage.used,
                usage.limit,
                usage.is_override,
            )
        })
        .collect()
}

#[tokio::test]
async fn a_tool_sees_what_services_count() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    let policy = calls("10/h").and("daily", "100/day sliding".parse().unwrap());
    // The second of the same names counts in another place.
    let service = server.store();
    let [limiter, second] =
        [(); 2].map(|()| RateLimiter::with_limits(policy.clone(), &service, &limits));
    let layer = ConcurrencyLimitLayer::new(50)
        .name("jobs")
        .limits(&limits)
        .per_key(ByToken::default(), 5)
        .per_key(ClientIp::peer(), 8)
        .store(server.store());
    // Not in Redis, so there is nothing to see.
    let _memory = RateLimiter::with_limits(
        Policy::new("here", Quota::per_hour(1)),
        &tower_admission::MemoryStore::new(),
        &limits,
    );
    let permit = layer
        .limiter()
        .acquire_for(&[acme()[0], Key::ip([192, 0, 2, 1].into())])
        .await
        .unwrap();
    assert!(limiter.decide(&acme(), 4).await.is_admitted());
    assert!(second.decide(&acme(), 7).await.is_admitted());

    let tool = Limits::in_store(&server.store());
    let entry =
        |name: &str, used, limit, is_override| (name.to_owned(), used, Some(limit), is_override);
    let expected = [
        entry("jobs", 1, 5, false),
        entry("calls", 4, 10, false),
        entry("daily", 4, 100, false),
        entry("calls", 7, 10, false),
        entry("daily", 7, 100, false),
    ];
    until("all are written down", async || {
        seen(&tool, &server, "org:acme").await == expected
    })
    .await;
    let of_address = seen(&tool, &server, "ip:192.0.2.1").await;
    assert_eq!(of_address[0], entry("jobs", 1, 8, false));
    set(&limits, "calls=25/h, 7 concurrent").await;
    let own = seen(&tool, &server, "org:acme").await;
    assert_eq!(own[0], entry("jobs", 1, 7, true));
    assert_eq!(own[1], entry("calls", 4, 25, true));
    let limiters = SharedLimiters::read(&tool, &server.store()).await.unwrap();
    let usages = limiters.usage(&name("org:acme")).await.unwrap();
    let defaults: Vec<_> = usages.iter().map(|u| limiters.default_limit(u)).collect();
    assert_eq!(defaults, [5, 10, 100, 10, 100].map(Some));
    let totals = limiters.totals().await.unwrap();
    assert_eq!((totals.len(), totals[0].used), (1, 1));
    assert_eq!(totals[0].limit, Some(50));

    // What is changed is written anew.
    limiter
        .set_policy(calls("12/h").and("daily", "200/day sliding".parse().unwrap()))
        .unwrap();
    layer.limiter().set_limit_per_key(0, 6);
    until("the change is written down", async || {
        let other = seen(&tool, &server, "org:other").await;
        other[..3]
            == [
                entry("jobs", 0, 6, false),
                entry("calls", 0, 12, false),
                entry("daily", 0, 200, false),
            ]
    })
    .await;
    // So is what was lost.
    server.clear().await;
    until("all are written down again", async || {
        seen(&tool, &server, "org:acme").await.len() == 5
    })
    .await;
    drop(permit);
}

#[tokio::test]
async fn outdated_descriptions_expire_and_unreadable_ones_are_skipped() {
    let server = Server::start().await;
    let hash = "{admission:limits}:limiters";
    let mut connection = server.connection().await.unwrap();
    let gone = r#"1000 {"sort":"rate","place":"admission:rate:gone","policies":[[{"name":"gone","quota":"1/s"}]]}"#;
    let now = 4_000_000_000_u64;
    let odd = [
        format!(r#"{now} {{"sort":"rate","place":"admission:rate:odd","policies":[]}}"#),
        format!(
            r#"{now} {{"sort":"rate","place":"elsewhere","policies":[[{{"name":"a","quota":"1/s"}}]]}}"#
        ),
        format!(r#"{now} {{"sort":"lease","name":"x","place":"y","total":1,"per_key":[1]}}"#),
        format!("{now} junk"),
        "junk".to_owned(),
    ];
    let mut write = redis::cmd("HSET");
    write.arg(hash).arg("gone").arg(gone);
    for (n, odd) in odd.iter().enumerate() {
        write.arg(format!("odd {n}")).arg(odd);
    }
    write.arg("bytes").arg(&b"4000000000 \xff\xfe"[..]);
    write.query_async::<()>(&mut connection).await.unwrap();
    let tool = Limits::in_store(&server.store());
    assert_eq!(seen(&tool, &server, "org:acme").await, []);

    let limits = Limits::in_store(&server.store());
    let _limiter = RateLimiter::with_limits(calls("10/h"), &server.store(), &limits);
    until("it is written down", async || {
        seen(&tool, &server, "org:acme").await.len() == 1
    })
    .await;
    let ttl = server.command(&["TTL", hash]).await.unwrap();
    let redis::Value::Int(ttl) = ttl else {
        panic!("{ttl:?}")
    };
    assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    let gone = server.command(&["HEXISTS", hash, "gone"]).await.unwrap();
    assert_eq!(gone, redis::Value::Int(0));

    // Something else altogether.
    server.command(&["SET", hash, "junk"]).await.unwrap();
    let read = SharedLimiters::read(&tool, &server.store()).await;
    assert!(matches!(read, Err(LimitsError::Unavailable(_))), "{read:?}");
    // The limits are unaffected.
    set(&limits, "25/h").await;
}

/// Leases are work of any replica, and a lease that another one holds is none of here.
#[tokio::test]
async fn leases_are_counted_in_the_store_and_in_the_process() {
    let server = Server::start().await;
    let replica = || {
        let store = server.store();
        let limits = Limits::in_store(&store);
        let leases = Leases::new().name("jobs").per_tenant(5).total(9);
        (leases.store(store).limits(&limits), limits)
    };
    let ((one, limits), (other, _)) = (replica(), replica());
    let acme = Key::id("org", "acme");
    let _held = (
        one.acquire(&acme, "1").await.unwrap(),
        other.acquire(&acme, "2").await.unwrap(),
        other.acquire(&Key::id("org", "other"), "3").await.unwrap(),
    );
    let numbers = |usage: &LimitUsage| (usage.used, usage.here, usage.counted_in, usage.limit);
    let totals = limits.totals().await;
    assert_eq!(numbers(&totals[0]), (3, Some(1), CountedIn::Store, Some(9)));
    let usage = limits.usage(&"org:acme".parse().unwrap()).await;
    assert_eq!(numbers(&usage[0]), (2, Some(1), CountedIn::Store, Some(5)));
    assert_eq!(limits.store_status(), Some(StoreStatus::Ok));
}
