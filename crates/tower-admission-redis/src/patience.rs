//! Waiting until a deadline, without a loss of what has arrived.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::time::{Instant, timeout_at};

/// How often others run before an answer is given up: the task that reads the connection, and the one that
/// answers those who share a call, on runtimes with several threads too.
const TURNS: u32 = 4;

/// Waits for an answer until `deadline`; `None` if there is none.
///
/// A process that stood still past its deadlines, as when the operating system gave it no processor, finds timers
/// that fired and answers that arrived, at the same time. The answers count.
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
