//! The suite for overrides, changes of rules, and tiers.

use std::sync::Arc;
use std::time::Duration;

use super::new_key;
use tower_admission::Policy;
use tower_admission::Quota;
use tower_admission::Rule;
use tower_admission::store::{Charge, RateBuckets, RateStore};

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &dyn RateStore, pass: &impl AsyncFn(Duration)) {
    an_override_keeps_what_is_used(store).await;
    an_override_is_for_one_quota(store).await;
    an_override_switches_a_quota_on_and_off(store).await;
    a_window_keeps_what_it_counted(store).await;
    an_override_is_of_its_key(store).await;
    an_override_is_seen_without_the_numbers(store).await;
    let buckets = store.open(&[Quota::per_hour(1).into()]);
    if buckets.set_quotas(0, &[Quota::per_hour(2)]) {
        a_change_keeps_what_is_used(store, pass).await;
        a_change_is_of_its_set(store).await;
    }
    let tier = Policy::from(Quota::per_hour(2));
    if buckets.add_tier(0, "pro", &tier).is_some() {
        each_tier_counts_apart(store).await;
        a_tier_has_overrides_and_changes(store).await;
        tiers_of_policies_are_apart(store).await;
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
    buckets.refund(std::slice::from_ref(&own), 2).await;
    assert_eq!(left(&buckets, &own).await, [2]);
    assert_eq!(
        left(&buckets, &charge).await,
        [8],
        "nothing is given back to a quota that is off"
    );
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

async fn an_override_is_of_its_key(store: &dyn RateStore) {
    let policies = ["a", "b"].map(|name| Policy::new(name, Quota::per_hour(10)));
    let buckets = store.open(&policies);
    let charges = [0, 1].map(|set| Charge::new(new_key(), set));
    let own = [
        charges[0].clone(),
        overridden(&charges[1], &[Some(Quota::per_hour(2))]),
    ];
    assert!(buckets.take(&own, 2).await.is_admitted());
    let rejected = buckets.take(&own, 1).await;
    assert!(
        !rejected.is_admitted(),
        "an override of the second key counts as well"
    );
    assert_eq!(
        left(&buckets, &own[0]).await,
        [8],
        "a rejection by an override takes nothing from another key"
    );
    buckets.refund(&own, 1).await;
    assert_eq!(left(&buckets, &own[0]).await, [9]);
    assert_eq!(left(&buckets, &own[1]).await, [1]);
    assert_eq!(left(&buckets, &Charge::new(new_key(), 1)).await, [10]);
}

async fn an_override_is_seen_without_the_numbers(store: &dyn RateStore) {
    let buckets = store.open(&[Quota::per_hour(10).into()]);
    for own in [
        Quota::per_hour(2),
        Quota::per_second(20).burst(2),
        Quota::deny_all(),
    ] {
        let charge = overridden(&Charge::new(new_key(), 0), &[Some(own)]);
        let most = own.burst_size().unwrap_or(0);
        for _ in 0..most {
            assert!(buckets.take_one(&charge) || admits(&buckets, &charge, 1).await);
        }
        // A quota that refills soon is not checked again.
        if own.period() != Some(SECOND) {
            assert!(
                !buckets.take_one(&charge) && !admits(&buckets, &charge, 1).await,
                "the quick way to a yes goes by the override"
            );
        }
    }
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

async fn a_change_is_of_its_set(store: &dyn RateStore) {
    let policies = ["a", "b"].map(|name| Policy::new(name, Quota::per_hour(10)));
    let buckets = store.open(&policies);
    let charges = [0, 1].map(|set| Charge::new(new_key(), set));
    assert!(buckets.take(&charges, 3).await.is_admitted());
    assert!(buckets.set_quotas(1, &[Quota::per_hour(20)]));
    assert_eq!(left(&buckets, &charges[0]).await, [7]);
    assert_eq!(left(&buckets, &charges[1]).await, [17]);
    let own = overridden(&charges[1], &[Some(Quota::per_hour(5))]);
    assert_eq!(
        left(&buckets, &own).await,
        [2],
        "an override goes before a changed default"
    );
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
    assert!(admits(&buckets, &charges[0], 1).await);
    buckets.refund(std::slice::from_ref(&in_pro), 1).await;
    assert_eq!(left(&buckets, &in_pro).await, [2]);
    assert_eq!(left(&buckets, &charges[0]).await, [0]);
    let key = new_key();
    let (in_pro, by_default) = (Charge::new(key, pro), Charge::new(key, 0));
    assert!(buckets.take_one(&in_pro) || admits(&buckets, &in_pro, 1).await);
    assert_eq!(
        (
            left(&buckets, &in_pro).await,
            left(&buckets, &by_default).await
        ),
        (vec![2], vec![1]),
        "the quick way to a yes goes by the tier"
    );
}

async fn a_tier_has_overrides_and_changes(store: &dyn RateStore) {
    let buckets = store.open(&[Quota::per_hour(3).into()]);
    let charge = Charge::new(new_key(), 0);
    assert!(admits(&buckets, &charge, 1).await);
    let pro = buckets.add_tier(0, "pro", &Quota::per_hour(10).into());
    let in_pro = Charge::new(charge.key, pro.expect("a tier"));
    assert_eq!(
        left(&buckets, &charge).await,
        [2],
        "adding a tier changes no usage"
    );
    assert!(admits(&buckets, &in_pro, 4).await);
    let own = overridden(&in_pro, &[Some(Quota::per_hour(5))]);
    assert_eq!(left(&buckets, &own).await, [1]);
    assert!(!admits(&buckets, &own, 2).await && admits(&buckets, &own, 1).await);
    assert_eq!(left(&buckets, &in_pro).await, [5]);
    if buckets.set_quotas(in_pro.set, &[Quota::per_hour(20)]) {
        assert_eq!(left(&buckets, &in_pro).await, [15]);
        assert_eq!(
            left(&buckets, &charge).await,
            [2],
            "a change of a tier is none of the default"
        );
    }
}

/// Tiers with one name, in two policies that charge one key.
async fn tiers_of_policies_are_apart(store: &dyn RateStore) {
    let policies = ["a", "b"].map(|name| Policy::new(name, Quota::per_hour(9)));
    let buckets = store.open(&policies);
    let add = |policy, name| {
        let quotas = Policy::new(name, Quota::per_hour(5));
        buckets.add_tier(policy, "pro", &quotas).expect("a tier")
    };
    let key = new_key();
    let charges = [add(0, "a"), add(1, "b")].map(|set| Charge::new(key, set));
    assert!(buckets.take(&charges, 2).await.is_admitted());
    for charge in &charges {
        assert_eq!(left(&buckets, charge).await, [3]);
    }
    assert!(admits(&buckets, &charges[1], 3).await);
    assert_eq!(left(&buckets, &charges[0]).await, [3]);
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
