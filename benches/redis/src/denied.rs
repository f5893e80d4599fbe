//! A key that Redis denied, denied again by the cache of this process.

use std::hint::black_box;

use tower_admission::store::{Charge, RateStore};
use tower_admission::{Key, Policy, Quota};
use tower_admission_redis::RedisStore;

use crate::rounds::{Effort, median, now};
use crate::server::Server;

/// Well within the second for which a denial is kept.
const CALLS: u32 = 100_000;

pub async fn denied(effort: Effort, server: &Server) {
    let store = RedisStore::connect(&server.url()).expect("a URL");
    let buckets = store.open(&[Policy::new("denied", Quota::per_day(1))]);
    let key = [Charge::new(Key::id("user", "denied"), 0)];
    let mut nanos = Vec::new();
    for _ in 0..effort.rounds {
        while buckets.take(&key, 1).await.is_admitted() {}
        let started = now();
        for _ in 0..CALLS {
            let _ = black_box(buckets.take(&key, 1).await);
        }
        nanos.push(started.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    println!(
        "\nA denied key, from the cache: {:.0} ns of one call",
        median(nanos)
    );
}
