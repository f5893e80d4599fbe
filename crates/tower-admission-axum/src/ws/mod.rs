//! Limits on WebSocket connections and their messages.
//!
//! See [`SocketLimits`].

mod closing;
mod handshake;
mod limits;
mod message_limiter;
mod message_settings;
mod pings;
mod reject_with;
mod socket;

pub use self::limits::SocketLimits;
pub use self::reject_with::RejectWith;
pub use self::socket::{LimitedSocket, SocketParts};
