//! Rejects requests above a concurrency limit with 503 at once. Unlike this layer,
//! `tower::limit::ConcurrencyLimit` makes requests wait.
//!
//! See [`ConcurrencyLimitLayer`].

mod body;
mod future;
mod joint;
mod layer;
mod service;
mod settings;
mod upgrade;

pub use self::body::{PermitBody, ResponseStalled};
pub use self::future::ResponseFuture;
pub use self::layer::{ConcurrencyLimitLayer, HoldUntil};
pub use self::service::ConcurrencyLimit;
pub use self::upgrade::UpgradePermit;
