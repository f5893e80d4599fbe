//! The suite that every store has to pass, on the stores of this crate.

use tower_admission::store::MemoryStore;
use tower_admission::test_util::TestClock;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    tower_admission_testkit::rate_store(&store, async |time| clock.advance(time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_with_little_room() {
    let clock = TestClock::default();
    let store = MemoryStore::new().max_keys(4).clock(clock.clone());
    tower_admission_testkit::rate_store(&store, async |time| clock.advance(time)).await;
}

/// On the real clock: quanta's, not one that a test holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_on_real_time() {
    tower_admission_testkit::rate_store(&MemoryStore::new(), tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_in_memory() {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    tower_admission_testkit::lease_store(&store, async |time| clock.advance(time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_in_memory_on_real_time() {
    tower_admission_testkit::lease_store(&MemoryStore::new(), tokio::time::sleep).await;
}
