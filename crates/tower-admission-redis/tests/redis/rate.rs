//! Decisions on one server.

use std::sync::Arc;
use std::time::Duration;

use tower_admission::store::{
    AcquireOutcome, Charge, FailureMode, LeaseLimits, LeaseStore, RateStore,
};
use tower_admission::{Key, Policy, Quota, RateLimiter};

use crate::server::{Server, until};
use crate::user;

fn alice() -> [Charge; 1] {
    user("alice")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_server_passes_the_suite_for_rates() {
    let server = Server::start().await;
    tower_admission_testkit::rate_store(&server.store(), tokio::time::sleep).await;
}

#[tokio::test]
async fn replicas_share_a_limit() {
    let server = Server::start().await;
    let policy = [Policy::new("calls", Quota::per_hour(10))];
    let replicas: Vec<_> = (0..2).map(|_| server.store().open(&policy)).collect();
    let mut admitted = 0;
    for n in 0..30 {
        let decision = replicas[n % 2].take(&alice(), 1).await;
        admitted += u32::from(decision.is_admitted());
    }
    assert_eq!(admitted, 10);
}

#[tokio::test]
async fn a_restarted_service_continues_to_count() {
    let server = Server::start().await;
    let policy = [Policy::new("calls", Quota::per_hour(2))];
    for admitted in [true, true, false] {
        let buckets = server.store().open(&policy);
        assert_eq!(buckets.take(&alice(), 1).await.is_admitted(), admitted);
    }
}

#[tokio::test]
async fn spent_requests_stay_spent_when_the_quota_changes() {
    let server = Server::start().await;
    let open = |quota| server.store().open(&[Policy::new("calls", quota)]);
    assert!(
        open(Quota::per_hour(10))
            .take(&alice(), 8)
            .await
            .is_admitted()
    );
    let left = async |quota| open(quota).peek(&alice(), 0).await.remaining().unwrap();
    assert_eq!(left(Quota::per_hour(10)).await, 2);
    // Raised: the eight are still spent.
    assert_eq!(left(Quota::per_hour(100)).await, 92);
    // Lowered: not below nothing.
    assert_eq!(left(Quota::per_hour(5)).await, 0);
    assert_eq!(left(Quota::per_day(10)).await, 2);
}

#[tokio::test]
async fn keys_expire_when_their_buckets_are_full() {
    let server = Server::start().await;
    let buckets = server
        .store()
        .open(&[Policy::new("calls", Quota::per_second(10))]);
    assert!(buckets.take(&alice(), 2).await.is_admitted());
    let [key] = &*server.keys().await else {
        panic!("one key for one caller");
    };
    let mut connection = server.connection().await.unwrap();
    let millis: u64 = redis::cmd("PTTL")
        .arg(key)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!((1..=201).contains(&millis), "{millis}");
}

#[tokio::test]
async fn a_rejection_writes_nothing() {
    let server = Server::start().await;
    let policy = Policy::new("a", Quota::per_hour(5)).and("b", Quota::per_hour(1));
    let buckets = server.store().open(&[policy]);
    assert!(!buckets.take(&alice(), 2).await.is_admitted());
    assert!(server.keys().await.is_empty());
}

#[tokio::test]
async fn the_smallest_and_the_largest_quotas_count_exactly() {
    let server = Server::start().await;
    let century = Duration::from_secs(99 * 365 * 24 * 3600);
    for (name, quota, burst) in [
        ("slow", Quota::new(3, century), 3),
        ("odd", Quota::per_hour(7), 7),
        ("large", Quota::new(u32::MAX, century), u32::MAX),
    ] {
        let buckets = server.store().open(&[Policy::new(name, quota)]);
        assert!(
            buckets.take(&alice(), burst - 1).await.is_admitted(),
            "{name}"
        );
        let last = buckets.take(&alice(), 1).await;
        assert!(last.is_admitted(), "{name}: {last:?}");
        let refused = buckets.take(&alice(), 2).await;
        assert!(
            !refused.is_admitted() || name == "large",
            "{name}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_clock_step_back_blocks_no_key() {
    let server = Server::start().await;
    let buckets = server
        .store()
        .open(&[Policy::new("calls", Quota::per_second(10))]);
    assert!(buckets.take(&alice(), 10).await.is_admitted());
    let [key] = &*server.keys().await else {
        panic!("one key for one caller");
    };
    // As if written an hour from now.
    let far = format!("b 100000 {} 10", 4_000_000_000_000_000_u64);
    server.command(&["SET", key, &far]).await.unwrap();
    let refused = buckets.peek(&alice(), 1).await;
    let wait = refused.retry_after().unwrap();
    assert!(wait <= Duration::from_millis(100), "{refused:?}");
    // A replica of another quota puts it right as well, and takes nothing away.
    let other = server
        .store()
        .open(&[Policy::new("calls", Quota::per_second(2))]);
    assert!(!other.take(&alice(), 1).await.is_admitted());
    let left = async || buckets.peek(&alice(), 0).await.remaining().unwrap();
    assert!(left().await < 10);
    until("it fills", async || left().await == 10).await;
}

#[tokio::test]
async fn a_rejected_key_costs_no_further_calls() {
    let server = Server::start().await;
    let buckets = server
        .store()
        .open(&[Policy::new("calls", Quota::per_hour(1))]);
    assert!(buckets.take(&alice(), 1).await.is_admitted());
    let first = buckets.take(&alice(), 1).await;
    let calls = calls(&server).await;
    for _ in 0..100 {
        let denied = buckets.take(&alice(), 1).await;
        assert!(!denied.is_admitted());
        assert!(denied.retry_after() <= first.retry_after());
    }
    assert_eq!(self::calls(&server).await, calls);
    // What is given back is there at once.
    buckets.refund(&alice(), 1).await;
    assert!(buckets.take(&alice(), 1).await.is_admitted());
}

/// Script calls that the server has run.
pub(crate) async fn calls(server: &Server) -> u64 {
    let mut connection = server.connection().await.unwrap();
    let mut command = redis::cmd("INFO");
    let info: String = command
        .arg("commandstats")
        .query_async(&mut connection)
        .await
        .unwrap();
    let of = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split(',').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    of("cmdstat_evalsha:calls=") + of("cmdstat_eval:calls=")
}

#[tokio::test]
async fn a_limiter_by_hand_awaits_its_decisions() {
    let server = Server::start().await;
    let limiter = RateLimiter::with_store(Quota::per_hour(1), &server.store());
    let alice = [Key::id("user", "alice")];
    assert!(limiter.decide(&alice, 1).await.is_admitted());
    assert!(!limiter.decide(&alice, 1).await.is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cancelled_calls_does_not_affect_the_store() {
    let server = Server::start().await;
    let store = server.store().max_in_flight(64);
    let buckets = store.open(&[Policy::new("calls", Quota::per_hour(1_000_000))]);
    let buckets = Arc::new(buckets);
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let buckets = buckets.clone();
            tokio::spawn(async move {
                let call = buckets.take(&alice(), 1);
                let soon = Duration::from_micros(n % 300);
                let _ = tokio::time::timeout(soon, call.into_future()).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Every slot of the calls in flight is free again.
    let calls: Vec<_> = (0..64)
        .map(|_| tokio::spawn(buckets.take(&alice(), 1).into_future()))
        .collect();
    for call in calls {
        let decision = call.await.unwrap();
        assert!(
            decision.remaining().is_some(),
            "decided by Redis: {decision:?}"
        );
    }
}

#[tokio::test]
async fn requests_in_a_window_stay_counted_when_its_quota_changes() {
    let server = Server::start().await;
    let open = |quota: Quota| server.store().open(&[Policy::new("calls", quota)]);
    let left = async |quota| open(quota).peek(&alice(), 0).await.remaining().unwrap();
    let hourly = Quota::per_hour(10).sliding();
    assert!(open(hourly).take(&alice(), 8).await.is_admitted());
    assert_eq!(left(hourly).await, 2);
    assert_eq!(left(hourly.burst(5)).await, 7);
    assert_eq!(left(Quota::per_hour(5).sliding()).await, 0);
    assert_eq!(left(Quota::per_day(10).sliding()).await, 2);
    let refunded = open(hourly);
    refunded.refund(&alice(), 3).await;
    assert_eq!(left(hourly).await, 5);
    refunded.refund(&alice(), 5).await;
    assert_eq!(
        server.keys().await,
        [""; 0],
        "nothing is kept of what is not used"
    );
}

/// The age of what a window counted is known to a sub-window, and these differ by a thousandfold.
#[tokio::test]
async fn recent_requests_in_a_window_stay_recent_when_its_period_is_shortened() {
    let server = Server::start().await;
    let open = |quota: Quota| server.store().open(&[Policy::new("calls", quota)]);
    let daily = open(Quota::per_day(60).sliding());
    assert!(daily.take(&alice(), 60).await.is_admitted());
    let shortened = open(Quota::per_minute(60).sliding());
    assert_eq!(shortened.peek(&alice(), 0).await.remaining(), Some(0));
    let refused = shortened.take(&alice(), 1).await;
    assert!(!refused.is_admitted());
    assert!(
        refused.reset() > Some(Duration::from_secs(59)),
        "{refused:?}"
    );
    assert!(
        refused.reset() <= Some(Duration::from_secs(68)),
        "{refused:?}"
    );
}

/// While a deployment replaces a bucket by a window, each kind of replica keeps to its own.
#[tokio::test]
async fn a_bucket_and_a_window_with_one_name_count_separately() {
    let server = Server::start().await;
    let quota = Quota::per_hour(10);
    for [old, new] in [[quota, quota.sliding()], [quota.sliding(), quota]] {
        server.command(&["FLUSHALL"]).await.unwrap();
        let [old, new] =
            [old, new].map(|quota| server.store().open(&[Policy::new("calls", quota)]));
        let mut admitted = [0, 0];
        for _ in 0..15 {
            admitted[0] += u32::from(old.take(&alice(), 1).await.is_admitted());
            admitted[1] += u32::from(new.take(&alice(), 1).await.is_admitted());
        }
        assert_eq!(admitted, [10, 10]);
    }
}

/// A quota may be switched on and off; nobody else's usage changes.
#[tokio::test]
async fn a_quota_that_is_off_keeps_its_stored_part() {
    let server = Server::start().await;
    let open = |second: Quota| {
        let policy = Policy::new("a", Quota::per_hour(10)).and("b", second);
        server.store().open(&[policy])
    };
    for second in [Quota::off(), Quota::per_hour(5), Quota::off()] {
        let decision = open(second).take(&alice(), 1).await;
        assert!(decision.is_admitted(), "{decision:?}");
    }
    assert_eq!(
        open(Quota::off()).peek(&alice(), 0).await.remaining(),
        Some(7)
    );
}

#[tokio::test]
async fn limiters_of_differently_configured_clones_have_different_names() {
    let server = Server::start().await;
    let store = server.store();
    let limiters = [FailureMode::Closed, FailureMode::Open].map(|mode| {
        let store = store.clone().on_failure(mode);
        store.open(&[Quota::per_hour(1).into()])
    });
    for limiter in &limiters {
        assert!(limiter.take(&alice(), 1).await.is_admitted());
        assert!(!limiter.take(&alice(), 1).await.is_admitted());
    }
    // With a prefix of its own it is another store, whose first limiter has no number.
    let other = server.store().prefix("other");
    let _ = other.open(&[Quota::per_hour(1).into()]);
    assert_eq!(server.keys().await.len(), 2);
}

/// A refund that is on its way while the same key is denied.
#[tokio::test]
async fn a_cached_rejection_does_not_outlive_a_refund() {
    let server = Server::start().await;
    let policy = [Policy::new("calls", Quota::per_hour(1))];
    let buckets = server.store().open(&policy);
    assert!(buckets.take(&alice(), 1).await.is_admitted());
    let refund = buckets.refund(&alice(), 1);
    assert!(!buckets.take(&alice(), 1).await.is_admitted());
    refund.await;
    assert!(buckets.take(&alice(), 1).await.is_admitted());
}

#[tokio::test]
async fn the_longest_settings_do_not_overflow() {
    let server = Server::start().await;
    for longest in [Duration::MAX, Duration::from_secs(u64::MAX / 2 + 1)] {
        let store = server.store().deadline(longest).lease_ttl(longest);
        let buckets = store.open(&[Quota::per_hour(1).into()]);
        let decision = buckets.take(&user("bob"), 0).await;
        assert_eq!(decision.remaining(), Some(1));
        let leases = store.open_leases("jobs");
        for _ in 0..2 {
            let leased = leases.acquire(LeaseLimits::new(Some(9), None)).await;
            assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
        }
        until("the slots are free again", async || {
            leases
                .usage(None)
                .await
                .is_some_and(|usage| usage.total == 0)
        })
        .await;
    }
}

/// A quota that is charged to another key from now on is counted apart from what it was.
#[tokio::test]
async fn quotas_may_move_between_policies() {
    let server = Server::start().await;
    let (burst, daily) = (Quota::per_hour(10), Quota::per_day(100));
    let one = [Policy::new("burst", burst).and("daily", daily)];
    let two = [Policy::new("burst", burst), Policy::new("daily", daily)];
    let address = Key::ip([192, 0, 2, 1].into());
    let keys = [alice()[0].clone(), Charge::new(address, 1)];
    let (one, two) = (server.store().open(&one), server.store().open(&two));
    let mut admitted = [0, 0];
    for _ in 0..20 {
        admitted[0] += u32::from(one.take(&alice(), 1).await.is_admitted());
        admitted[1] += u32::from(two.take(&keys, 1).await.is_admitted());
    }
    assert_eq!(admitted, [10, 10]);
}
