//! Leases in the memory store: slots for work that outlives its request.
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

/// Leases on a clock that the test controls.
fn on_clock(leases: Leases) -> (Leases, TestClock) {
    let clock = TestClock::default();
    let store = MemoryStore::new().clock(clock.clone());
    (leases.store(store), clock)
}

async fn used(leases: &Leases, name: &str) -> u64 {
    let usage = leases.usage(&tenant(name)).await;
    usage
        .expect("the store answers")
        .key
        .expect("the count of the key")
}

async fn total(leases: &Leases) -> u64 {
    let usage = leases.usage(&tenant("anybody")).await;
    usage.expect("the store answers").total
}

const SECOND: Duration = Duration::from_secs(1);

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
