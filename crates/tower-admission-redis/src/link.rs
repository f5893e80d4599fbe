//! The state of the connection to one server, as calls see it.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::call_error::CallError;
use super::health::Condition;

/// The state of a connection.
pub(super) enum Link {
    /// The first attempt is in progress: calls wait.
    New,
    Up(Line),
    /// The connection works but must be replaced: another server may be the master behind its address.
    Stale(Line),
    /// The server closed the last connection, and the first attempt to replace it is in progress: calls wait.
    Reconnecting,
    /// Calls fail with this cause.
    Down(CallError),
    /// Permanent: the cluster has removed this master.
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

/// A connection with its generation, so that a late failure of an old connection does not affect its successor.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) connection: MultiplexedConnection,
    pub(super) generation: u64,
    pub(super) since: Instant,
    pub(super) driver: Arc<DriverTask>,
}

/// Ends the task of a connection with the last call that uses it.
pub(super) struct DriverTask(pub(super) AbortHandle);

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
