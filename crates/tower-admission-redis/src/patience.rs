//! Waits until a deadline without losing an answer that has arrived.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::time::{Instant, timeout_at};

/// How often other tasks run before a call times out: the task that reads the connection, and the task that answers
/// requests of a shared call, also on a multi-thread runtime.
const TURNS: u32 = 4;

/// Waits for an answer until `deadline`; `None` if there is none.
///
/// A process that was paused past its deadlines, for example without a processor, finds expired timers and arrived
/// answers at the same time. The answers count.
pub(super) async fn answered_by<T>(
    deadline: Instant,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = pin!(answer);
    if let Ok(answer) = timeout_at(deadline, answer.as_mut()).await {
        return Some(answer);
    }
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
        let looked = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context)));
        if let Poll::Ready(answer) = looked.await {
            return Some(answer);
        }
    }
    None
}
