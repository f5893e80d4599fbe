//! The client that runs scripts: finds the server, checks its breaker, and makes each [call](super::call).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{FromRedisValue, ToRedisArgs};
use tokio::time::Instant;

use super::call::Call;
use super::call_error::{CallError, OrFailure};
use super::context::Context;
use super::events::Events;
use super::node::Node;
use super::router::Router;
use super::script::Script;
use super::slots;
use super::supervisor::supervise;
use super::url::{Servers, Target};
use tower_admission::provider::SingletonTask;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) deadline: Duration,
    /// One for each server.
    pub(super) max_in_flight: usize,
    pub(super) events: Events,
}

/// Whether a call may be repeated after its connection ended, when a server may have run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Once,
    Never,
}

/// Ends the supervisor when dropped.
pub(super) struct Client {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) context: Arc<Context>,
    pub(super) route: Route,
    /// The task that supervises the connections.
    pub(super) supervisor: SingletonTask,
    pub(super) ended: AtomicBool,
}

/// Which server holds a key.
pub(super) enum Route {
    One(Arc<Node>),
    BySlot(Router),
}

impl Client {
    pub(super) fn new(target: Target, options: Options) -> Self {
        let context = Context::new(target, options);
        let route = match &context.target.servers {
            Servers::Cluster(seeds) => Route::BySlot(Router::new(seeds.clone(), context.clone())),
            _ => Route::One(Node::new(None, context.clone())),
        };
        Self {
            shared: Arc::new(Shared {
                context,
                route,
                supervisor: SingletonTask::default(),
                ended: AtomicBool::new(false),
            }),
        }
    }

    fn context(&self) -> &Context {
        &self.shared.context
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.shared.route, Route::BySlot(_))
    }

    pub(super) fn events(&self) -> &Events {
        &self.context().options.events
    }

    pub(super) fn target(&self) -> &Target {
        &self.context().target
    }

    pub(super) fn route(&self) -> &Route {
        &self.shared.route
    }

    /// The time limit of a call.
    pub(super) fn patience(&self) -> Duration {
        self.context().options.deadline
    }

    /// The deadline of a call that begins now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    /// Fails at once while the breaker of a key's server is open, so that the caller need not build a call. The key is
    /// computed only while some breaker is open.
    #[inline]
    pub(super) fn check(&self, key: impl FnOnce() -> String) -> Result<(), CallError> {
        self.check_any(|| [key()])
    }

    /// The same for several keys: fails while the breakers of all their servers are open.
    #[inline]
    pub(super) fn check_any<K: IntoIterator<Item = String>>(
        &self,
        keys: impl FnOnce() -> K,
    ) -> Result<(), CallError> {
        if self.context().health.any_is_down() {
            self.check_each(&mut keys().into_iter())
        } else {
            Ok(())
        }
    }

    #[cold]
    fn check_each(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), CallError> {
        let mut rejected = None;
        for key in keys {
            let of_key = match &self.shared.route {
                Route::One(node) => node.rejects(),
                Route::BySlot(router) => router.rejects(slots::slot(key.as_bytes())),
            };
            match of_key {
                Some(error) => rejected = Some(error),
                None => return Ok(()),
            }
        }
        let Some(rejected) = rejected else {
            return Ok(());
        };
        // Replaces a supervisor that ended or stalled with its runtime.
        supervise(&self.shared);
        Err(self.failed(rejected))
    }

    /// Runs a script on the server of its keys, until `deadline`. Waits for room first when the maximum number of calls
    /// is in progress.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        retry: Retry,
    ) -> Result<T, CallError> {
        self.run_in(true, script, keys, arguments, deadline, retry)
            .await
    }

    /// The same, outside of the maximum: for background tasks that make one call at a time and that requests must not
    /// block.
    pub(super) async fn run_apart<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        retry: Retry,
    ) -> Result<T, CallError> {
        self.run_in(false, script, keys, arguments, deadline, retry)
            .await
    }

    async fn run_in<T: FromRedisValue>(
        &self,
        is_bounded: bool,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        retry: Retry,
    ) -> Result<T, CallError> {
        let mut call = Call::new(&self.shared, keys, deadline, retry, is_bounded);
        let answer = match call.make(&script.call(keys, arguments)).await {
            Err(error) if error.is_no_script() => {
                // Sends the source, which the server also caches.
                call.make(&script.call_with_source(keys, arguments)).await
            }
            answer => answer,
        };
        // Parses the answer separately: an unexpected answer does not affect the connection.
        answer
            .and_then(|answer| redis::from_redis_value(answer).or_failure())
            .map_err(|error| self.failed(error))
    }

    /// Reports the error to the observers.
    pub(super) fn failed(&self, error: CallError) -> CallError {
        self.context().failed(&error);
        error
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.context().wake_supervisor();
    }
}
