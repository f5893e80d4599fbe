//! The Redis store on real servers, which the tests start and end themselves.
//!
//! Those that take over five seconds are called `long_..`; `cargo test --all-features --test redis
//! long_` runs them alone, and with `-- --skip long_` they are left out.

mod access;
mod bursts;
#[cfg(feature = "tls")]
mod certificates;
mod cluster;
mod cluster_faults;
mod connecting;
mod decisions;
mod events;
mod exact;
mod faults;
mod keeper;
mod layers;
mod lease_clock;
mod leases;
mod limits;
mod lost;
#[cfg(feature = "metrics")]
mod metrics;
mod model;
mod named;
mod named_faults;
mod network;
mod ping;
mod proxy;
mod rate;
mod sentinel;
mod server;
mod tiers;
#[cfg(feature = "tls")]
mod tls;

use proptest::test_runner::{Config, TestRunner};
use tower_admission::Key;
use tower_admission::store::Charge;

/// What a request of a user charges, in a limiter of one policy.
fn user(name: &str) -> [Charge; 1] {
    [Charge::new(Key::id("user", name), 0)]
}

/// Runs a test on random histories. Writes no file of failures, as a failure prints its history.
fn random_histories(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}
