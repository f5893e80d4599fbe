//! A connection that is looked after: each call has a deadline, and none waits for a repair.
//!
//! Calls use the connection that is there. When it fails, the call that notices marks it as lost,
//! which opens the breaker: later calls fail at once, without a wait. A task of its own, the
//! supervisor, then tries to connect, again and again with a growing, jittered pause; its try is
//! the one probe of the half-open breaker, and its success closes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, RedisFuture, ToRedisArgs, Value,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Events, FailureKind, StoreError};
use super::script::Script;
use super::url::{Target, check_version};

/// How long the supervisor tries to connect, the server's first answer included.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// The supervisor's pauses between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Calls in a row that have to time out before the connection is given up.
const TIMEOUTS: u32 = 3;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) deadline: Duration,
    pub(super) max_in_flight: usize,
    pub(super) events: Events,
}

/// Dropping it ends the supervisor.
pub(super) struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    options: Options,
    started: Instant,
    link: watch::Sender<Link>,
    /// Whether a supervisor is running.
    supervised: AtomicBool,
    /// Wakes the supervisor.
    wake: Notify,
    ended: AtomicBool,
    in_flight: AtomicUsize,
    /// Calls that timed out since one was answered.
    timeouts: AtomicU32,
    /// When a call was answered last, in microseconds since `started`.
    answered: AtomicU64,
}

/// What calls find.
#[derive(Clone)]
enum Link {
    /// Nobody has tried to connect yet, so a call waits for the first try to end.
    New,
    Up(Line),
    /// Calls fail until the supervisor has a connection again.
    Down,
}

/// A connection, and which one it is, so that a late failure of an old one does not
/// take down its successor.
#[derive(Clone)]
struct Line {
    connection: Connection,
    generation: u64,
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Client {
    pub(super) fn new(target: Target, options: Options) -> Self {
        Self {
            shared: Arc::new(Shared {
                target,
                options,
                started: Instant::now(),
                link: watch::Sender::new(Link::New),
                supervised: AtomicBool::new(false),
                wake: Notify::new(),
                ended: AtomicBool::new(false),
                in_flight: AtomicUsize::new(0),
                timeouts: AtomicU32::new(0),
                answered: AtomicU64::new(0),
            }),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.shared.target.is_cluster()
    }

    pub(super) fn events(&self) -> &Events {
        &self.shared.options.events
    }

    /// When a call that begins now has to be done.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.options.deadline
    }

    /// Fails at once while the breaker is open, for callers who then need not build a call.
    #[inline]
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if matches!(*self.shared.link.borrow(), Link::Down) {
            // A supervisor that ended with its runtime is started again.
            supervise(&self.shared);
            return Err(self.failed(StoreError::new(FailureKind::Disconnected)));
        }
        Ok(())
    }

    /// Runs a script on the keys' shard, until `deadline`.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
    ) -> Result<T, StoreError> {
        let _in_flight = self.shared.enter().map_err(|error| self.failed(error))?;
        self.run_apart(script, keys, arguments, deadline).await
    }

    /// The same, next to the calls that are bounded: for tasks in the background that make one at
    /// a time, and which requests must not keep from it.
    pub(super) async fn run_apart<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: impl ToRedisArgs + Copy,
        deadline: Instant,
    ) -> Result<T, StoreError> {
        let call = script.call(keys, arguments);
        match self.send(&call, deadline).await {
            Err(error) if error.is_no_script() => {
                // The source instead, which also puts it into the server's cache.
                let call = script.call_with_source(keys, arguments);
                self.send(&call, deadline).await
            }
            result => result,
        }
        .map_err(|error| self.failed(error))
    }

    /// Asks the server something simple, to find out early what is wrong.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        let mut connection = timeout(CONNECT_WITHIN, self.shared.target.connect())
            .await
            .unwrap_or_else(|_| Err(StoreError::new(FailureKind::Timeout)))?;
        redis::cmd("PING")
            .query_async::<()>(&mut connection)
            .await?;
        Ok(())
    }

    async fn send<T: FromRedisValue>(
        &self,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<T, StoreError> {
        let Line {
            mut connection,
            generation,
        } = self.shared.line(deadline).await?;
        match timeout_at(deadline, command.query_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.shared.answered();
                Ok(answer)
            }
            Ok(Err(error)) => {
                self.shared.after_error(&error, generation);
                Err(error.into())
            }
            Err(_) => {
                self.shared.after_timeout(generation);
                Err(StoreError::new(FailureKind::Timeout))
            }
        }
    }

    /// Tells the observers.
    pub(super) fn failed(&self, error: StoreError) -> StoreError {
        let now = self.shared.started.elapsed();
        self.shared.options.events.failed(&error, now);
        error
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Counts a call in, unless there are too many.
    fn enter(&self) -> Result<InFlight<'_>, StoreError> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let counted = InFlight(&self.in_flight);
        if before >= self.options.max_in_flight {
            return Err(StoreError::new(FailureKind::Overloaded));
        }
        Ok(counted)
    }

    async fn line(self: &Arc<Self>, deadline: Instant) -> Result<Line, StoreError> {
        supervise(self);
        match &*self.link.borrow() {
            Link::Up(line) => return Ok(line.clone()),
            Link::Down => return Err(StoreError::new(FailureKind::Disconnected)),
            Link::New => {}
        }
        let mut link = self.link.subscribe();
        let tried = link.wait_for(|link| !matches!(link, Link::New));
        let Ok(tried) = timeout_at(deadline, tried).await else {
            return Err(StoreError::new(FailureKind::Timeout));
        };
        match tried.as_deref() {
            Ok(Link::Up(line)) => Ok(line.clone()),
            _ => Err(StoreError::new(FailureKind::Disconnected)),
        }
    }

    fn answered(&self) {
        self.timeouts.store(0, Ordering::Relaxed);
        let now = self.started.elapsed().as_micros() as u64;
        self.answered.store(now, Ordering::Relaxed);
    }

    fn after_error(&self, error: &RedisError, generation: u64) {
        match FailureKind::of(error) {
            // Behind the same address another server may be the primary by now.
            FailureKind::ReadOnly => self.wake.notify_one(),
            // A cluster's client looks after the connections to its nodes, and the others
            // are well.
            FailureKind::Disconnected if !self.target.is_cluster() => self.lost(generation),
            FailureKind::Disconnected | FailureKind::Timeout => self.after_timeout(generation),
            // The server answers.
            _ => self.answered(),
        }
    }

    fn after_timeout(&self, generation: u64) {
        let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = Duration::from_micros(self.answered.load(Ordering::Relaxed));
        // Of a cluster one part may be silent while the others answer.
        let silence = self.started.elapsed().saturating_sub(answered);
        if timeouts >= TIMEOUTS && silence >= 2 * self.options.deadline {
            self.lost(generation);
        }
    }

    /// Opens the breaker, if this connection is still the one in use.
    fn lost(&self, generation: u64) {
        let opened = self.link.send_if_modified(|link| {
            let in_use = matches!(link, Link::Up(line) if line.generation == generation);
            if in_use {
                *link = Link::Down;
            }
            in_use
        });
        if opened {
            self.options.events.reachable(false);
            self.wake.notify_one();
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts the supervisor unless there is one.
fn supervise(shared: &Arc<Shared>) {
    if shared.supervised.load(Ordering::Acquire) || shared.supervised.swap(true, Ordering::AcqRel) {
        return;
    }
    let supervised = Supervised(shared.clone());
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move { supervised.0.supervise().await })),
        // Dropped, so that the next call tries again.
        Err(_) => drop(supervised),
    }
}

/// Says that there is no supervisor any more when it ends with its runtime. Its connection,
/// which that runtime drove, is gone with it.
struct Supervised(Arc<Shared>);

impl Drop for Supervised {
    fn drop(&mut self) {
        self.0.link.send_replace(Link::New);
        self.0.supervised.store(false, Ordering::Release);
    }
}

impl Shared {
    async fn supervise(&self) {
        let mut generation = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let connected = timeout(CONNECT_WITHIN, self.target.connect()).await;
            if self.has_ended() {
                return;
            }
            match connected.unwrap_or_else(|_| Err(StoreError::new(FailureKind::Timeout))) {
                Ok(connection) => {
                    generation += 1;
                    self.timeouts.store(0, Ordering::Relaxed);
                    let line = Line {
                        connection,
                        generation,
                    };
                    let before = self.link.send_replace(Link::Up(line));
                    if !matches!(before, Link::Up(_)) {
                        self.options.events.reachable(true);
                    }
                    let connected = Instant::now();
                    self.wake.notified().await;
                    // A connection that held for a while starts over with short pauses.
                    if connected.elapsed() > 2 * LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(error) => {
                    let before = self.link.send_replace(Link::Down);
                    if !matches!(before, Link::Down) {
                        self.options.events.reachable(false);
                    }
                    self.options.events.failed(&error, self.started.elapsed());
                }
            }
            if self.has_ended() {
                return;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Target {
    async fn connect(&self) -> Result<Connection, StoreError> {
        let mut connection = match self {
            Self::Single(client) => {
                // Every call has a deadline of ours.
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_WITHIN))
                    .set_response_timeout(None);
                Connection::Single(
                    client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await?,
                )
            }
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        };
        if let Connection::Single(_) = connection {
            let info: Result<String, _> = redis::cmd("INFO")
                .arg("server")
                .query_async(&mut connection)
                .await;
            match info {
                Ok(info) => check_version(&info)?,
                // Whoever may not ask is let in; a script that the server cannot run says so.
                Err(error) if FailureKind::of(&error) == FailureKind::Denied => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(connection)
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
