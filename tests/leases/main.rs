//! Leases: slots for work that outlives its request, in memory and without a store.
#![cfg(feature = "test-util")]

mod away;
mod failure;
mod guards;
mod keep_alive;
mod limits;
mod model;
mod reaper;

use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tower_admission::test_util::TestClock;
use tower_admission::{Key, Leases, MemoryStore};

fn tenant(name: &str) -> Key {
    Key::id("tenant", name)
}

/// Leases on a clock that the test holds.
fn on_clock(leases: Leases) -> (Leases, TestClock) {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    (leases.store(store), clock)
}

async fn used(leases: &Leases, name: &str) -> u64 {
    let usage = leases.usage(&tenant(name)).await;
    usage.expect("a store that answers").key.expect("asked for")
}

async fn total(leases: &Leases) -> u64 {
    let usage = leases.usage(&tenant("anybody")).await;
    usage.expect("a store that answers").total
}

const SECOND: Duration = Duration::from_secs(1);

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
