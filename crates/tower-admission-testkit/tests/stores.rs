//! The suites, on the stores of the core.

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_passes_the_suite_for_rates() {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    tower_admission_testkit::rate_store(&store, async |time| clock.advance(time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_memory_store_passes_the_suite_for_rates() {
    let clock = TestClock::default();
    let store = MemoryStore::new().max_keys(4).clock(clock.clone());
    tower_admission_testkit::rate_store(&store, async |time| clock.advance(time)).await;
}

/// On the real clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_passes_the_suite_for_rates_in_real_time() {
    tower_admission_testkit::rate_store(&MemoryStore::new(), tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_passes_the_suite_for_leases() {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    tower_admission_testkit::lease_store(&store, async |time| clock.advance(time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_passes_the_suite_for_leases_in_real_time() {
    tower_admission_testkit::lease_store(&MemoryStore::new(), tokio::time::sleep).await;
}
