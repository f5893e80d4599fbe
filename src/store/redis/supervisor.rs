//! The task that connects, and connects again when the connection is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::client::Shared;
use super::connection::{CONNECT_WITHIN, Connection};
use super::failure::{FailureKind, StoreError};
use super::post::Term;

/// The pauses between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long there may be no connection and no sign of the supervisor, which gives one with each
/// try, before another takes its place: the runtime that should drive it is there and does not.
const OVERDUE: Duration = Duration::from_secs(2);

/// What calls find.
#[derive(Clone)]
pub(super) enum Link {
    /// Nobody has tried to connect yet, so a call waits for the first try to end.
    New,
    Up(Line),
    /// Calls fail until the supervisor has a connection again. Why there is none.
    Down(StoreError),
}

/// A connection, and which one it is, so that a late failure of an old one does not
/// take down its successor.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) connection: Connection,
    pub(super) generation: u64,
}

/// Starts the supervisor, unless there is one that works. For calls that find no connection.
pub(super) fn supervise(shared: &Arc<Shared>) {
    let taken = if shared.is_unattended_for(OVERDUE) {
        shared.supervisor.take_over()
    } else {
        shared.supervisor.take()
    };
    let Some(term) = taken else {
        return;
    };
    shared.attended();
    let supervised = Supervised {
        shared: shared.clone(),
        term,
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(supervised.supervise())),
        // Dropped, so that the next call tries again.
        Err(_) => drop(supervised),
    }
}

/// The supervisor at work. When it ends with its runtime, there is none any more; its connection,
/// which that runtime drove, is gone with it.
struct Supervised {
    shared: Arc<Shared>,
    term: Term,
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.shared.supervisor.is(self.term) {
            self.shared.link.send_replace(Link::New);
            self.shared.supervisor.leave(self.term);
        }
    }
}

impl Supervised {
    async fn supervise(self) {
        let shared = &*self.shared;
        let mut wake = shared.wake.subscribe();
        let mut pause = FIRST_PAUSE;
        shared.events().connecting();
        loop {
            let connected = timeout(CONNECT_WITHIN, shared.target.connect()).await;
            // What went wrong before is mended with this connection.
            wake.mark_unchanged();
            if self.is_over() {
                return;
            }
            shared.attended();
            match connected.unwrap_or_else(|_| Err(StoreError::new(FailureKind::Timeout))) {
                Ok(connection) => {
                    shared.connected(connection);
                    let connected = Instant::now();
                    // It ends with what it belongs to.
                    let _ = wake.changed().await;
                    // A connection that held for a while starts over with short pauses.
                    if connected.elapsed() > 2 * LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(error) => shared.not_connected(&error),
            }
            if self.is_over() {
                return;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether there is nothing more to do, or another does it.
    fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire) || !self.shared.supervisor.is(self.term)
    }
}
