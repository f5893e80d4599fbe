//! Unlike `tower::limit::ConcurrencyLimit`, which makes requests wait, this rejects what is above
//! the limit: at capacity a request is answered 503 at once.
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
