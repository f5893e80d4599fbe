//! One server: its connection, its breaker, and the room for calls.
//!
//! A call reads the [`Link`]. Within its deadline it waits for the first connection of a process, and for the first
//! attempt to replace a connection that the server closed. When that attempt fails, or calls get no answer, the breaker
//! opens: later calls fail at once until the [supervisor](super::supervisor) has connected again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::call_error::{CallError, kind_of};
use super::connection::Driver;
use super::context::Context;
use super::health::Condition;
use super::link::{DriverTask, Line, Link};
use super::patience::answered_by;
use super::url::Address;
use tower_admission::store::FailureKind;

/// The number of consecutive timeouts that opens the breaker.
const TIMEOUTS: u32 = 3;

/// A connection that ended sooner is not replaced at once, because a server may close every connection.
const SHORT_LIFE: Duration = Duration::from_millis(20);

pub(super) struct Node {
    /// `None` means the current master, which each attempt looks up.
    address: Option<Address>,
    context: Arc<Context>,
    pub(super) link: watch::Sender<Link>,
    room: Semaphore,
    /// The number of timeouts since the last answer.
    timeouts: AtomicU32,
    /// When the last call was answered, in microseconds on the context's clock.
    answered: AtomicU64,
}

/// Runs in the task of a connection and notices its end, also when the connection is idle or the library panics.
struct NoticeEnd {
    node: Weak<Node>,
    generation: u64,
}

impl Drop for NoticeEnd {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.lost(self.generation, Loss::Ended);
        }
    }
}

/// How a connection was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Ended,
    Silent,
}

/// Why a call has no usable answer.
pub(super) enum Fault {
    /// The server answered with an error.
    Refused(RedisError),
    /// The connection ended before the answer, or the answer was invalid.
    Dropped(RedisError),
    TimedOut,
}

impl Node {
    pub(super) fn new(address: Option<Address>, context: Arc<Context>) -> Arc<Self> {
        context.health.count(Condition::Closed, Condition::Unknown);
        let room = context.options.max_in_flight.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            address,
            context,
            link: watch::Sender::new(Link::New),
            room: Semaphore::new(room),
            timeouts: AtomicU32::new(0),
            answered: AtomicU64::new(0),
        })
    }

    pub(super) fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// The cause while the breaker is open.
    pub(super) fn rejects(&self) -> Option<CallError> {
        match &*self.link.borrow() {
            Link::Down(cause) => Some(CallError::breaker_open(cause)),
            _ => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.link.borrow(), Link::Closed)
    }

    /// When the last call was answered, on the context's clock.
    pub(super) fn answered_at(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for room among the concurrent calls.
    pub(super) async fn room(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, CallError> {
        if let Ok(permit) = self.room.try_acquire() {
            return Ok(permit);
        }
        match timeout_at(deadline, self.room.acquire()).await {
            // A call without time left would only delay others.
            Ok(Ok(permit)) if Instant::now() < deadline => Ok(permit),
            _ => Err(CallError::new(FailureKind::Overloaded)),
        }
    }

    /// The connection, if there is one.
    pub(super) fn line(&self) -> Option<Line> {
        self.link.borrow().line().cloned()
    }

    /// Waits until there is a connection, or none will come soon. Starts a supervisor if there is none, also when the
    /// current one ends.
    pub(super) async fn wait_for_line(
        &self,
        deadline: Instant,
        supervise: impl Fn(),
    ) -> Result<Line, CallError> {
        let mut link = self.link.subscribe();
        loop {
            supervise();
            match &*link.borrow_and_update() {
                Link::Up(line) | Link::Stale(line) => return Ok(line.clone()),
                Link::Down(cause) => return Err(CallError::breaker_open(cause)),
                Link::Closed => return Err(CallError::new(FailureKind::Disconnected)),
                Link::New | Link::Reconnecting => {}
            }
            // The node owns the sender, so it exists.
            if timeout_at(deadline, link.changed()).await.is_err() {
                return Err(CallError::new(FailureKind::Timeout));
            }
        }
    }

    /// Sends a command and waits for its answer until `deadline`. Sends ASKING before it, in the same message, for a
    /// slot that migrates to this server.
    pub(super) async fn send(
        &self,
        line: Line,
        command: &Cmd,
        asking: bool,
        deadline: Instant,
    ) -> Result<Value, Fault> {
        let mut connection = line.connection;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = async {
            if asking {
                let mut both = Pipeline::new();
                both.cmd("ASKING").add_command(command.clone());
                let mut answers = connection.req_packed_commands(&both, 1, 1).await?;
                answers.pop().unwrap_or(Value::Nil).extract_error()
            } else {
                command.query_async(&mut connection).await
            }
        };
        match answered_by(deadline, answer).await {
            Some(Ok(answer)) => {
                self.has_answered();
                Ok(answer)
            }
            Some(Err(error)) if is_end(&error) => {
                self.lost(line.generation, Loss::Ended);
                Err(Fault::Dropped(error))
            }
            Some(Err(error)) => {
                self.has_answered();
                if kind_of(&error) == FailureKind::ReadOnly {
                    self.outlived(line.generation);
                }
                Err(Fault::Refused(error))
            }
            None => {
                // A call that was redirected here without time left proves nothing about this server.
                if left >= self.context.options.deadline / 8 {
                    self.after_timeout(line.generation);
                }
                Err(Fault::TimedOut)
            }
        }
    }

    /// Makes a call outside of the maximum, if there is a connection.
    pub(super) async fn ask(&self, question: &Cmd, deadline: Instant) -> Option<Value> {
        let mut connection = self.line()?.connection;
        let answer = question.query_async(&mut connection);
        timeout_at(deadline, answer).await.ok()?.ok()
    }

    /// Installs the next connection.
    pub(super) fn connected(self: &Arc<Self>, connection: MultiplexedConnection, driver: Driver) {
        let generation = self.context.next_generation();
        let end = NoticeEnd {
            node: Arc::downgrade(self),
            generation,
        };
        // Starts after the connection is installed, so that its end is always noticed.
        let (begin, begins) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _end = end;
            let _ = begins.await;
            driver.await;
        });
        let line = Line {
            connection,
            generation,
            since: Instant::now(),
            driver: Arc::new(DriverTask(task.abort_handle())),
        };
        self.timeouts.store(0, Ordering::Relaxed);
        self.change(|link| match link {
            Link::Closed => None,
            _ => Some(Link::Up(line)),
        });
        let _ = begin.send(());
    }

    pub(super) fn not_connected(&self, error: &CallError) {
        // Before the waiting calls continue.
        self.context.failed(error);
        self.change(|link| match link {
            Link::Closed => None,
            _ => Some(Link::Down(error.clone())),
        });
    }

    /// Called after the supervisor ended: the next call starts another.
    pub(super) fn begin_anew(&self) {
        self.change(|link| match link {
            Link::Closed => None,
            _ => Some(Link::New),
        });
    }

    /// Wakes calls that wait for a connection.
    pub(super) fn wake(&self) {
        self.link.send_modify(|_| {});
    }

    /// Calls in progress keep the connection until they end.
    pub(super) fn close(&self) {
        self.change(|_| Some(Link::Closed));
    }

    fn has_answered(&self) {
        self.timeouts.store(0, Ordering::Relaxed);
        self.answered
            .store(self.context.micros(), Ordering::Relaxed);
    }

    fn after_timeout(&self, generation: u64) {
        let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        let silence = self.context.micros().saturating_sub(self.answered_at());
        let patience = 2 * self.context.options.deadline;
        if timeouts >= TIMEOUTS && Duration::from_micros(silence) >= patience {
            self.lost(generation, Loss::Silent);
        }
    }

    /// Requests the replacement of the current connection. Its calls continue until then.
    fn outlived(&self, generation: u64) {
        let before = self.change(|link| match link {
            Link::Up(line) if line.generation == generation => Some(Link::Stale(line.clone())),
            _ => None,
        });
        if before.is_some() {
            self.context.request_map();
        }
    }

    /// Records the end of the current connection.
    fn lost(&self, generation: u64, how: Loss) {
        let mut outage = None;
        let before = self.change(|link| {
            let line = link.line().filter(|line| line.generation == generation)?;
            self.context.attended();
            // The supervisor may be in a pause before it replaces a stale connection.
            let is_replaced_at_once = how == Loss::Ended
                && matches!(link, Link::Up(_))
                && line.since.elapsed() >= SHORT_LIFE;
            if is_replaced_at_once {
                return Some(Link::Reconnecting);
            }
            let cause = match how {
                Loss::Ended => {
                    CallError::because(FailureKind::Disconnected, "the connection was closed")
                }
                Loss::Silent => CallError::new(FailureKind::Timeout),
            };
            outage = Some(cause.clone());
            Some(Link::Down(cause))
        });
        if let Some(before) = before {
            if let Some(line) = before.line() {
                // Calls to a server that hangs need not wait for it.
                line.driver.0.abort();
            }
            self.context.request_map();
        }
        // Only unanswered calls reveal a silent connection. A connection that ended may have had none.
        if let Some(cause) = outage.filter(|_| how == Loss::Ended) {
            self.context.failed(&cause);
        }
    }

    /// Changes the link. Returns the previous link if it changed.
    fn change(&self, to: impl FnOnce(&Link) -> Option<Link>) -> Option<Link> {
        // Dropped outside of the lock: the drop of a connection may use this link.
        let mut before = None;
        self.link.send_if_modified(|link| {
            let Some(next) = to(link) else {
                return false;
            };
            let health = &self.context.health;
            health.count(link.condition(), next.condition());
            before = Some(std::mem::replace(link, next));
            true
        });
        if before.is_some() {
            self.context.report_health();
        }
        before
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let link = self.link.borrow().condition();
        self.context.health.count(link, Condition::Closed);
    }
}

/// Whether an error makes the connection unusable: it ended, or the start of the next answer is unknown.
fn is_end(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
}

#[cfg(test)]
mod tests {
    use super::super::attempt::connect;
    use super::super::client::Options;
    use super::super::events::Events;
    use super::super::test_server::TestServer;
    use super::super::url::Target;
    use super::*;

    async fn node() -> (TestServer, Arc<Node>) {
        let server = TestServer::start(&[]).await;
        let node = node_at(server.target(""));
        (server, node)
    }

    fn node_at(target: Target) -> Arc<Node> {
        let options = Options {
            deadline: Duration::from_secs(2),
            max_in_flight: 1,
            events: Events::default(),
        };
        Node::new(None, Context::new(target, options))
    }

    /// Connects, and returns the generation of the connection.
    async fn connected(node: &Arc<Node>) -> u64 {
        let (connection, driver) = connect(node.context.clone(), None).await.unwrap();
        node.connected(connection, driver);
        node.line().unwrap().generation
    }

    #[tokio::test]
    async fn a_late_failure_of_a_connection_does_not_affect_its_successor() {
        let (_server, node) = node().await;
        let first = connected(&node).await;
        node.lost(first, Loss::Silent);
        assert!(node.rejects().is_some() && node.line().is_none());
        let second = connected(&node).await;
        for how in [Loss::Silent, Loss::Ended] {
            node.lost(first, how);
        }
        node.outlived(first);
        assert!(matches!(&*node.link.borrow(), Link::Up(line) if line.generation == second));
        node.outlived(second);
        assert!(node.line().is_some(), "it is used until it is replaced");
        node.lost(second, Loss::Ended);
        assert!(node.rejects().is_some());
    }

    #[tokio::test]
    async fn calls_without_time_left_do_not_open_the_breaker() {
        let server = TestServer::start(&[]).await;
        let options = Options {
            deadline: Duration::from_micros(10),
            max_in_flight: 1,
            events: Events::default(),
        };
        let node = Node::new(None, Context::new(server.target(""), options));
        connected(&node).await;
        let over = Instant::now() - Duration::from_secs(1);
        for _ in 0..2 * TIMEOUTS {
            let line = node.line().expect("it is in use");
            // It gets no answer.
            let mut waits = redis::cmd("BLPOP");
            waits.arg("nothing").arg(0);
            let sent = node.send(line, &waits, false, over).await;
            assert!(matches!(sent, Err(Fault::TimedOut)));
        }
        assert!(node.rejects().is_none());
    }

    #[tokio::test]
    async fn a_driver_that_panics_ends_its_connection() {
        let (_server, node) = node().await;
        let (connection, driver) = connect(node.context.clone(), None).await.unwrap();
        let panics = async move {
            drop(driver);
            panic!("the library has an error");
        };
        node.connected(connection, Box::pin(panics));
        let mut link = node.link.subscribe();
        let lost = link.wait_for(|link| link.line().is_none());
        let lost = tokio::time::timeout(Duration::from_secs(30), lost);
        assert!(lost.await.is_ok());
    }

    #[tokio::test]
    async fn a_removed_server_stays_closed() {
        let (_server, node) = node().await;
        connected(&node).await;
        let line = node.line().unwrap();
        node.close();
        let (connection, driver) = connect(node.context.clone(), None).await.unwrap();
        node.connected(connection, driver);
        node.not_connected(&CallError::new(FailureKind::Timeout));
        node.begin_anew();
        assert!(node.is_closed() && node.line().is_none());
        // Calls in progress are answered.
        let deadline = Instant::now() + Duration::from_secs(30);
        let pong = node.send(line, &redis::cmd("PING"), false, deadline).await;
        assert!(matches!(pong, Ok(Value::SimpleString(pong)) if pong == "PONG"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_room_until_its_deadline() {
        let node = node_at(Target::parse("redis://127.0.0.1").unwrap());
        let first = node.room(Instant::now()).await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(10);
        let error = node.room(deadline).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Overloaded);
        let deadline = Instant::now() + Duration::from_millis(10);
        let (second, ()) = tokio::join!(node.room(deadline), async { drop(first) });
        assert!(second.is_ok());
    }
}
