//! How a connection above a limit is refused.

/// How a connection is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Before the upgrade, with a status.
    #[default]
    Status,
    /// After the upgrade, with a close frame. While a thousand are being closed, the next are
    /// refused by status. A client that sends more than 16 KiB in one message, instead of reading
    /// why it has to go, is cut off.
    Close,
}
