//! Admission control for tower services: decides which requests to accept, and tells rejected clients why and
//! when to retry.
//!
//! [`ConcurrencyLimitLayer`] answers 503 at capacity. [`RateLimitByTokenLayer`] answers 429 with an exact
//! `Retry-After`. Both wrap any tower HTTP service; axum, tonic and hyper need no adapter.
//!
//! ```
//! use std::net::SocketAddr;
//!
//! use axum::{Router, routing::post};
//! use tower::ServiceBuilder;
//! use tower_admission::{ClientIp, ConcurrencyLimitLayer, Quota, RateLimitByTokenLayer};
//!
//! let limits = ServiceBuilder::new()
//!     // Capacity outermost: a 503 spends no quota.
//!     .layer(ConcurrencyLimitLayer::new(64).name("AI Bridge"))
//!     .layer(
//!         RateLimitByTokenLayer::new(Quota::per_second(10).burst(20))
//!             // A client can make up tokens. This limit holds for its address, whatever token it sends.
//!             .and_by(ClientIp::peer(), Quota::per_second(50)),
//!     );
//!
//! let app: Router = Router::new()
//!     .route("/api/chat", post(|| async { "hello" }))
//!     .layer(limits)
//!     // Routes that are added after a layer are outside of it.
//!     .route("/health", axum::routing::get(|| async { "ok" }));
//!
//! // Passes on the addresses of clients. Serve it with `axum::serve(listener, service).await`.
//! let service = app.into_make_service_with_connect_info::<SocketAddr>();
//! ```
//!
//! Behind a proxy, use [`ClientIp::forwarded_by`] or [`ClientIp::forwarded_hops`] in place of
//! [`ClientIp::peer`]. If your authentication verifies users, charge the user: see [`ByToken`].
//!
//! # Where to go from here
//!
//! The [`guide`] has a chapter for each task, from [getting started](guide::getting_started) to
//! [operating](guide::operating). [Limitations](guide::limitations) lists what this crate does not do.
//!
//! | task | items |
//! |---|---|
//! | limit the requests in flight | [`ConcurrencyLimitLayer`], [`concurrency`] |
//! | limit the rate | [`RateLimitLayer`], [`RateLimitByTokenLayer`], [`rate`] |
//! | choose the key that a request is charged to | [`ByToken`], [`ClientIp`], [`KeyExtractor`], [`extract`] |
//! | choose the numbers | [`Quota`], [`Policy`], tiers ([`Policy::tier`]) |
//! | change the limits of a key at run time | [`Limits`] |
//! | ban and exempt clients | [`AccessLayer`], [`access`] |
//! | choose the answers that rejected clients get | [`Responder`], [`respond`], [`RateLimitHeaders`] |
//! | count sessions, jobs and other work that outlives its request | [`Leases`] |
//! | measure and log | [`Observer`], [`observe`] |
//! | limit something that is no HTTP service | [`RateLimiter`], [`ConcurrencyLimiter`] |
//! | choose where the counting happens | [`MemoryStore`], [`store`] |
//!
//! # Features
//!
//! `axum` is on by default. Switch it off with `default-features = false` if the server is tonic or bare hyper.
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | the client's address from axum's `ConnectInfo`; [`RateLimitStatus`] and [`UpgradePermit`] as extractors (axum 0.8) |
//! | `tonic` | the client's address from tonic's connect info; `NamedService` is forwarded, so that a layer can wrap a single service |
//! | `metrics` | `observe::MetricsObserver`, which records to the `metrics` facade |
//! | `tracing` | `observe::TracingObserver`, which logs decisions with their fields. Warnings need no feature |
//! | `serde` | `Quota` as text in configuration files |
//! | `test-util` | `test_util::TestClock` |
//! | `full` | all of these but `test-util` |
//!
//! # Crates
//!
//! | crate | adds |
//! |---|---|
//! | [`tower-admission-redis`](https://docs.rs/tower-admission-redis) | a store in Redis: one limit for all replicas of a service |
//! | [`tower-admission-axum`](https://docs.rs/tower-admission-axum) | endpoints for sessions, limits on WebSockets, admin endpoints with a page |
//! | [`tower-admission-config`](https://docs.rs/tower-admission-config) | limits by route group from a file and the environment, changed without a restart |
//! | [`tower-admission-cli`](https://crates.io/crates/tower-admission-cli) | the program `tower-admission`, which changes limits and shows usage |
//! | [`tower-admission-testkit`](https://docs.rs/tower-admission-testkit) | the tests that every store has to pass |

#![cfg_attr(docsrs, feature(doc_cfg))]

// The levels are in `tests/layering.rs`.
mod sync;

mod nesting;
mod per_thread;
mod singleton_task;

mod key;

// What limiters charge and observers see of a request.
pub mod extract;

mod enforce;

mod capacity;
mod policy;
mod quota;
mod rule;

mod limit;

mod decision;

pub mod store;

pub mod observe;
mod rejection;

mod limits;

mod limiter;

// The HTTP boundary: above it no http types but in `extract`, below it no algorithms.
mod body;
pub mod drain;
mod headers;
pub mod respond;

pub mod access;
pub mod concurrency;
pub mod rate;

pub mod provider;

pub use access::AccessLayer;
pub use body::ResponseBody;
pub use capacity::Capacity;
pub use concurrency::{
    ConcurrencyLimit, ConcurrencyLimitLayer, HoldUntil, PermitBody, ResponseStalled, UpgradePermit,
};
pub use decision::{Decision, Usage};
pub use drain::DrainRejectedLayer;
pub use extract::{
    ApiKey, BearerToken, ByToken, ClientIp, Extracted, KeyExtractor, PeerAddr, RequestHead,
    ResponseHead, Shared, TrustedHeader, UnixPeer,
};
pub use headers::RateLimitHeaders;
pub use key::{Key, KeyName, KeyNameError, Secret, SecretInstalled};
pub use limit::{Limit, LimitError};
pub use limiter::{
    ConcurrencyLimiter, HeartbeatLease, Lease, Leases, Permit, RateLimiter, SetPolicyError,
    SharedLimiters,
};
pub use limits::{
    CountedIn, LimitChange, LimitEdit, LimitExplanation, LimitSource, LimitUsage, LimitVerdict,
    Limits, LimitsError, ListEntry, Listing, Override,
};
pub use observe::Observer;
pub use policy::{NamedQuota, Policy, PolicyError};
pub use quota::{Quota, QuotaError};
pub use rate::{RateLimit, RateLimitByTokenLayer, RateLimitLayer, RateLimitStatus};
pub use rejection::{Occupancy, Reason, Rejection};
pub use respond::Responder;
pub use rule::Rule;
pub use store::MemoryStore;

/// For tests of services that use this crate, and of stores.
#[cfg(feature = "test-util")]
pub mod test_util {
    pub use crate::store::memory::clock::TestClock;
}

pub mod guide;

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
