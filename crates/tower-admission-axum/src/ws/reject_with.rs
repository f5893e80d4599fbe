//! How connections are rejected.

/// How a connection is rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectWith {
    /// With a status, before the upgrade.
    #[default]
    Status,
    /// With a close frame, after the upgrade. At most 1000 connections are closed at a time; further ones are rejected
    /// with a status. A client that sends a message above 16 KiB before it answers the close frame is disconnected.
    Close,
}
