//! One call: finds the server of its keys, waits for room and for a connection, and repeats the call at most once,
//! within one deadline.
//!
//! A call whose connection ends before the answer is repeated once on the next connection, if running twice does no
//! harm. A call without an answer in time is never repeated. In a cluster a call follows its keys to another server: a
//! server that redirects a call has not run it.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::time::{Instant, sleep_until};

use super::call_error::{CallError, ClientError};
use super::client::{Retry, Route, Shared};
use super::node::{Fault, Node};
use super::slots;
use super::supervisor::supervise;
use tower_admission::store::FailureKind;

/// The maximum number of redirections of a call.
const HOPS: u32 = 3;

/// The pauses before a call is repeated that no server accepts at the moment.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// One call, over all servers and connections that it uses.
pub(super) struct Call<'a> {
    shared: &'a Arc<Shared>,
    slot: u16,
    deadline: Instant,
    retry: Retry,
    is_bounded: bool,
    hops: u32,
    pause: Duration,
    /// Whether a server may have run it.
    was_sent: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        keys: &[String],
        deadline: Instant,
        retry: Retry,
        is_bounded: bool,
    ) -> Self {
        let slot = match (&shared.route, keys.first()) {
            (Route::BySlot(_), Some(key)) => slots::slot(key.as_bytes()),
            _ => 0,
        };
        Self {
            shared,
            slot,
            deadline,
            retry,
            is_bounded,
            hops: 0,
            pause: FIRST_PAUSE,
            was_sent: false,
        }
    }

    pub(super) async fn make(&mut self, command: &Cmd) -> Result<Value, CallError> {
        let made = self.try_make(command).await;
        made.map_err(|error| match self.was_sent {
            true => error.after_sending(),
            false => error,
        })
    }

    async fn try_make(&mut self, command: &Cmd) -> Result<Value, CallError> {
        let mut asked = None;
        loop {
            let asking = asked.is_some();
            let node = match asked.take() {
                Some(node) => Some(node),
                None => self.node().await?,
            };
            let rejected = match node {
                Some(node) => match self.ask(&node, command, asking).await? {
                    Step::Done(answer) => return Ok(answer),
                    Step::Try => continue,
                    Step::Ask(node) => {
                        asked = Some(node);
                        continue;
                    }
                    Step::Pause(error) => error,
                },
                None => CallError::because(FailureKind::Busy, "no server has the slot"),
            };
            self.shared.context.request_map();
            if self.shared.supervisor.is_idle() {
                supervise(self.shared);
            }
            let next = Instant::now() + self.pause;
            if next >= self.deadline {
                return Err(rejected);
            }
            sleep_until(next).await;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
    }

    /// The server of the keys, if it is known.
    async fn node(&self) -> Result<Option<Arc<Node>>, CallError> {
        match &self.shared.route {
            Route::One(node) => Ok(Some(node.clone())),
            Route::BySlot(router) => {
                if !router.is_known() {
                    let supervise = || supervise(self.shared);
                    router.wait_for_map(self.deadline, supervise).await?;
                }
                Ok(router.node(self.slot))
            }
        }
    }

    async fn ask(&mut self, node: &Node, command: &Cmd, asking: bool) -> Result<Step, CallError> {
        let _room = match self.is_bounded {
            true => Some(node.room(self.deadline).await?),
            false => None,
        };
        let line = match node.line() {
            Some(line) => Ok(line),
            None => {
                let supervise = || supervise(self.shared);
                node.wait_for_line(self.deadline, supervise).await
            }
        };
        let line = match line {
            Ok(line) => line,
            // The map has changed meanwhile.
            Err(_) if node.is_closed() => return Ok(Step::Try),
            Err(error) => return Err(error),
        };
        match node.send(line, command, asking, self.deadline).await {
            Ok(answer) => Ok(Step::Done(answer)),
            Err(Fault::Refused(error)) => self.after_refusal(node, error),
            Err(Fault::Dropped(error)) => {
                self.was_sent = true;
                match std::mem::replace(&mut self.retry, Retry::Never) {
                    Retry::Once => Ok(Step::Try),
                    Retry::Never => Err(error.into_failure()),
                }
            }
            Err(Fault::TimedOut) => {
                self.was_sent = true;
                Err(CallError::new(FailureKind::Timeout))
            }
        }
    }

    /// Handles an answer that is an error: returns an error, or the next step of the call.
    fn after_refusal(&mut self, node: &Node, error: RedisError) -> Result<Step, CallError> {
        let Route::BySlot(router) = &self.shared.route else {
            return Err(self.rejected(error));
        };
        let kind = match error.kind() {
            ErrorKind::Server(kind) => kind,
            _ => return Err(self.rejected(error)),
        };
        match kind {
            ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown => {
                return Ok(Step::Pause(error.into_failure()));
            }
            ServerErrorKind::Moved | ServerErrorKind::Ask => {}
            _ => return Err(self.rejected(error)),
        }
        if self.hops == HOPS {
            let words = "the servers of the cluster do not agree on the one that has the slot";
            return Err(CallError::because(FailureKind::Busy, words));
        }
        self.hops += 1;
        let to = error.redirect_node().zip(node.address());
        let to = to.and_then(|((to, _), asked)| slots::redirection(to, asked));
        let Some(to) = to else {
            return Ok(Step::Pause(error.into_failure()));
        };
        if kind == ServerErrorKind::Moved {
            router.has_moved(self.slot, &to);
            return Ok(Step::Try);
        }
        match router.node_at(&to) {
            Some(node) => Ok(Step::Ask(node)),
            None => Err(self.rejected(error)),
        }
    }

    fn rejected(&self, error: RedisError) -> CallError {
        error.into_failure().after_sending()
    }
}

/// The result of a call at one server.
enum Step {
    Done(Value),
    /// The server did not run it, or it may be repeated once.
    Try,
    /// Another server accepts it after ASKING.
    Ask(Arc<Node>),
    /// No server accepts it at the moment.
    Pause(CallError),
}
