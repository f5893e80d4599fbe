//! Limits on WebSockets and on what is sent over them, for axum.
//!
//! See [`SocketLimits`].

mod goodbye;
mod handshake;
mod limits;
mod message_settings;
mod messages;
mod pings;
mod refusal;
mod socket;

pub use self::limits::SocketLimits;
pub use self::refusal::Refusal;
pub use self::socket::{LimitedSocket, LimiterSet};
