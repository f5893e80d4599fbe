//! Reads the rest of a rejected request's body before the rejection is sent.
//!
//! A client that writes its whole body before it reads cannot see an immediate rejection. Over HTTP/1
//! the server closes the connection while data is unread, which resets it. Over HTTP/2 many clients
//! wait for flow-control window. See
//! [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected).

mod future;
mod layer;
mod service;

pub use self::future::{KeepsRejectedBody, ResponseFuture};
pub use self::layer::DrainRejectedLayer;
pub use self::service::DrainRejected;
