//! Why a call to a store failed.

use std::fmt;
use std::sync::Arc;

/// The kind of failure of a call to a store that replicas share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// There is no connection.
    Disconnected,
    /// TLS failed: the certificate is not trusted, or it names another host. A server without TLS on this port
    /// usually causes a [`Timeout`](Self::Timeout) instead, because it does not answer.
    Tls,
    /// The answer did not arrive before the deadline.
    Timeout,
    /// The maximum number of calls is in progress already.
    Overloaded,
    /// The server rejects the credentials, or this user may not run the commands.
    Denied,
    /// The server is a read-only replica.
    ReadOnly,
    /// The server has no memory left, and evicts nothing.
    OutOfMemory,
    /// The server is busy: it loads its data, runs a long script, or its part of the cluster is down.
    Busy,
    /// The key holds data that this crate did not write.
    WrongData,
    /// The server is too old: Redis before 6.2.
    TooOld,
    /// The server does not know a command: it is a Sentinel or a proxy, or its commands are renamed.
    Unsupported,
    /// The URL cannot be used: it is invalid, the database does not exist, or the URL names another kind of server
    /// (a cluster node, a Sentinel or a single server).
    Configuration,
    /// Any other failure. The log line holds the server's message.
    Other,
}

impl FailureKind {
    /// All kinds, in the order in which they are declared.
    pub const ALL: &[Self] = &[
        Self::Disconnected,
        Self::Tls,
        Self::Timeout,
        Self::Overloaded,
        Self::Denied,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::Busy,
        Self::WrongData,
        Self::TooOld,
        Self::Unsupported,
        Self::Configuration,
        Self::Other,
    ];

    /// The word for logs and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Denied => "denied",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Busy => "busy",
            Self::WrongData => "wrong_data",
            Self::TooOld => "too_old",
            Self::Unsupported => "unsupported",
            Self::Configuration => "configuration",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call to a store that failed.
///
/// It holds the kind of failure and the server's message. A store must leave keys, arguments and passwords out of
/// the message.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: FailureKind,
    detail: Option<Arc<str>>,
}

impl StoreError {
    /// Creates an error of a kind.
    #[must_use]
    pub fn new(kind: FailureKind) -> Self {
        Self { kind, detail: None }
    }

    /// Adds a message that explains more than the kind does.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Arc<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The message of the server or of the operating system, if it explains more than the kind.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store failed: {}", self.kind)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_listed_in_their_order() {
        for (at, kind) in FailureKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
        assert_eq!(FailureKind::ALL.len(), FailureKind::Other as usize + 1);
    }

    #[test]
    fn an_error_shows_its_kind_and_its_detail() {
        let error = StoreError::new(FailureKind::Timeout);
        assert_eq!(error.to_string(), "the store failed: timeout");
        let error = error.with_detail("no answer");
        assert_eq!(error.to_string(), "the store failed: timeout: no answer");
    }
}
