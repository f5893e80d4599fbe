//! Rejects requests above a quota with 429 at once, with the time to retry in `Retry-After`. Unlike this
//! layer, `tower::limit::RateLimit` makes requests wait.
//!
//! See [`RateLimitLayer`] and [`RateLimitByTokenLayer`].

mod account;
mod future;
mod guard;
mod joint;
mod layer;
mod reporting;
mod service;
mod settings;
mod state;
mod status;

pub use self::future::ResponseFuture;
pub use self::layer::{RateLimitByTokenLayer, RateLimitLayer};
pub use self::service::RateLimit;
pub use self::status::RateLimitStatus;
