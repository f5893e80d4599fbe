//! What a call to one server finds: a connection, or why there is none.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::failure::CallError;
use super::health::Condition;

/// What a call finds.
pub(super) enum Link {
    /// No attempt is over yet: calls wait.
    New,
    Up(Line),
    /// It can be used, and is to be replaced: behind its address another server may be the
    /// master by now.
    Stale(Line),
    /// The server closed the last connection, and the first attempt to replace it is under way:
    /// calls wait.
    Reconnecting,
    /// Calls fail. Why.
    Down(CallError),
    /// Nothing connects again: the cluster has no such master any more.
    Closed,
}

impl Link {
    pub(super) fn condition(&self) -> Condition {
        match self {
            Self::New => Condition::Unknown,
            // A connection that is replaced at once is no outage.
            Self::Up(_) | Self::Stale(_) | Self::Reconnecting => Condition::Up,
            Self::Down(_) => Condition::Down,
            Self::Closed => Condition::Closed,
        }
    }

    pub(super) fn line(&self) -> Option<&Line> {
        match self {
            Self::Up(line) | Self::Stale(line) => Some(line),
            _ => None,
        }
    }
}

/// A connection, and which one it is, so that a late failure of an old one does not
/// take down its successor.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) connection: MultiplexedConnection,
    pub(super) generation: u64,
    pub(super) since: Instant,
    pub(super) driver: Arc<DriverTask>,
}

/// Ends a connection's task with the last call that uses it.
pub(super) struct DriverTask(pub(super) AbortHandle);

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
