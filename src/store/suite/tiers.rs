//! What a store that has tiers has to do for them.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use crate::key::Key;
use crate::policy::Policy;
use crate::quota::Quota;
use crate::store::{RateBuckets, RateStore};

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let policy = Policy::from(Quota::per_hour(1)).tier("pro", Quota::per_hour(2));
    if store.open(&[policy]).tier("pro").is_none() {
        return;
    }
    a_request_counts_in_every_tier(store).await;
    an_empty_bucket_owes_no_more(store, pass).await;
    windows_count_in_every_tier(store, pass).await;
    other_policies_are_the_same_in_each(store).await;
    a_refusal_counts_nowhere(store).await;
    what_is_off_counts_for_others(store).await;
}

/// A limiter in no tier and in `pro`, and a key for each policy.
struct Case {
    buckets: Arc<dyn RateBuckets>,
    pro: Arc<dyn RateBuckets>,
    keys: Vec<Key>,
}

impl Case {
    fn new(store: &dyn RateStore, policies: &[Policy]) -> Self {
        let buckets = store.open(policies);
        assert!(buckets.clone().tier("other").is_none(), "no policy has it");
        Self {
            pro: buckets.clone().tier("pro").expect("a tier of a policy"),
            buckets,
            keys: policies.iter().map(|_| new_key()).collect(),
        }
    }

    /// How many requests are admitted now in no tier, and in `pro`.
    async fn burst(&self, buckets: &Arc<dyn RateBuckets>) -> u32 {
        let mut admitted = 0;
        while buckets.take(&self.keys, 1).await.is_admitted() {
            admitted += 1;
        }
        admitted
    }
}

async fn a_request_counts_in_every_tier(store: &dyn RateStore) {
    let free = Policy::new("free", Quota::per_hour(3));
    let pro = Policy::new("pro", Quota::per_hour(8)).and("daily", Quota::per_day(9).sliding());
    let case = Case::new(store, &[free.tier("pro", pro)]);
    assert_eq!(case.burst(&case.buckets).await, 3);
    let decision = case.pro.peek(&case.keys, 0).await;
    let left: Vec<_> = decision.usages().iter().map(|u| u.remaining()).collect();
    assert_eq!(left, [5, 6], "what is told is of the tier");
    assert_eq!(case.burst(&case.pro).await, 5);
    let refused = case.buckets.take(&case.keys, 1).await;
    assert_eq!(refused.usages().len(), 1);
    assert!(!refused.is_admitted());
    case.pro.refund(&case.keys, 2).await;
    assert_eq!(
        case.burst(&case.buckets).await,
        2,
        "what is given back is given back in every tier"
    );
    assert_eq!(case.burst(&case.pro).await, 0);
}

async fn an_empty_bucket_owes_no_more(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let free = Policy::from(Quota::per_second(1).burst(2));
    let case = Case::new(store, &[free.tier("pro", Quota::per_hour(100))]);
    for _ in 0..9 {
        assert!(case.pro.take(&case.keys, 10).await.is_admitted());
    }
    let refused = case.buckets.take(&case.keys, 1).await;
    let wait = refused.retry_after().expect("that it fits once");
    assert!(wait <= SECOND, "one interval, not {wait:?}");
    pass(2 * SECOND).await;
    assert_eq!(case.burst(&case.buckets).await, 2);
    assert_eq!(case.burst(&case.pro).await, 8);
}

async fn windows_count_in_every_tier(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let free = Policy::from(Quota::per_second(2).sliding());
    let case = Case::new(store, &[free.tier("pro", Quota::per_hour(10).sliding())]);
    for _ in 0..5 {
        assert!(case.pro.take(&case.keys, 1).await.is_admitted());
    }
    assert_eq!(case.burst(&case.buckets).await, 0);
    pass(2 * SECOND).await;
    assert_eq!(case.burst(&case.buckets).await, 2);
    assert_eq!(case.burst(&case.pro).await, 3);
}

async fn other_policies_are_the_same_in_each(store: &dyn RateStore) {
    let tiered = Policy::from(Quota::per_hour(3)).tier("pro", Quota::per_hour(8));
    let other = Policy::new("address", Quota::per_hour(5));
    let case = Case::new(store, &[tiered, other]);
    assert_eq!(case.burst(&case.buckets).await, 3);
    let decision = case.pro.peek(&case.keys, 0).await;
    let left: Vec<_> = decision.usages().iter().map(|u| u.remaining()).collect();
    assert_eq!(left, [5, 2]);
    assert_eq!(case.burst(&case.pro).await, 2);
    let keys = [case.keys[0], new_key()];
    for _ in 0..3 {
        assert!(case.pro.take(&keys, 1).await.is_admitted());
    }
    let refused = case.pro.take(&keys, 1).await;
    assert!(!refused.usages()[0].fits() && refused.usages()[1].fits());
}

async fn a_refusal_counts_nowhere(store: &dyn RateStore) {
    let tiered = Policy::from(Quota::per_hour(9)).tier("pro", Quota::per_hour(8));
    let case = Case::new(store, &[tiered, Policy::new("address", Quota::per_hour(2))]);
    for cost in [9, 3, 0] {
        let decision = case.pro.take(&case.keys, cost).await;
        assert_eq!(decision.is_admitted(), cost == 0);
    }
    for buckets in [&case.buckets, &case.pro] {
        let left = buckets.peek(&case.keys[..1], 0).await;
        assert_eq!(left.remaining(), left.limit());
    }
}

async fn what_is_off_counts_for_others(store: &dyn RateStore) {
    let case = Case::new(
        store,
        &[Policy::from(Quota::per_hour(3)).tier("pro", Quota::off())],
    );
    let decision = case.pro.take(&case.keys, 2).await;
    assert!(decision.is_admitted() && decision.usages().is_empty());
    assert_eq!(case.burst(&case.buckets).await, 1);
    assert!(case.pro.take(&case.keys, 9).await.is_admitted());
}
