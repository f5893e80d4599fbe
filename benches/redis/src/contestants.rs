//! The contestants: the crate's store, and clients that do as little as possible.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_admission::store::{
    AcquireOutcome, Charge, LeaseLimits, LeaseSlots, LeaseStore, RateBuckets, RateStore,
};
use tower_admission::{Key, Policy, Quota, Secret};
use tower_admission_redis::RedisStore;

use crate::server::{Server, load};
use crate::take;

/// The number of keys of a table with many.
pub const MANY: usize = 10_000;

/// Requests of each quota: enough to admit all, because a hot key takes some millions in a run.
pub const COUNT: u32 = 1_000_000_000;

/// The period of the bucket quotas. It is long, so that a bucket in use is not full, and so not
/// deleted, before its next decision.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The time in which a bucket refills one request, rounded up as the store does.
pub const INTERVAL_MICROS: u64 = (YEAR.as_micros() as u64).div_ceil(COUNT as u64);

/// The limits of permits: enough to grant all.
const PERMITS: u64 = 1_000_000;

pub const OURS: &str = "ours, one bucket";
pub const OURS_TWO: &str = "ours, two quotas";
pub const OURS_SLIDING: &str = "ours, sliding";
pub const OURS_PERMIT: &str = "ours, permit: acquire and release";
pub const OURS_PERMIT_PER_KEY: &str = "ours, permit, per key as well";
pub const OURS_PAIR: &str = "ours, token and global";
pub const BARE: &str = "bare client, same script";
pub const BARE_PAIR: &str = "bare client, token and global";
pub const SMALLEST: &str = "bare client, smallest GCRA";
pub const INCR: &str = "bare client, INCR and EXPIRE";

/// Decides requests in its own way. Each task has a clone.
#[derive(Clone)]
pub struct Contestant {
    pub name: &'static str,
    way: Method,
}

/// Lists have one entry for each key number.
#[derive(Clone)]
enum Method {
    Ours {
        buckets: Arc<dyn RateBuckets>,
        charges: Arc<[Box<[Charge]>]>,
    },
    Permit {
        store: RedisStore,
        slots: Arc<dyn LeaseSlots>,
        limits: Arc<[LeaseLimits]>,
    },
    Take {
        connection: MultiplexedConnection,
        hash: Arc<str>,
        keys: Arc<[Box<[String]>]>,
    },
    Smallest {
        connection: MultiplexedConnection,
        hash: Arc<str>,
        keys: Arc<[String]>,
    },
    Incr {
        connection: MultiplexedConnection,
        keys: Arc<[String]>,
    },
}

/// The contestants with one key for each request, and those with two.
pub async fn all(server: &Server) -> (Vec<Contestant>, Vec<Contestant>) {
    // The bench fails if Redis does not decide, so a busy machine gets time.
    let store = RedisStore::connect(&server.url())
        .expect("a URL")
        .deadline(Duration::from_secs(5))
        .secret(Secret::new([7; 16]));
    let year = Quota::new(COUNT, YEAR);
    let ours = |name, policies: &[Policy], charges: fn(usize) -> Box<[Charge]>| Contestant {
        name,
        way: Method::Ours {
            buckets: store.open(policies),
            charges: (0..MANY).map(charges).collect(),
        },
    };
    let permit = |name, limit, limits: fn(usize) -> LeaseLimits| Contestant {
        name,
        way: Method::Permit {
            store: store.clone(),
            slots: store.open_leases(limit),
            limits: (0..MANY).map(limits).collect(),
        },
    };
    let mut connection = server.connect().await;
    let take: Arc<str> = load(&mut connection, take::SOURCE).await.into();
    let smallest = load(&mut connection, include_str!("smallest_gcra.lua")).await;
    let taker = |name, keys: fn(usize) -> Box<[String]>| Contestant {
        name,
        way: Method::Take {
            connection: connection.clone(),
            hash: take.clone(),
            keys: (0..MANY).map(keys).collect(),
        },
    };

    let one_key = vec![
        ours(OURS, &[Policy::new("bench", year)], |n| [of(n)].into()),
        taker(BARE, |n| [redis_key("bench", n)].into()),
        ours(
            OURS_TWO,
            &[Policy::new("short", year).and("long", year)],
            |n| [of(n)].into(),
        ),
        ours(
            OURS_SLIDING,
            &[Policy::new("slides", Quota::per_hour(COUNT).sliding())],
            |n| [of(n)].into(),
        ),
        permit(OURS_PERMIT, "whole", |_| {
            LeaseLimits::new(Some(PERMITS), [])
        }),
        permit(OURS_PERMIT_PER_KEY, "keys", |n| {
            LeaseLimits::new(Some(PERMITS), [(of(n).key, PERMITS)])
        }),
        Contestant {
            name: SMALLEST,
            way: Method::Smallest {
                connection: connection.clone(),
                hash: smallest.into(),
                keys: (0..MANY).map(|n| redis_key("small", n)).collect(),
            },
        },
        Contestant {
            name: INCR,
            way: Method::Incr {
                connection: connection.clone(),
                keys: (0..MANY).map(|n| redis_key("count", n)).collect(),
            },
        },
    ];
    let two_keys = vec![
        ours(
            OURS_PAIR,
            &[Policy::new("token", year), Policy::new("global", year)],
            |n| [of(n), Charge::new(Key::id("all", "all"), 1)].into(),
        ),
        taker(BARE_PAIR, |n| {
            [redis_key("token", n), "{bare:all}:all".into()].into()
        }),
    ];
    (one_key, two_keys)
}

fn of(n: usize) -> Charge {
    Charge::new(Key::id("user", &n.to_string()), 0)
}

/// As long as a key of the store.
fn redis_key(name: &str, n: usize) -> String {
    format!("admission:rate:{name}:bare:{n:032}")
}

impl Contestant {
    /// Decides a request for the key with this number.
    ///
    /// # Panics
    ///
    /// Panics if the request is rejected, or if Redis did not decide.
    pub async fn decide(&mut self, key: usize, cost: u32) {
        match &mut self.way {
            Method::Ours { buckets, charges } => {
                let decision = buckets.take(&charges[key], cost).await;
                let by_redis = decision.remaining().is_some();
                assert!(decision.is_admitted() && by_redis, "{decision:?}");
            }
            Method::Permit { slots, limits, .. } => {
                let leased = slots.acquire(limits[key].clone()).await;
                assert!(matches!(leased, AcquireOutcome::Granted(_)), "{leased:?}");
            }
            Method::Take {
                connection,
                hash,
                keys,
            } => {
                let keys = &*keys[key];
                let mut command = redis::cmd("EVALSHA");
                command.arg(&**hash).arg(keys.len()).arg(keys);
                take::add_arguments(&mut command, keys.len(), cost);
                let reply: Vec<i64> = command.query_async(connection).await.expect("a reply");
                assert!(take::is_admitted(&reply, keys.len()), "{reply:?}");
            }
            Method::Smallest {
                connection,
                hash,
                keys,
            } => {
                let mut command = redis::cmd("EVALSHA");
                command.arg(&**hash).arg(1).arg(&keys[key]);
                command.arg(u64::from(cost) * INTERVAL_MICROS);
                command.arg(u64::from(COUNT) * INTERVAL_MICROS);
                let left: i64 = command.query_async(connection).await.expect("a reply");
                assert!(left >= 0, "{left}");
            }
            Method::Incr { connection, keys } => {
                let mut pipe = redis::pipe();
                pipe.incr(&keys[key], 1);
                pipe.expire(&keys[key], 3600).ignore();
                let (count,): (u64,) = pipe.query_async(connection).await.expect("a reply");
                black_box(count);
            }
        }
    }

    /// Waits until the permits of the last decisions are released.
    pub async fn finish(&self) {
        if let Method::Permit { store, .. } = &self.way {
            store.flush().await.expect("the permits are released");
        }
    }
}
