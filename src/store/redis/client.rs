//! What a call goes through: the server of its keys, room, a connection, and at most one retry.
//!
//! All of it is within one deadline. A call whose connection ends before the answer is made once
//! more, on the next connection, if running twice does no harm. A call that is not answered in time
//! is never made again. In a cluster a call follows its keys to another server, as a redirection
//! has changed nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, ToRedisArgs, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::events::Events;
use super::failure::{FailureKind, StoreError};
use super::health::Health;
use super::node::{Fault, Node};
use super::post::Post;
use super::router::Router;
use super::script::Script;
use super::slots;
use super::supervisor::supervise;
use super::url::{Servers, Target};

/// Servers that a call is sent on to at most.
const HOPS: u32 = 3;

/// The pauses between calls that a cluster has no answer for yet.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

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
    pub(super) supervisor: Post,
    pub(super) ended: AtomicBool,
}

/// Which server a key lies on.
pub(super) enum Route {
    One(Arc<Node>),
    BySlot(Router),
}

/// What the servers of a store have in common.
pub(super) struct Context {
    pub(super) target: Target,
    pub(super) options: Options,
    pub(super) health: Health,
    started: Instant,
    /// Wakes the supervisor, and one that lost the job as well.
    pub(super) wake: watch::Sender<()>,
    /// Has a cluster's map asked for.
    pub(super) trouble: watch::Sender<()>,
    /// When the supervisor was last seen or called, in microseconds since `started`.
    attended: AtomicU64,
    /// Of the last connection.
    generation: AtomicU64,
}

impl Client {
    pub(super) fn new(target: Target, options: Options) -> Self {
        let context = Arc::new(Context {
            target,
            options,
            health: Health::default(),
            started: Instant::now(),
            wake: watch::Sender::new(()),
            trouble: watch::Sender::new(()),
            attended: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        });
        let route = match &context.target.servers {
            Servers::Cluster(seeds) => Route::BySlot(Router::new(seeds.clone(), context.clone())),
            _ => Route::One(Node::new(None, context.clone())),
        };
        Self {
            shared: Arc::new(Shared {
                context,
                route,
                supervisor: Post::default(),
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
    /// build a call.
    /// The key is asked for only while some breaker is open.
    #[inline]
    pub(super) fn check(&self, key: impl FnOnce() -> String) -> Result<(), StoreError> {
        self.check_any(|| [key()])
    }

    /// The same for several keys: fails while the breakers of all their servers are open.
    #[inline]
    pub(super) fn check_any<K: IntoIterator<Item = String>>(
        &self,
        keys: impl FnOnce() -> K,
    ) -> Result<(), StoreError> {
        if self.context().health.any_is_down() {
            self.check_each(&mut keys().into_iter())
        } else {
            Ok(())
        }
    }

    #[cold]
    fn check_each(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StoreError> {
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
    ) -> Result<T, StoreError> {
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
    ) -> Result<T, StoreError> {
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
    ) -> Result<T, StoreError> {
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
            .and_then(|answer| Ok(redis::from_redis_value(answer)?))
            .map_err(|error| self.failed(error))
    }

    /// Tells the observers.
    pub(super) fn failed(&self, error: StoreError) -> StoreError {
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

/// One call, over all the servers and connections that it takes.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    slot: u16,
    deadline: Instant,
    again: Again,
    is_bounded: bool,
    hops: u32,
    pause: Duration,
    /// Whether it may have run.
    was_sent: bool,
}

impl<'a> Call<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        keys: &[String],
        deadline: Instant,
        again: Again,
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
            again,
            is_bounded,
            hops: 0,
            pause: FIRST_PAUSE,
            was_sent: false,
        }
    }

    async fn make(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let made = self.try_make(command).await;
        made.map_err(|error| match self.was_sent {
            true => error.after_sending(),
            false => error,
        })
    }

    async fn try_make(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let mut asked = None;
        loop {
            let asking = asked.is_some();
            let node = match asked.take() {
                Some(node) => Some(node),
                None => self.node().await?,
            };
            let refused = match node {
                None => StoreError::because(FailureKind::Busy, "no server has the slot"),
                Some(node) => match self.send(&node, command, asking).await? {
                    Ok(answer) => return Ok(answer),
                    Err(Fault::Refused(error)) => match self.after_refusal(&node, error)? {
                        Next::Try => continue,
                        Next::Ask(node) => {
                            asked = Some(node);
                            continue;
                        }
                        Next::Pause(error) => error,
                    },
                    Err(Fault::Dropped(error)) => {
                        self.was_sent = true;
                        if self.again == Again::Never {
                            return Err(error.into());
                        }
                        self.again = Again::Never;
                        continue;
                    }
                    Err(Fault::TimedOut) => {
                        self.was_sent = true;
                        return Err(StoreError::new(FailureKind::Timeout));
                    }
                },
            };
            // No server has the slot at the moment.
            self.shared.context.is_in_trouble();
            let next = Instant::now() + self.pause;
            if next >= self.deadline {
                return Err(refused);
            }
            sleep_until(next).await;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
    }

    /// The server of the keys, if there is one.
    async fn node(&self) -> Result<Option<Arc<Node>>, StoreError> {
        match &self.shared.route {
            Route::One(node) => Ok(Some(node.clone())),
            Route::BySlot(router) => {
                if !router.is_known() {
                    supervise(self.shared);
                    router.wait_for_map(self.deadline).await?;
                }
                Ok(router.node(self.slot))
            }
        }
    }

    async fn send(
        &self,
        node: &Node,
        command: &Cmd,
        asking: bool,
    ) -> Result<Result<Value, Fault>, StoreError> {
        let _room = match self.is_bounded {
            true => Some(node.room(self.deadline).await?),
            false => None,
        };
        let line = match node.line() {
            Some(line) => line,
            None => {
                supervise(self.shared);
                node.wait_for_line(self.deadline).await?
            }
        };
        Ok(node.send(line, command, asking, self.deadline).await)
    }

    /// What to do about an answer that is an error: an error again, unless it leads on.
    fn after_refusal(&mut self, node: &Node, error: RedisError) -> Result<Next, StoreError> {
        let Route::BySlot(router) = &self.shared.route else {
            return Err(self.refused(error));
        };
        let kind = match error.kind() {
            ErrorKind::Server(kind) => kind,
            _ => return Err(self.refused(error)),
        };
        match kind {
            ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown => {
                return Ok(Next::Pause(error.into()));
            }
            ServerErrorKind::Moved | ServerErrorKind::Ask => {}
            _ => return Err(self.refused(error)),
        }
        if self.hops == HOPS {
            let words = "the servers of the cluster do not agree on the one that has the slot";
            return Err(StoreError::because(FailureKind::Busy, words));
        }
        self.hops += 1;
        let to = error.redirect_node().zip(node.address());
        let to = to.and_then(|((to, _), asked)| slots::redirection(to, asked));
        let Some(to) = to else {
            return Ok(Next::Pause(error.into()));
        };
        if kind == ServerErrorKind::Moved {
            router.has_moved(self.slot, &to);
            return Ok(Next::Try);
        }
        match router.node_at(&to) {
            Some(node) => Ok(Next::Ask(node)),
            None => Err(self.refused(error)),
        }
    }

    fn refused(&self, error: RedisError) -> StoreError {
        StoreError::from(error).after_sending()
    }
}

/// How a call goes on after a server did not run it.
enum Next {
    Try,
    /// The server takes the call if ASKING comes first.
    Ask(Arc<Node>),
    Pause(StoreError),
}

impl Context {
    pub(super) fn failed(&self, error: &StoreError) {
        self.options.events.failed(error);
    }

    pub(super) fn report_health(&self) {
        self.health
            .report(|reachable| self.options.events.reachable(reachable));
    }

    pub(super) fn wake_supervisor(&self) {
        self.wake.send_replace(());
    }

    /// Something is not as it was, of which the map of a cluster may tell.
    pub(super) fn is_in_trouble(&self) {
        self.trouble.send_replace(());
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// The supervisor was here, or was called.
    pub(super) fn attended(&self) {
        self.attended.store(self.micros(), Ordering::Relaxed);
    }

    pub(super) fn is_unattended_for(&self, time: Duration) -> bool {
        let since = self
            .micros()
            .saturating_sub(self.attended.load(Ordering::Relaxed));
        Duration::from_micros(since) > time
    }
}
