//! Admission control for tower services: who may come in now, and what the others are told.
//!
//! [`ConcurrencyLimitLayer`] answers 503 at capacity, [`RateLimitByTokenLayer`] answers 429 with
//! an honest `Retry-After`; both go around any tower HTTP service, in axum, tonic and hyper.
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
//!             // A client can make up tokens. This limit holds for its address, whatever it sends.
//!             .and_by(ClientIp::peer(), Quota::per_second(50)),
//!     );
//!
//! let app: Router = Router::new()
//!     .route("/api/chat", post(|| async { "hello" }))
//!     .layer(limits)
//!     // What is added after a layer is outside of it.
//!     .route("/health", axum::routing::get(|| async { "ok" }));
//!
//! // Passes on the clients' addresses. `axum::serve(listener, service).await` serves it.
//! let service = app.into_make_service_with_connect_info::<SocketAddr>();
//! ```
//!
//! Behind a proxy, use [`ClientIp::forwarded_by`] or [`ClientIp::forwarded_hops`] in place of
//! [`ClientIp::peer`]. Best is to charge the user that your authentication has verified: see [`ByToken`].
//!
//! # Where to go from here
//!
//! - [`concurrency`] and [`rate`]: the two layers, and what a refused client sees.
//! - [`extract`]: who is charged, also behind proxies.
//! - [`Quota`] and [`Policy`]: how much per how long, and several of these as one.
//! - [`respond`] and [`RateLimitHeaders`]: what clients are told.
//! - [`observe`]: metrics and logs.
//! - [`RateLimiter`] and [`ConcurrencyLimiter`]: the same without HTTP.
//! - [`Leases`]: work that outlives its request, such as sessions and jobs.
//! - [`Limits`]: what single keys may do, changed at run time.
//! - [`access`]: allow and deny lists of keys, addresses and networks.
//! - `config` (feature `config`): limits by route group, from a file that may change.
//! - `admin` (feature `admin`): limits looked at and changed while they are in use.
//! - [`store`]: where the counting happens, and what it costs in memory.
//! - `replicas` (feature `redis`): one limit for all replicas of a service.
//! - [`guide`]: how to choose limits, order of layers, CORS, proxies, slow clients, shutdown.
//! - [`limitations`]: what this crate does not do.
//!
//! # Features
//!
//! `axum` is on by default; switch it off with `default-features = false` where the server is tonic or bare
//! hyper. `full` turns on all but `cli`, `redis-tls` and `test-util`.
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | the peer's address from `ConnectInfo`; [`RateLimitStatus`] and [`UpgradePermit`] as extractors; `sessions`, endpoints for [`Leases`] |
//! | `admin` | `admin`: endpoints and a page to look at limits and to change them, with axum |
//! | `ws` | `ws`: limits on WebSockets and their messages, with axum |
//! | `tonic` | the peer's address from tonic's connect info; `NamedService` forwarded, to go around a single service |
//! | `metrics` | `MetricsObserver` |
//! | `tracing` | `TracingObserver`. Warnings are logged without it, too |
//! | `redis` | `RedisStore`: one limit for several replicas |
//! | `redis-tls` | connections to Redis over TLS |
//! | `cli` | the program `tower-admission`, which changes limits and shows what is used |
//! | `serde` | [`Quota`] as text in configuration files |
//! | `config` | `config`: limits by route group, from a file and the environment, changed without a restart |
//! | `test-util` | a clock for tests, and a suite for stores of your own |

#![cfg_attr(docsrs, feature(doc_cfg))]

// Each level uses only those above it; `tests/layering.rs` checks that.
mod sync;

mod nesting;
mod per_thread;

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

#[cfg(feature = "config")]
pub mod config;
#[cfg(feature = "axum")]
mod endpoint;

#[cfg(feature = "admin")]
pub mod admin;
#[cfg(feature = "axum")]
pub mod sessions;
#[cfg(feature = "ws")]
pub mod ws;

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
#[cfg(feature = "redis")]
pub use limiter::SharedLimiters;
pub use limiter::{
    ConcurrencyLimiter, KeptLease, Lease, Leases, Permit, RateLimiter, SetPolicyError,
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

/// A guide.
#[cfg(feature = "redis")]
#[doc = include_str!("../docs/replicas.md")]
pub mod replicas {}

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

#[doc = include_str!("../docs/limitations.md")]
pub mod limitations {}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
