//! A connection that is looked after: each call has a deadline, and none waits for a repair.
//!
//! Calls use the connection that is there. When it fails, the call that notices marks it as lost,
//! which opens the breaker: later calls fail at once, without a wait. A task of its own, the
//! [supervisor](super::supervisor), then tries to connect, again and again with a growing, jittered
//! pause; its try is the one probe of the half-open breaker, and its success closes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, ToRedisArgs, Value, from_redis_value};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{CONNECT_WITHIN, Connection};
use super::events::Events;
use super::failure::{FailureKind, StoreError};
use super::post::Post;
use super::script::Script;
use super::supervisor::{Line, Link, supervise};
use super::url::Target;

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

pub(super) struct Shared {
    pub(super) target: Target,
    options: Options,
    started: Instant,
    pub(super) link: watch::Sender<Link>,
    /// Who looks after the connection.
    pub(super) supervisor: Post,
    /// Wakes the supervisor, and one that lost the job as well.
    pub(super) wake: watch::Sender<()>,
    /// When the supervisor was last seen or called, in microseconds since `started`.
    attended: AtomicU64,
    pub(super) ended: AtomicBool,
    /// Of the last connection.
    generation: AtomicU64,
    in_flight: AtomicUsize,
    /// Calls that timed out since one was answered.
    timeouts: AtomicU32,
    /// When a call was answered last, in microseconds since `started`.
    answered: AtomicU64,
}

impl Client {
    pub(super) fn new(target: Target, options: Options) -> Self {
        Self {
            shared: Arc::new(Shared {
                target,
                options,
                started: Instant::now(),
                link: watch::Sender::new(Link::New),
                supervisor: Post::default(),
                wake: watch::Sender::new(()),
                attended: AtomicU64::new(0),
                ended: AtomicBool::new(false),
                generation: AtomicU64::new(0),
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
        let rejected = match &*self.shared.link.borrow() {
            Link::Down(cause) => StoreError::breaker_open(cause),
            Link::New | Link::Up(_) => return Ok(()),
        };
        // One that ended with its runtime, or stands still with it, is replaced.
        supervise(&self.shared);
        Err(self.failed(rejected))
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
        let ping = async {
            let mut connection = self.shared.target.connect().await?;
            redis::cmd("PING")
                .query_async::<()>(&mut connection)
                .await?;
            Ok(())
        };
        timeout(CONNECT_WITHIN, ping)
            .await
            .unwrap_or_else(|_| Err(StoreError::new(FailureKind::Timeout)))
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
        // What an answer says is looked at apart: if it is something else than was asked for, the
        // connection has nothing to do with it.
        let answer = command.query_async::<Value>(&mut connection);
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => {
                self.shared.answered();
                Ok(from_redis_value(answer)?)
            }
            Ok(Err(error)) => {
                let error = StoreError::from(error).after_sending();
                self.shared.after_error(&error, generation);
                Err(error)
            }
            Err(_) => {
                let error = StoreError::new(FailureKind::Timeout).after_sending();
                self.shared.after_timeout(&error, generation);
                Err(error)
            }
        }
    }

    /// Tells the observers.
    pub(super) fn failed(&self, error: StoreError) -> StoreError {
        self.shared.options.events.failed(&error);
        error
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.wake.send_replace(());
    }
}

impl Shared {
    pub(super) fn events(&self) -> &Events {
        &self.options.events
    }

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
        // Cloned, as the supervisor may change it while it is looked at.
        let link = self.link.borrow().clone();
        let link = match link {
            Link::New => {
                supervise(self);
                let mut link = self.link.subscribe();
                let tried = link.wait_for(|link| !matches!(link, Link::New));
                match timeout_at(deadline, tried).await {
                    Ok(Ok(tried)) => tried.clone(),
                    // The sender is ours.
                    Ok(Err(_)) => Link::Down(StoreError::new(FailureKind::Disconnected)),
                    Err(_) => return Err(StoreError::new(FailureKind::Timeout)),
                }
            }
            link => link,
        };
        match link {
            Link::Up(line) => Ok(line),
            Link::New => Err(StoreError::new(FailureKind::Disconnected)),
            Link::Down(cause) => {
                supervise(self);
                Err(StoreError::breaker_open(&cause))
            }
        }
    }

    /// Takes the next connection into use.
    pub(super) fn connected(&self, connection: Connection) {
        self.timeouts.store(0, Ordering::Relaxed);
        let line = Line {
            connection,
            generation: self.generation.fetch_add(1, Ordering::Relaxed),
        };
        self.link.send_replace(Link::Up(line));
        self.options.events.reachable(true);
    }

    pub(super) fn not_connected(&self, error: &StoreError) {
        // Before the calls that wait for it go on.
        self.options.events.failed(error);
        self.link.send_replace(Link::Down(error.clone()));
        self.options.events.reachable(false);
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

    fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn answered(&self) {
        self.timeouts.store(0, Ordering::Relaxed);
        self.answered.store(self.micros(), Ordering::Relaxed);
    }

    fn after_error(&self, error: &StoreError, generation: u64) {
        match error.kind() {
            // Behind the same address another server may be the primary by now.
            FailureKind::ReadOnly => {
                self.wake.send_replace(());
            }
            // A cluster's client looks after the connections to its nodes, and the others
            // are well.
            kind if kind.is_lost_connection() && !self.target.is_cluster() => {
                self.lost(error, generation);
            }
            FailureKind::Disconnected | FailureKind::Tls | FailureKind::Timeout => {
                self.after_timeout(error, generation);
            }
            // The server answers.
            _ => self.answered(),
        }
    }

    fn after_timeout(&self, error: &StoreError, generation: u64) {
        let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = Duration::from_micros(self.answered.load(Ordering::Relaxed));
        // Of a cluster one part may be silent while the others answer.
        let silence = self.started.elapsed().saturating_sub(answered);
        if timeouts >= TIMEOUTS && silence >= 2 * self.options.deadline {
            self.lost(error, generation);
        }
    }

    /// Opens the breaker, if this connection is still the one in use.
    fn lost(&self, cause: &StoreError, generation: u64) {
        let opened = self.link.send_if_modified(|link| {
            let in_use = matches!(link, Link::Up(line) if line.generation == generation);
            if in_use {
                self.attended();
                *link = Link::Down(cause.clone());
            }
            in_use
        });
        if opened {
            self.options.events.reachable(false);
            self.wake.send_replace(());
        }
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
