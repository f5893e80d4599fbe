//! What a store has to do when the rules of a key differ or change.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use crate::policy::Policy;
use crate::quota::Quota;
use crate::rule::Rule;
use crate::store::{Charge, RateBuckets, RateStore};

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    an_override_keeps_what_is_used(store).await;
    an_override_is_for_one_quota(store).await;
    an_override_switches_a_quota_on_and_off(store).await;
    a_window_keeps_what_it_counted(store).await;
    let buckets = store.open(&[Quota::per_hour(1).into()]);
    if buckets.set_quotas(0, &[Quota::per_hour(2)]) {
        a_change_keeps_what_is_used(store, pass).await;
    }
    let tier = Policy::from(Quota::per_hour(2));
    if buckets.add_tier(0, "pro", &tier).is_some() {
        each_tier_counts_apart(store).await;
        policies_without_the_tier_count_in_one_place(store).await;
    }
}

fn overridden(charge: &Charge, rules: &[Option<Quota>]) -> Charge {
    let rules = rules.iter().map(|rule| rule.map(Rule::new));
    charge.clone().with_rules(&rules.collect::<Vec<_>>())
}

async fn left(buckets: &Arc<dyn RateBuckets>, charge: &Charge) -> Vec<u32> {
    let decision = buckets.peek(std::slice::from_ref(charge), 0).await;
    let usages = decision.usages().iter();
    usages.map(|usage| usage.remaining()).collect()
}

async fn admits(buckets: &Arc<dyn RateBuckets>, charge: &Charge, cost: u32) -> bool {
    let decision = buckets.take(std::slice::from_ref(charge), cost).await;
    decision.is_admitted()
}

async fn an_override_keeps_what_is_used(store: &dyn RateStore) {
    let buckets = store.open(&[Quota::per_hour(10).into()]);
    let charge = Charge::new(new_key(), 0);
    let own = overridden(&charge, &[Some(Quota::per_hour(70))]);
    assert!(admits(&buckets, &charge, 4).await);
    buckets.settle(std::slice::from_ref(&own));
    assert_eq!(
        left(&buckets, &own).await,
        [66],
        "a raise gives only the added room"
    );
    assert!(admits(&buckets, &own, 3).await);
    buckets.settle(std::slice::from_ref(&charge));
    assert_eq!(
        left(&buckets, &charge).await,
        [3],
        "deleting an override forgets nothing"
    );
}

async fn an_override_is_for_one_quota(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::per_hour(10)).and("b", Quota::per_day(100).sliding());
    let buckets = store.open(&[policy]);
    let charge = Charge::new(new_key(), 0);
    let own = overridden(&charge, &[None, Some(Quota::per_day(7).sliding())]);
    assert!(admits(&buckets, &own, 2).await);
    assert_eq!(left(&buckets, &own).await, [8, 5]);
    assert_eq!(left(&buckets, &charge).await, [8, 98]);
}

async fn an_override_switches_a_quota_on_and_off(store: &dyn RateStore) {
    let policy = Policy::new("a", Quota::off()).and("b", Quota::per_hour(9));
    let buckets = store.open(&[policy]);
    let charge = Charge::new(new_key(), 0);
    assert!(admits(&buckets, &charge, 1).await);
    assert_eq!(left(&buckets, &charge).await, [8]);
    let own = overridden(&charge, &[Some(Quota::per_hour(2)), Some(Quota::off())]);
    assert!(admits(&buckets, &own, 2).await);
    assert!(!admits(&buckets, &own, 1).await);
    assert_eq!(left(&buckets, &own).await, [0]);
    let denied = overridden(&charge, &[None, Some(Quota::deny_all())]);
    assert!(!admits(&buckets, &denied, 1).await);
    assert_eq!(
        left(&buckets, &charge).await,
        [8],
        "what is used stays meanwhile"
    );
}

async fn a_window_keeps_what_it_counted(store: &dyn RateStore) {
    let buckets = store.open(&[Quota::per_hour(10).sliding().into()]);
    let charge = Charge::new(new_key(), 0);
    let own = overridden(&charge, &[Some(Quota::per_day(30).sliding())]);
    assert!(admits(&buckets, &charge, 4).await);
    buckets.settle(std::slice::from_ref(&own));
    assert_eq!(left(&buckets, &own).await, [26]);
    assert!(admits(&buckets, &own, 1).await);
    buckets.settle(std::slice::from_ref(&charge));
    assert_eq!(left(&buckets, &charge).await, [5]);
}

async fn a_change_keeps_what_is_used(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    let buckets = store.open(&[Quota::per_minute(60).burst(3).into()]);
    let charge = Charge::new(new_key(), 0);
    let set = |quota| assert!(buckets.set_quotas(0, &[quota]));
    assert!(admits(&buckets, &charge, 3).await);
    set(Quota::per_minute(60).burst(10));
    assert!(admits(&buckets, &charge, 7).await);
    assert!(!admits(&buckets, &charge, 1).await);
    pass(2 * SECOND).await;
    assert!(admits(&buckets, &charge, 1).await, "it regains at its rate");
    set(Quota::deny_all());
    assert!(!admits(&buckets, &charge, 1).await);
    set(Quota::off());
    assert!(admits(&buckets, &charge, 100).await);
    set(Quota::per_hour(100));
    let [left] = left(&buckets, &charge).await[..] else {
        panic!("there is one quota");
    };
    assert!((90..100).contains(&left), "{left}");
}

async fn each_tier_counts_apart(store: &dyn RateStore) {
    let buckets = store.open(&[Quota::per_hour(1).into()]);
    let add = |name| buckets.add_tier(0, name, &Quota::per_hour(3).into());
    let (pro, max) = (add("pro").expect("a tier"), add("max").expect("another"));
    let charge = Charge::new(new_key(), 0);
    assert!(admits(&buckets, &charge, 1).await);
    for (set, cost) in [(pro, 2), (max, 1)] {
        let charge = Charge::new(charge.key, set);
        assert_eq!(left(&buckets, &charge).await, [3]);
        assert!(admits(&buckets, &charge, cost).await);
        assert_eq!(left(&buckets, &charge).await, [3 - cost]);
    }
    let charges = [charge];
    buckets.refund(&charges, 1).await;
    assert_eq!(left(&buckets, &charges[0]).await, [1]);
    let in_pro = Charge::new(charges[0].key, pro);
    assert_eq!(
        left(&buckets, &in_pro).await,
        [1],
        "a refund is of one tier"
    );
}

async fn policies_without_the_tier_count_in_one_place(store: &dyn RateStore) {
    let user = Policy::new("user", Quota::per_hour(1));
    let address = Policy::new("address", Quota::per_hour(5));
    let buckets = store.open(&[user, address]);
    let pro = buckets.add_tier(0, "pro", &Policy::new("user", Quota::per_hour(2)));
    let (user, address) = (new_key(), Charge::new(new_key(), 1));
    for set in [0, pro.expect("a tier")] {
        let charges = [Charge::new(user, set), address.clone()];
        assert!(buckets.take(&charges, 1).await.is_admitted());
    }
    assert_eq!(left(&buckets, &address).await, [3]);
}
