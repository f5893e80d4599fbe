//! Attempts to connect: with a time limit, and with a panic of the library turned into an error.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::call_error::{CallError, OrFailure};
use super::connection::Driver;
use super::context::Context;
use super::url::{Address, Target};
use tower_admission::store::FailureKind;

/// The time limit for a connection, including the server's first answers.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// Connects to a server; without an address, to the current master.
pub(super) async fn connect(
    context: Arc<Context>,
    address: Option<Address>,
) -> Result<(MultiplexedConnection, Driver), CallError> {
    attempt(context.target.has_tls(), async move {
        let target = &context.target;
        let address = match address {
            Some(address) => address,
            None => target.master().await?,
        };
        target.open(&address).await
    })
    .await
}

/// Makes one call on a connection of its own.
pub(super) async fn ask_once(
    target: &Target,
    address: &Address,
    question: &Cmd,
) -> Result<Value, CallError> {
    let (mut connection, mut driver) = target.open(address).await?;
    let mut answer = std::pin::pin!(question.query_async(&mut connection));
    tokio::select! {
        answer = &mut answer => answer.or_failure(),
        // The connection ended, so the answer is an error with the cause.
        () = &mut driver => answer.await.or_failure(),
    }
}

/// Connects in a separate task, because a library may panic.
pub(super) async fn attempt<T: Send + 'static>(
    has_tls: bool,
    attempted: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> Result<T, CallError> {
    let late = CallError::not_connected(has_tls);
    apart(async {
        let attempted = timeout(CONNECT_WITHIN, attempted).await;
        attempted.unwrap_or(Err(late))
    })
    .await
}

/// Runs a future that may panic in a separate task, which ends with this future.
pub(super) async fn apart<T: Send + 'static>(
    attempted: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> Result<T, CallError> {
    let mut task = JoinSet::new();
    task.spawn(attempted);
    match task.join_next().await {
        Some(Ok(attempted)) => attempted,
        Some(Err(error)) if error.is_panic() => Err(CallError::panicked(error.into_panic())),
        // The runtime is shutting down.
        Some(Err(_)) | None => Err(CallError::new(FailureKind::Disconnected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_in_an_answer_or_an_error() {
        assert_eq!(attempt(false, async { Ok(7) }).await.unwrap(), 7);
        let denied = attempt::<()>(false, async { Err(CallError::new(FailureKind::Denied)) });
        assert_eq!(denied.await.unwrap_err().kind(), FailureKind::Denied);
        let panicked = attempt::<()>(false, async { panic!("no crypto provider") });
        let error = panicked.await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Other);
        assert_eq!(error.detail(), Some("panicked: no crypto provider"));
        let endless = attempt::<()>(false, std::future::pending());
        assert_eq!(endless.await.unwrap_err().kind(), FailureKind::Timeout);
    }
}
