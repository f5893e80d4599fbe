//! Test suites that every store of [`tower_admission`] must pass. Run them on your own store.
//!
//! ```
//! # tokio_test::block_on(async {
//! use tower_admission::store::MemoryStore;
//! use tower_admission::test_util::TestClock;
//!
//! let clock = TestClock::default();
//! let store = MemoryStore::new().clock(clock.clone());
//! tower_admission_testkit::rate_store(&store, async |time| clock.advance(time)).await;
//! # });
//! ```

mod leases;
mod named;
mod order;
mod rates;
mod rules;

use std::time::Duration;

use tower_admission::Key;
use tower_admission::store::{LeaseStore, RateStore};

/// Runs the suite for rate stores. `pass` lets the store's time pass: it advances a test clock, or sleeps. The suite
/// skips [changes of quotas](tower_admission::store::RateBuckets::set_quotas) and
/// [tiers](tower_admission::store::RateBuckets::add_tier) if the store does not support them.
///
/// # Panics
///
/// When the store breaks the contract of [`RateStore`] or [`RateBuckets`](tower_admission::store::RateBuckets).
pub async fn rate_store(store: &dyn RateStore, pass: impl AsyncFn(Duration)) {
    rates::run(store, &pass).await;
    order::run(store).await;
    rules::run(store, &pass).await;
}

/// Runs the suite for lease stores. `pass` is as for [`rate_store`].
///
/// # Panics
///
/// When the store breaks the contract of [`LeaseStore`] or [`LeaseSlots`](tower_admission::store::LeaseSlots).
pub async fn lease_store(store: &dyn LeaseStore, pass: impl AsyncFn(Duration)) {
    leases::run(store).await;
    named::run(store, pass).await;
}

/// A key that no other run of the suite uses, because a store may keep data.
fn new_key() -> Key {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    Key::new("suite", &id)
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
