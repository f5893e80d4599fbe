//! The suite for rate limits.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use tower_admission::Decision;
use tower_admission::Policy;
use tower_admission::Quota;
use tower_admission::store::{Charge, RateBuckets, RateStore};

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    burst_and_refill(store, pass).await;
    honest_retry_after(store, pass).await;
    several_windows_are_one(store).await;
    several_keys_are_one(store).await;
    a_key_of_two_policies_is_charged_to_both(store).await;
    one_without_the_numbers(store).await;
    only_the_key_that_is_limited_is_charged(store).await;
    costs(store).await;
    peeks_and_refunds(store).await;
    keys_and_limiters_are_apart(store).await;
    is_deny_all(store).await;
    races_admit_the_burst(store).await;
    sliding_windows(store, pass).await;
    sliding_costs_and_refunds(store).await;
    sliding_next_to_a_bucket(store).await;
    races_admit_what_a_window_does(store).await;
}

/// The buckets of one limiter, and a key for each policy.
struct Case {
    buckets: Arc<dyn RateBuckets>,
    charges: Vec<Charge>,
}

impl Case {
    fn new(store: &dyn RateStore, policies: &[Policy]) -> Self {
        let charges = (0..policies.len()).map(|set| Charge::new(new_key(), set));
        Self {
            buckets: store.open(policies),
            charges: charges.collect(),
        }
    }

    async fn take(&self, cost: u32) -> Decision {
        self.buckets.take(&self.charges, cost).await
    }

    async fn peek(&self, cost: u32) -> Decision {
        self.buckets.peek(&self.charges, cost).await
    }

    async fn admits(&self, cost: u32) -> bool {
        self.take(cost).await.is_admitted()
    }

    /// The remaining requests of the first key.
    async fn left(&self) -> u32 {
        let decision = self.buckets.peek(&self.charges[..1], 0).await;
        decision.remaining().expect("a quota that limits")
    }
}

async fn burst_and_refill(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let case = Case::new(store, &[Quota::per_second(2).burst(3).into()]);
    for left in [2, 1, 0] {
        let decision = case.take(1).await;
        assert!(
            decision.is_admitted(),
            "a request within the burst is admitted"
        );
        assert_eq!(decision.remaining(), Some(left));
        assert_eq!(decision.limit(), Some(3));
        assert_eq!(decision.retry_after(), None);
    }
    assert!(
        !case.admits(1).await,
        "a request above the burst is rejected"
    );
    pass(SECOND).await;
    assert!(
        case.admits(1).await && case.admits(1).await,
        "the bucket fills at its rate"
    );
    pass(3 * SECOND).await;
    assert_eq!(
        case.left().await,
        3,
        "the bucket never holds more than its burst"
    );
}

/// The first of two policies limits nothing, so only the second key counts.
async fn only_the_key_that_is_limited_is_charged(store: &dyn RateStore) {
    let off = Policy::new("off", Quota::per_hour(0));
    let policies = [off, Policy::new("on", Quota::per_hour(1))];
    let case = Case::new(store, &policies);
    let (first, second) = (case.charges[0].clone(), case.charges[1].clone());
    assert!(case.admits(1).await);
    let others = [Charge::new(new_key(), 0), second];
    assert!(
        !case.buckets.take(&others, 1).await.is_admitted(),
        "another first key does not make up for it"
    );
    let others = [first.clone(), Charge::new(new_key(), 1)];
    assert!(case.buckets.take(&others, 1).await.is_admitted());
    let first = [first];
    for _ in 0..3 {
        let alone = case.buckets.take(&first, 1).await;
        assert!(alone.is_admitted(), "a policy without a key is left alone");
        assert_eq!(alone.usages().len(), 0, "a quota that is off has no usage");
    }
}

async fn one_without_the_numbers(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(3)).and("b", Quota::per_hour(9));
    for policies in [vec![Quota::per_hour(3).into()], vec![policy]] {
        let case = Case::new(store, &policies);
        let mut admitted = 0;
        for _ in 0..9 {
            admitted += u32::from(case.buckets.take_one(&case.charges[0]) || case.admits(1).await);
        }
        assert_eq!(admitted, 3, "the quick way to a yes takes as much");
        assert!(!case.buckets.take_one(&case.charges[0]));
    }
}

async fn honest_retry_after(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let case = Case::new(store, &[Quota::per_second(5).burst(4).into()]);
    assert!(case.admits(4).await);
    for cost in [1, 3] {
        let rejected = case.take(cost).await;
        let wait = rejected
            .retry_after()
            .expect("a rejection with a retry-after");
        assert!(wait > Duration::ZERO && wait <= rejected.reset().expect("a quota that limits"));
        pass(wait).await;
        assert!(case.admits(cost).await, "waiting what was said is enough");
    }
}

async fn several_windows_are_one(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(10)).and("b", Quota::per_hour(2));
    let case = Case::new(store, &[policy]);
    assert!(case.admits(2).await);
    let rejected = case.take(1).await;
    assert!(!rejected.is_admitted());
    let [a, b] = rejected.usages() else {
        panic!("a usage for each quota, in their order");
    };
    assert!(a.fits() && !b.fits());
    assert_eq!(
        (a.remaining(), b.remaining()),
        (8, 0),
        "a rejection takes nothing from either"
    );
}

async fn several_keys_are_one(store: &dyn RateStore) {
    let tight = Policy::new("tight", Quota::per_hour(1));
    let roomy = Policy::new("roomy", Quota::per_hour(10));
    for policies in [[tight.clone(), roomy.clone()], [roomy, tight]] {
        let case = Case::new(store, &policies);
        assert!(case.admits(1).await);
        let rejected = case.take(1).await;
        assert!(!rejected.is_admitted());
        let left: u32 = rejected
            .usages()
            .iter()
            .map(|usage| usage.remaining())
            .sum();
        assert_eq!(
            left, 9,
            "a rejection by one key takes nothing from the other"
        );
        let first = case.buckets.take(&case.charges[..1], 0).await;
        assert_eq!(
            first.usages().len(),
            1,
            "policies without a key are left alone"
        );
    }
}

/// Like a request without a credential: its address stands for it, and is charged as an address, too.
async fn a_key_of_two_policies_is_charged_to_both(store: &dyn RateStore) {
    let (few, many) = (Quota::per_hour(3), Quota::per_hour(10));
    for quotas in [
        [few, many],
        [many, few],
        [few.sliding(), many],
        [many, few.sliding()],
    ] {
        let policies = quotas.map(|quota| Policy::new("same", quota));
        let buckets = store.open(&policies);
        let key = new_key();
        let charges = [Charge::new(key, 0), Charge::new(key, 1)];
        for _ in 0..3 {
            assert!(buckets.take(&charges, 1).await.is_admitted());
        }
        assert!(
            !buckets.take(&charges, 1).await.is_admitted(),
            "both policies count what the one key takes"
        );
        buckets.refund(&charges, 1).await;
        let decision = buckets.peek(&charges, 0).await;
        let left = decision.usages().iter().map(|usage| usage.remaining());
        assert_eq!(left.sum::<u32>(), 9, "and both get back what is refunded");
    }
}

async fn costs(store: &dyn RateStore) {
    let case = Case::new(store, &[Quota::per_hour(5).into()]);
    assert!(case.admits(3).await);
    assert!(
        case.admits(0).await,
        "a request that costs nothing is admitted"
    );
    assert_eq!(case.left().await, 2);
    let hopeless = case.take(6).await;
    assert!(!hopeless.is_admitted() && hopeless.can_never_fit());
    assert_eq!(
        hopeless.retry_after(),
        None,
        "a request that never fits has no retry-after"
    );
    assert_eq!(case.left().await, 2, "and takes nothing");
    assert!(!case.admits(3).await);
    assert!(case.admits(2).await);
    assert!(
        case.admits(0).await,
        "a request that costs nothing is admitted to an empty bucket"
    );
}

async fn peeks_and_refunds(store: &dyn RateStore) {
    let case = Case::new(store, &[Quota::per_hour(3).into()]);
    for _ in 0..10 {
        assert!(case.peek(3).await.is_admitted(), "a peek takes nothing");
    }
    assert!(case.admits(3).await);
    assert!(
        !case.peek(1).await.is_admitted(),
        "a peek decides as a request would"
    );
    case.buckets.refund(&case.charges, 2).await;
    assert_eq!(case.left().await, 2);
    case.buckets.refund(&case.charges, 100).await;
    assert_eq!(
        case.left().await,
        3,
        "a refund never fills a bucket beyond its burst"
    );
}

async fn keys_and_limiters_are_apart(store: &dyn RateStore) {
    let policy = [Policy::from(Quota::per_hour(1))];
    let case = Case::new(store, &policy);
    assert!(case.admits(1).await);
    let other_key = [Charge::new(new_key(), 0)];
    assert!(case.buckets.take(&other_key, 1).await.is_admitted());
    let other_limiter = store.open(&policy);
    assert!(
        other_limiter.take(&case.charges, 1).await.is_admitted(),
        "limiters of one store do not share"
    );
}

async fn is_deny_all(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(10)).and("b", Quota::deny_all());
    let case = Case::new(store, &[policy]);
    let rejected = case.take(1).await;
    assert!(rejected.can_never_fit());
    assert_eq!(rejected.usages()[0].remaining(), 10);
}

async fn races_admit_the_burst(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(50)).and("b", Quota::per_hour(60));
    races_admit_fifty_of_sixty(store, policy).await;
}

async fn sliding_windows(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    // Fifteen sub-windows divide this period, and it is short enough for a real clock.
    let period = 2 * SECOND;
    let part = period / 15;
    let case = Case::new(store, &[Quota::new(4, period).burst(2).sliding().into()]);
    let first = case.take(4).await;
    assert!(first.is_admitted());
    assert_eq!((first.limit(), first.remaining()), (Some(6), Some(2)));
    let reset = first.reset().expect("a quota that limits");
    assert!(
        reset > period - part && reset <= period + 2 * part,
        "what is used counts for a period, and one sub-window more"
    );
    pass(period / 2).await;
    assert!(case.admits(2).await);
    for cost in [1, 5] {
        let rejected = case.take(cost).await;
        assert!(!rejected.is_admitted(), "a window admits count and burst");
        let wait = rejected
            .retry_after()
            .expect("a rejection with a retry-after");
        assert!(wait > Duration::ZERO && wait <= rejected.reset().expect("a quota that limits"));
        assert!(cost > 1 || wait < period, "what is oldest is gone first");
        pass(wait).await;
        assert!(case.admits(cost).await, "waiting what was said is enough");
    }
    let reset = case.peek(0).await.reset().expect("a quota that limits");
    pass(reset).await;
    assert_eq!(
        case.left().await,
        6,
        "nothing of the past counts after reset"
    );
}

async fn sliding_costs_and_refunds(store: &dyn RateStore) {
    let case = Case::new(store, &[Quota::per_hour(5).sliding().into()]);
    assert!(case.peek(5).await.is_admitted(), "a peek takes nothing");
    assert!(case.admits(3).await && case.admits(0).await);
    assert_eq!(case.left().await, 2);
    let hopeless = case.take(6).await;
    assert!(hopeless.can_never_fit() && hopeless.retry_after().is_none());
    assert!(!case.admits(3).await);
    assert_eq!(case.left().await, 2, "a rejection takes nothing");
    assert!(case.admits(2).await && case.admits(0).await);
    assert!(!case.peek(1).await.is_admitted());
    case.buckets.refund(&case.charges, 2).await;
    assert_eq!(case.left().await, 2);
    case.buckets.refund(&case.charges, 100).await;
    assert_eq!(case.left().await, 5, "a refund gives back what was used");
}

async fn sliding_next_to_a_bucket(store: &dyn RateStore) {
    let bucket = Quota::per_hour(10);
    let tight = Quota::per_hour(2).sliding();
    for (quotas, left) in [([bucket, tight], [8, 0]), ([tight, bucket], [0, 8])] {
        let policy = Policy::new("a", quotas[0]).and("b", quotas[1]);
        let case = Case::new(store, &[policy]);
        assert!(case.admits(2).await && !case.admits(1).await);
        let decision = case.peek(0).await;
        let remaining = decision.usages().iter().map(|usage| usage.remaining());
        assert_eq!(
            remaining.collect::<Vec<_>>(),
            left,
            "a rejection by a window takes nothing from a bucket"
        );
    }
    let tight = Quota::per_hour(2);
    let policy = Policy::new("a", Quota::per_hour(10).sliding()).and("b", tight);
    let case = Case::new(store, &[policy]);
    assert!(case.admits(2).await && !case.admits(1).await);
    assert_eq!(
        case.peek(0).await.usages()[0].remaining(),
        8,
        "a rejection by a bucket takes nothing from a window"
    );
}

async fn races_admit_what_a_window_does(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(50).sliding())
        .and("b", Quota::per_hour(45).burst(15).sliding());
    races_admit_fifty_of_sixty(store, policy).await;
}

async fn races_admit_fifty_of_sixty(store: &dyn RateStore, policy: Policy) {
    let case = Arc::new(Case::new(store, &[policy]));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let case = case.clone();
            tokio::spawn(async move {
                let mut admitted = 0;
                for _ in 0..20 {
                    admitted += u32::from(case.admits(1).await);
                    tokio::task::yield_now().await;
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += task.await.expect("a task that does not panic");
    }
    assert_eq!(admitted, 50, "exactly the burst, however many ask at once");
    let left = case.peek(0).await.usages()[1].remaining();
    assert_eq!(
        left, 10,
        "and exactly as much is taken from the other window"
    );
}
