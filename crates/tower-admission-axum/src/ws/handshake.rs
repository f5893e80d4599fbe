//! The permit of a connection during its handshake.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, Receiver};
use tokio::time::timeout;
use tower_admission::Permit;

/// The time that a connection has to arrive after the response is gone. The response was sent or dropped; hyper does not
/// report which.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);

/// The permit. The connection takes it, or the timeout releases it.
type Slot = Arc<Mutex<Option<Permit>>>;

/// Upgrades a connection that has a permit, and serves it.
///
/// If another response is sent, hyper does not report this as long as the client keeps the connection. So the response
/// carries a guard. After the guard is dropped, the upgrade has a bounded time.
pub(super) fn upgrade<F, Fut>(upgrade: WebSocketUpgrade, permit: Permit, serve: F) -> Response
where
    F: FnOnce(WebSocket, Permit) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let slot = Slot::new(Mutex::new(Some(permit)));
    let (arrived, arrival) = oneshot::channel();
    let guard = UpgradeGuard {
        slot: slot.clone(),
        arrival: Some(arrival),
    };
    let mut response = upgrade.on_upgrade(move |socket| async move {
        let permit = take(&slot);
        drop(arrived);
        // A connection that arrives too late has no permit.
        if let Some(permit) = permit {
            serve(socket, permit).await;
        }
    });
    response.extensions_mut().insert(Arc::new(guard));
    response
}

/// A guard in the extensions of the response.
struct UpgradeGuard {
    slot: Slot,
    /// Ends when the connection arrives, or can no longer arrive.
    arrival: Option<Receiver<()>>,
}

impl Drop for UpgradeGuard {
    fn drop(&mut self) {
        let Some(arrival) = self.arrival.take() else {
            return;
        };
        let slot = self.slot.clone();
        let waiting = async move {
            let _ = timeout(UPGRADE_TIMEOUT, arrival).await;
            release(&slot);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(waiting)),
            Err(_) => release(&self.slot),
        }
    }
}

fn release(slot: &Slot) {
    // Not under the lock, because it wakes waiters.
    drop(take(slot));
}

fn take(slot: &Slot) -> Option<Permit> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}
