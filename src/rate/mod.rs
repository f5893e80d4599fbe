//! Unlike `tower::limit::RateLimit`, which makes requests wait, this rejects what is above the
//! quota: the request is answered 429 at once, and told when to come back.
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
mod shared;
mod status;

pub use self::future::ResponseFuture;
pub use self::layer::{RateLimitByTokenLayer, RateLimitLayer};
pub use self::service::RateLimit;
pub use self::status::RateLimitStatus;
