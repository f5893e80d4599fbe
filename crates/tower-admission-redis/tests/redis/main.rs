//! The Redis store on real servers, which the tests start and end.
//!
//! Tests that take longer than five seconds have names that begin with `long_`. `cargo test -p tower-admission-redis
//! --all-features --test redis long_` runs only these; `-- --skip long_` leaves them out.

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

/// The charge of a user's request, in a limiter with one policy.
fn user(name: &str) -> [Charge; 1] {
    [Charge::new(Key::id("user", name), 0)]
}

/// Runs a test on random histories. Writes no file of failures, because a failure prints its history.
fn random_histories(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}
