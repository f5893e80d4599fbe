//! What every store has to do, as suites of tests to run on it.
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

/// Runs the whole suite. `pass` lets the store's time pass: it moves a test clock, or sleeps. Of a store that
/// cannot [change quotas](tower_admission::store::RateBuckets::set_quotas) or has no [tiers](tower_admission::store::RateBuckets::add_tier) that is not
/// asked for.
///
/// # Panics
///
/// When the store does something else than [`RateStore`] and [`RateBuckets`](tower_admission::store::RateBuckets) say.
pub async fn rate_store(store: &dyn RateStore, pass: impl AsyncFn(Duration)) {
    rates::run(store, &pass).await;
    order::run(store).await;
    rules::run(store, &pass).await;
}

/// Runs the suite for slots. `pass` is as for [`rate_store`].
///
/// # Panics
///
/// When the store does something else than [`LeaseStore`] and [`LeaseSlots`](tower_admission::store::LeaseSlots) say.
pub async fn lease_store(store: &dyn LeaseStore, pass: impl AsyncFn(Duration)) {
    leases::run(store).await;
    named::run(store, pass).await;
}

/// A key that no run of the suite had before, as a store may remember.
fn new_key() -> Key {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    Key::new("suite", &id)
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
