//! The scripts' way to Redis: which server, whether to try at all, and each [call](super::call).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{FromRedisValue, ToRedisArgs};
use tokio::time::Instant;

use super::call::Call;
use super::context::Context;
use super::events::Events;
use super::failure::{CallError, OrFailure};
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
    /// For each server.
    pub(super) max_in_flight: usize,
    pub(super) events: Events,
}

/// Whether a call may be made again when its connection ended and it may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Once,
    Never,
}

/// Dropping it ends the supervisor.
pub(super) struct Client {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) context: Arc<Context>,
    pub(super) route: Route,
    /// Which task looks after the connections.
    pub(super) supervisor: SingletonTask,
    pub(super) ended: AtomicBool,
}

/// Which server a key lies on.
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

    /// How long a call may take.
    pub(super) fn patience(&self) -> Duration {
        self.context().options.deadline
    }

    /// When a call that begins now has to be done.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    /// Fails at once while the breaker of a key's server is open, for callers who then need not
    /// build a call. The key is asked for only while some breaker is open.
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
        // One that ended with its runtime, or stands still with it, is replaced.
        supervise(&self.shared);
        Err(self.failed(rejected))
    }

    /// Runs a script on the server of its keys, until `deadline`. Waits for room first when too
    /// many calls are under way.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        again: Again,
    ) -> Result<T, CallError> {
        self.run_in(true, script, keys, arguments, deadline, again)
            .await
    }

    /// The same, next to the calls that are bounded: for tasks in the background that make one at
    /// a time, and which requests must not keep from it.
    pub(super) async fn run_apart<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        again: Again,
    ) -> Result<T, CallError> {
        self.run_in(false, script, keys, arguments, deadline, again)
            .await
    }

    async fn run_in<T: FromRedisValue>(
        &self,
        is_bounded: bool,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
        again: Again,
    ) -> Result<T, CallError> {
        let mut call = Call::new(&self.shared, keys, deadline, again, is_bounded);
        let answer = match call.make(&script.call(keys, arguments)).await {
            Err(error) if error.is_no_script() => {
                // The source instead, which also puts it into the server's cache.
                call.make(&script.call_with_source(keys, arguments)).await
            }
            answer => answer,
        };
        // What an answer says is looked at apart: if it is something else than was asked for, the
        // connection has nothing to do with it.
        answer
            .and_then(|answer| redis::from_redis_value(answer).or_failure())
            .map_err(|error| self.failed(error))
    }

    /// Tells the observers.
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
