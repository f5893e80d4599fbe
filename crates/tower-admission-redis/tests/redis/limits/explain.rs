//! A service and a tool explain the same, and the next request confirms it.

use tower_admission::{
    ByToken, ConcurrencyLimitLayer, CountedIn, LimitExplanation, LimitSource, LimitVerdict, Limits,
    LimitsError, Policy, Quota, RateLimiter, SharedLimiters,
};

use super::{acme, name, set};
use crate::server::{Server, until};

/// The explanation for acme, without the part that a tool cannot know: when a client may retry for a permit.
fn shown(explained: Vec<LimitExplanation>) -> Vec<String> {
    let explained = explained.into_iter().map(|limit| {
        let verdict = match limit.verdict {
            LimitVerdict::Admitted { remaining } => format!("admits {remaining:?}"),
            LimitVerdict::Rejected { reason, .. } => format!("rejects {reason:?}"),
            verdict => format!("{verdict:?}"),
        };
        let (text, source) = (&limit.limit, limit.source.as_str());
        let (tier, used) = (&limit.tier, limit.used);
        assert_eq!(limit.counted_in, CountedIn::Store, "{limit:?}");
        format!("{} {text} {source} {tier:?} {used:?} {verdict}", limit.name)
    });
    let mut explained: Vec<_> = explained.collect();
    explained.sort_unstable();
    explained
}

#[tokio::test]
async fn a_tool_and_a_service_explain_the_same() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store()).tier("pro", "calls=4/h, jobs=2 concurrent");
    let policy =
        Policy::new("calls", Quota::per_hour(2)).and("daily", "9/day sliding".parse().unwrap());
    let service = server.store();
    let limiter = RateLimiter::with_limits(policy, &service, &limits);
    let layer = ConcurrencyLimitLayer::new(50)
        .name("jobs")
        .limits(&limits)
        .per_key(ByToken::default(), 1)
        .store(server.store());
    let jobs = layer.limiter();
    let permit = jobs.acquire_for(&acme()).await.unwrap();

    let tool = Limits::in_store(&server.store());
    let key = name("org:acme");
    let both = async |tier: Option<&str>| {
        tool.refresh().await.unwrap();
        let limiters = SharedLimiters::read(&tool, &server.store()).await.unwrap();
        let seen = shown(limiters.explain(&key, tier).await.unwrap());
        (seen, shown(limits.explain(&key, tier).await))
    };
    until("all are written down", async || {
        both(Some("pro")).await.0.len() == 4
    })
    .await;
    for own in [
        None,
        Some("3/h"),
        Some("tier=pro"),
        Some("daily=unlimited, jobs=1 concurrent"),
        Some("deny all"),
    ] {
        if let Some(own) = own {
            set(&limits, own).await;
        }
        for tier in [None, Some("pro"), Some("other")] {
            let (seen, told) = both(tier).await;
            assert_eq!(seen, told, "{own:?} {tier:?}");
        }
        for _ in 0..3 {
            let explained = limits.explain(&key, None).await;
            let decision = limiter.decide(&acme(), 1).await;
            let rates = explained.iter().filter(|limit| limit.sort == "rate");
            let left = rates.map(|limit| match limit.verdict {
                LimitVerdict::Admitted { remaining } => Some(remaining.unwrap_or(u64::MAX)),
                _ => None,
            });
            // None where one of them rejects.
            let left: Option<Vec<_>> = left.collect();
            let left = left.and_then(|left| left.into_iter().min());
            let remaining = decision.remaining().map(u64::from);
            assert_eq!(
                left,
                remaining.filter(|_| decision.is_admitted()),
                "{own:?}"
            );
        }
    }
    limits.delete(&key).await.unwrap();
    drop(permit);
}

#[tokio::test]
async fn an_unavailable_store_gives_no_verdict() {
    let mut server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    let service = server.store();
    let policy = Policy::new("calls", Quota::per_hour(2));
    let limiter = RateLimiter::with_limits(policy, &service, &limits);
    assert!(limiter.decide(&acme(), 1).await.is_admitted());
    let tool = Limits::in_store(&server.store());
    let read = async || SharedLimiters::read(&tool, &server.store()).await.unwrap();
    until("it is written down", async || {
        let explained = read().await.explain(&name("org:acme"), None).await;
        explained.is_ok_and(|explained| explained.len() == 1)
    })
    .await;
    let limiters = read().await;
    server.kill();
    let explained = &limits.explain(&name("org:acme"), None).await[0];
    assert_eq!(explained.verdict, LimitVerdict::Unknown);
    assert_eq!(
        (&*explained.limit, explained.source),
        ("2/h", LimitSource::Default)
    );
    let seen = limiters.explain(&name("org:acme"), None).await;
    assert!(matches!(seen, Err(LimitsError::Unavailable(_))), "{seen:?}");
}
