//! The suite for the order of keys.

use super::new_key;
use tower_admission::Key;
use tower_admission::Policy;
use tower_admission::Quota;
use tower_admission::Usage;
use tower_admission::store::{Charge, RateStore};

/// Addresses are decided first, in any order of charges.
pub(super) async fn run(store: &dyn RateStore) {
    let policies = [3, 7].map(|limit| Policy::from(Quota::per_hour(limit)));
    let buckets = store.open(&policies);
    let mut address = [0x20; 16];
    getrandom::fill(&mut address[..8]).expect("the operating system gives random bytes");
    let address = Charge::new(Key::ip(address.into()), 1);
    let charges = [Charge::new(new_key(), 0), address];
    for cost in [2, 2] {
        let decision = buckets.take(&charges, cost).await;
        let limits = decision.usages().iter().map(Usage::limit);
        assert_eq!(limits.collect::<Vec<_>>(), [3, 7]);
    }
}
