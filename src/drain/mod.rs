//! Reads the rest of a rejected request's body before the rejection is sent.
//!
//! A client that uploads before it reads cannot see a rejection that is sent at once: over HTTP/1
//! the server closes the connection with unread data in it, which resets it, and over HTTP/2 many
//! clients wait for room to send. See
//! [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected).

mod future;
mod layer;
mod service;

pub use self::future::{KeepsRejectedBody, ResponseFuture};
pub use self::layer::DrainRejectedLayer;
pub use self::service::DrainRejected;
