//! Several quotas and keys in one decision: all or nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use proptest::prelude::*;
use tower::Layer;
use tower_admission::observe::Subject;
use tower_admission::test_util::TestClock;
use tower_admission::{
    BearerToken, ClientIp, Key, Observer, Policy, Quota, RateLimitLayer, RateLimiter, Rejection,
    RequestHead,
};

use crate::common::{
    Counting, LaterStore, SECOND, by_user, header, peer, retry_after, send, status, store, timed,
    user, user_key,
};

/// The remaining requests of each quota, as reported for a request of cost 0.
async fn left(limiter: &RateLimiter, keys: &[Key]) -> Vec<u32> {
    let decision = limiter.decide(keys, 0).await;
    decision.usages().iter().map(|u| u.remaining()).collect()
}

#[tokio::test]
async fn a_rejection_by_one_quota_takes_nothing_from_the_others() {
    for policy in [
        Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(3)),
        Policy::new("daily", Quota::per_day(3)).and("burst", Quota::per_second(10)),
    ] {
        let (layer, _clock) = timed(by_user, policy);
        let service = layer.layer(Counting::default());
        for _ in 0..3 {
            assert_eq!(status(&service, user("alice")).await, 200);
        }
        for _ in 0..20 {
            let refused = send(&service, user("alice")).await;
            assert_eq!(refused.status(), 429);
            assert_eq!(retry_after(&refused), Some(24 * 60 * 60 / 3));
        }
        let mut left = left(&layer.limiter(), &[user_key("alice")]).await;
        left.sort();
        assert_eq!(left, [0, 7]);
    }
}

#[tokio::test]
async fn the_longest_wait_of_the_rejecting_quotas_is_reported() {
    let policy = Policy::new("s", Quota::per_second(2))
        .and("min", Quota::per_minute(2))
        .and("roomy", Quota::per_day(1000));
    let (layer, clock) = timed(by_user, policy);
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, user("alice")).await, 200);
    assert_eq!(status(&service, user("alice")).await, 200);
    let refused = send(&service, user("alice")).await;
    assert_eq!(retry_after(&refused), Some(30));
    clock.advance(30 * SECOND);
    assert_eq!(status(&service, user("alice")).await, 200);
}

#[tokio::test]
async fn quotas_that_are_off_do_not_count_among_others() {
    let policy = Policy::new("off", Quota::off())
        .and("one", Quota::per_hour(1))
        .and("off-too", Quota::per_day(0));
    let (layer, _clock) = timed(by_user, policy);
    let service = layer.layer(Counting::default());
    let admitted = send(&service, user("alice")).await;
    assert_eq!(header(&admitted, "ratelimit"), Some("\"one\";r=0;t=3600"));
    assert_eq!(status(&service, user("alice")).await, 429);
}

/// 5 an hour for a token, and 3 an hour for an address.
fn token_and_ip(token: u32, ip: u32) -> (RateLimitLayer<BearerToken>, TestClock) {
    let (layer, clock) = timed(BearerToken, Policy::new("token", Quota::per_hour(token)));
    let layer = layer.and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(ip)));
    (layer, clock)
}

fn from(ip: &str, token: &str) -> Request<()> {
    Request::builder()
        .extension(peer(ip))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap()
}

fn keys(ip: &str, token: &str) -> [Key; 2] {
    [
        Key::new("bearer", token.as_bytes()),
        Key::ip(ip.parse().unwrap()),
    ]
}

#[tokio::test]
async fn both_keys_are_charged_and_both_can_reject() {
    let (layer, _clock) = token_and_ip(3, 5);
    let service = layer.layer(Counting::default());
    for _ in 0..3 {
        assert_eq!(status(&service, from("192.0.2.1", "a")).await, 200);
    }
    let by_token = send(&service, from("192.0.2.1", "a")).await;
    assert_eq!(by_token.status(), 429);
    assert_eq!(
        left(&layer.limiter(), &keys("192.0.2.1", "a")).await,
        [0, 2]
    );
    for token in ["b", "c"] {
        assert_eq!(status(&service, from("192.0.2.1", token)).await, 200);
    }
    assert_eq!(status(&service, from("192.0.2.1", "d")).await, 429);
    assert_eq!(
        left(&layer.limiter(), &keys("192.0.2.1", "d")).await,
        [3, 0]
    );
    assert_eq!(status(&service, from("192.0.2.2", "d")).await, 200);
    assert_eq!(status(&service, from("192.0.2.2", "a")).await, 429);
}

/// Records the policy and the key of each decision.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<Vec<String>>>);

impl Keys {
    fn push(&self, what: &str, subject: &Subject<'_>) {
        let (policy, key) = (subject.policy, subject.key.unwrap());
        let line = format!("{what} {policy} {key:?}");
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Keys {
    fn admitted(&self, subject: &Subject<'_>) {
        self.push("admitted", subject);
    }

    fn rejected(&self, subject: &Subject<'_>, _: &Rejection) {
        self.push("rejected", subject);
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        self.push("would reject", subject);
    }
}

#[tokio::test]
async fn observers_see_the_key_whose_quota_decides() {
    for dry_run in [false, true] {
        let (layer, _clock) = timed(
            BearerToken,
            Policy::new("token", Quota::per_hour(3)).and("daily", Quota::per_day(3)),
        );
        let keys = Keys::default();
        let service = layer
            .and_by(by_user, Policy::new("user", Quota::off()))
            .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(4)))
            .dry_run(dry_run)
            .observe(keys.clone())
            .layer(Counting::default());
        let rejected = if dry_run { "would reject" } else { "rejected" };
        // An attack with made-up tokens: the address has the least left, and rejects.
        for token in ["a", "a", "b", "c", "d", "e"] {
            status(&service, from("192.0.2.1", token)).await;
        }
        assert_eq!(
            keys.take(),
            [
                "admitted daily Key(bearer)",
                "admitted daily Key(bearer)",
                "admitted ip Key(ip 192.0.2.1)",
                "admitted ip Key(ip 192.0.2.1)",
                &format!("{rejected} ip Key(ip 192.0.2.1)"),
                &format!("{rejected} ip Key(ip 192.0.2.1)"),
            ]
        );
        // One token from many addresses.
        for n in 2..5 {
            status(&service, from(&format!("192.0.2.{n}"), "a")).await;
        }
        assert_eq!(
            keys.take()[1..],
            [
                format!("{rejected} token Key(bearer)"),
                format!("{rejected} token Key(bearer)"),
            ]
        );
    }
}

#[tokio::test]
async fn the_deciding_key_is_known_with_a_store_that_replies_later() {
    let clock = TestClock::default();
    let later = LaterStore::new(&clock);
    later.answer(10);
    let keys = Keys::default();
    let service = RateLimitLayer::by(BearerToken, Policy::new("token", Quota::per_hour(3)))
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(1)))
        .store(later)
        .observe(keys.clone())
        .layer(Counting::default());
    for token in ["a", "b"] {
        status(&service, from("192.0.2.1", token)).await;
    }
    assert_eq!(
        keys.take(),
        [
            "admitted ip Key(ip 192.0.2.1)",
            "rejected ip Key(ip 192.0.2.1)",
        ]
    );
}

#[tokio::test]
async fn a_rejection_by_the_token_takes_nothing_from_the_address() {
    let (layer, _clock) = token_and_ip(1, 5);
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from("192.0.2.1", "a")).await, 200);
    for _ in 0..20 {
        assert_eq!(status(&service, from("192.0.2.1", "a")).await, 429);
    }
    assert_eq!(
        left(&layer.limiter(), &keys("192.0.2.1", "a")).await,
        [0, 4]
    );
}

#[tokio::test]
async fn made_up_tokens_of_a_rejected_address_evict_no_key() {
    let clock = TestClock::default();
    let layer = RateLimitLayer::by(BearerToken, Policy::new("token", Quota::per_hour(2)))
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(3)))
        .store(store(&clock).max_keys(8));
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from("192.0.2.9", "good")).await, 200);
    for token in ["a", "b", "c"] {
        assert_eq!(status(&service, from("192.0.2.1", token)).await, 200);
    }
    for n in 0..1000 {
        let token = format!("made-up-{n}");
        assert_eq!(status(&service, from("192.0.2.1", &token)).await, 429);
        assert_eq!(
            left(&layer.limiter(), &keys("192.0.2.1", &token)).await,
            [2, 0]
        );
    }
    assert_eq!(
        left(&layer.limiter(), &keys("192.0.2.9", "good")).await,
        [1, 2]
    );
}

#[tokio::test]
async fn quota_names_of_several_keys_are_distinct() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(1))
        .and_by(ClientIp::peer(), Quota::per_hour(2));
    let admitted = send(&layer.layer(Counting::default()), user("alice")).await;
    assert_eq!(
        header(&admitted, "ratelimit-policy"),
        Some("\"default\";q=1;w=3600, \"default-2\";q=2;w=3600")
    );
}

#[tokio::test]
async fn a_cost_is_charged_to_every_key() {
    let (layer, _clock) = token_and_ip(10, 6);
    let layer = layer.cost(|_: RequestHead<'_>| 4);
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, from("192.0.2.1", "a")).await, 200);
    assert_eq!(status(&service, from("192.0.2.1", "a")).await, 429);
    assert_eq!(
        left(&layer.limiter(), &keys("192.0.2.1", "a")).await,
        [6, 2]
    );
    let (layer, _clock) = token_and_ip(10, 3);
    let service = layer
        .cost(|_: RequestHead<'_>| 4)
        .layer(Counting::default());
    let hopeless = send(&service, from("192.0.2.1", "a")).await;
    assert_eq!(hopeless.status(), 429);
    assert_eq!(retry_after(&hopeless), None, "it never fits the address");
}

#[tokio::test]
async fn concurrent_requests_take_at_most_the_quota() {
    let (layer, _clock) = timed(
        by_user,
        Policy::new("a", Quota::per_hour(50)).and("b", Quota::per_day(40)),
    );
    let service = layer.layer(Counting::default());
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let service = service.clone();
            std::thread::spawn(move || {
                let admitted = async {
                    let mut admitted = 0;
                    for _ in 0..40 {
                        admitted += usize::from(status(&service, user("alice")).await == 200);
                    }
                    admitted
                };
                tokio_test::block_on(admitted)
            })
        })
        .collect();
    let admitted: usize = tasks.into_iter().map(|task| task.join().unwrap()).sum();
    assert_eq!(admitted, 40);
    assert_eq!(left(&layer.limiter(), &[user_key("alice")]).await, [10, 0]);
}

/// Quotas that take up to three hours to fill.
fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    let quota = (1..200u32, 1..100_000u64, 1..100u32).prop_map(|(count, millis, burst)| {
        Quota::new(count, Duration::from_millis(millis)).burst(burst)
    });
    proptest::collection::vec(quota, 1..4)
}

proptest! {
    /// A client that is alone on a key and waits for `Retry-After` is admitted with the same
    /// request.
    #[test]
    fn retry_after_is_exact(
        quotas in quotas(),
        requests in proptest::collection::vec((0..5_000_000_000u64, 1..120u32), 1..60),
    ) {
        let named = |(n, quota): (usize, &Quota)| Policy::new(&format!("q{n}"), *quota);
        let (mut layer, clock) = timed(by_user, named((0, &quotas[0])));
        for (n, quota) in quotas.iter().enumerate().skip(1) {
            layer = layer.and_by(by_user, named((n, quota)));
        }
        let layer = layer.cost(|head| head.headers["cost"].to_str().unwrap().parse().unwrap());
        let service = layer.layer(Counting::default());
        let costing = |cost: u32| {
            let mut request = user("alice");
            request.headers_mut().insert("cost", cost.into());
            request
        };
        let smallest = quotas_burst(&layer.limiter());
        tokio_test::block_on(async {
            for (pause, cost) in requests {
                clock.advance(Duration::from_nanos(pause));
                let response = send(&service, costing(cost)).await;
                if response.status() == 200 {
                    continue;
                }
                match retry_after(&response) {
                    Some(wait) => {
                        clock.advance(Duration::from_secs(wait));
                        let again = status(&service, costing(cost)).await;
                        prop_assert_eq!(again, 200, "after {}", wait);
                    }
                    None => prop_assert!(cost > smallest, "it could fit"),
                }
            }
            Ok(())
        })?;
    }
}

/// The smallest burst of a limiter's quotas.
fn quotas_burst(limiter: &RateLimiter) -> u32 {
    let keys = [user_key("alice"); 8];
    let decision = tokio_test::block_on(limiter.decide(&keys, 0).into_future());
    decision
        .usages()
        .iter()
        .map(|usage| usage.limit())
        .min()
        .unwrap()
}
