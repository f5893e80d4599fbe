//! A Redis store for [`tower_admission`]: replicas of a service share one limit.
//!
//! [`RedisStore`] counts rates, permits and leases, and keeps overrides that operators set at run time.
//!
//! | feature | adds |
//! |---|---|
//! | `tls` | connections over TLS: `rediss://`, and `RedisTls` |
//! | `metrics` | [`StoreObserver`] for `MetricsObserver`: health and failures of the store |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod answers;
mod arguments;
mod attempt;
mod call;
mod call_error;
mod client;
mod connection;
mod context;
mod decide;
mod descriptions;
mod detail;
mod events;
mod health;
mod keeper;
mod lanes;
mod leases;
mod link;
#[cfg(feature = "metrics")]
mod metrics;
mod named;
mod names;
mod node;
mod overrides;
mod patience;
mod ping;
mod rate;
mod recent_failures;
mod router;
mod script;
mod sentinel;
mod slots;
mod store;
mod supervisor;
mod sync;
mod takes;
#[cfg(test)]
mod test_server;
#[cfg(feature = "tls")]
mod tls;
mod url;

pub use self::events::StoreObserver;
use self::store::Inner;
pub use self::store::RedisStore;
#[cfg(feature = "tls")]
pub use self::tls::RedisTls;

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
