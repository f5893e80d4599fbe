//! The slot of a connection that is not there yet.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, Receiver};
use tokio::time::timeout;
use tower_admission::Permit;

/// How long a connection may take to be there once its handshake's answer is gone: sent, or dropped.
/// Which of them cannot be told.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);

/// Given back by whoever takes it: the connection, or else who waits for it in vain.
type Slot = Arc<Mutex<Option<Permit>>>;

/// Upgrades a connection whose slot is taken, and serves it.
///
/// When another answer than this one is sent, hyper tells nobody for as long as the client keeps
/// its connection. So the answer carries a guard, from whose end the upgrade has a bounded time.
pub(super) fn upgrade<F, Fut>(upgrade: WebSocketUpgrade, permit: Permit, serve: F) -> Response
where
    F: FnOnce(WebSocket, Permit) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let slot = Slot::new(Mutex::new(Some(permit)));
    let (arrived, arrival) = oneshot::channel();
    let answer = Answer {
        slot: slot.clone(),
        arrival: Some(arrival),
    };
    let mut response = upgrade.on_upgrade(move |socket| async move {
        let permit = take(&slot);
        drop(arrived);
        // A connection that comes too late has no slot any more.
        if let Some(permit) = permit {
            serve(socket, permit).await;
        }
    });
    response.extensions_mut().insert(Arc::new(answer));
    response
}

/// Goes along with the answer, in its extensions.
struct Answer {
    slot: Slot,
    /// Ends when the connection is there or will never be.
    arrival: Option<Receiver<()>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(arrival) = self.arrival.take() else {
            return;
        };
        let slot = self.slot.clone();
        let waiting = async move {
            let _ = timeout(UPGRADE_WITHIN, arrival).await;
            give_back(&slot);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(waiting)),
            Err(_) => give_back(&self.slot),
        }
    }
}

fn give_back(slot: &Slot) {
    // Not under the lock, because it wakes waiters.
    drop(take(slot));
}

fn take(slot: &Slot) -> Option<Permit> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}
