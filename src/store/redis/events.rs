//! How a store fares: what observers see, and the lines in the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::failure::{FailureKind, StoreError};
use crate::store::FailureMode;
use crate::sync::lock;

/// Sees how a store that is somewhere else fares. Every hook does nothing unless it is written.
///
/// Hooks run while requests wait, so they have to be quick, and they must not use the store.
#[diagnostic::on_unimplemented(note = "implement `StoreObserver` and write the hooks you need")]
pub trait StoreObserver: Send + Sync + 'static {
    /// A call failed, or an attempt to connect, or a call was not made because calls fail.
    fn failed(&self, kind: FailureKind) {
        let _ = kind;
    }

    /// The store can be reached, or cannot: in a cluster, whether all masters can. Called with
    /// `false` when the first attempt to connect begins, and then for each change.
    fn reachable(&self, reachable: bool) {
        let _ = reachable;
    }

    /// The failure mode decided about a request, because the store did not.
    fn decided_without(&self, mode: FailureMode) {
        let _ = mode;
    }

    /// A key that was denied was denied again, without a call.
    fn denied_from_cache(&self) {}
}

impl<O: StoreObserver + ?Sized> StoreObserver for Arc<O> {
    fn failed(&self, kind: FailureKind) {
        (**self).failed(kind);
    }

    fn reachable(&self, reachable: bool) {
        (**self).reachable(reachable);
    }

    fn decided_without(&self, mode: FailureMode) {
        (**self).decided_without(mode);
    }

    fn denied_from_cache(&self) {
        (**self).denied_from_cache();
    }
}

/// Reports what happens to one client's connections.
///
/// A clone is for another client of the same store. They share observers and log: when a server
/// is away this is one outage, however many clients notice.
#[derive(Default)]
pub(super) struct Events {
    observers: Vec<Arc<dyn StoreObserver>>,
    health: Arc<Health>,
    state: Mutex<State>,
}

/// What the clients of a store share.
struct Health {
    started: Instant,
    /// By kind of failure.
    lines: [LineLimit; FailureKind::COUNT],
    clients: Mutex<Clients>,
    decided: Decided,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It has not tried to connect.
    #[default]
    New,
    /// The first attempt is under way.
    Connecting,
    Up,
    Away,
}

/// How many clients there are in each state, and what was reported of that.
#[derive(Default)]
struct Clients {
    connecting: usize,
    up: usize,
    away: usize,
    reported: Option<bool>,
    outage: Option<Outage>,
}

struct Outage {
    since: Instant,
    /// Else clients connect for the first time.
    is_failure: bool,
}

/// Decisions of each failure mode since an outage began.
#[derive(Default)]
struct Decided {
    open: AtomicU64,
    closed: AtomicU64,
    local_share: AtomicU64,
}

/// At most one line a second.
#[derive(Default)]
struct LineLimit {
    /// When the next line may be written, in milliseconds since `Health::started`.
    next: AtomicU64,
    /// Failures since the last line.
    silent: AtomicU64,
}

const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Events {
    /// Adds an observer. What is shared with clones that do not have it is shared no longer.
    pub(super) fn add(&mut self, observer: impl StoreObserver) {
        self.observers.push(Arc::new(observer));
        self.health = Arc::default();
    }

    /// A call failed, or an attempt to connect. A call that the breaker rejects is counted, and
    /// leaves the line in the log to the cause.
    pub(super) fn failed(&self, error: &StoreError) {
        for observer in &self.observers {
            observer.failed(error.kind());
        }
        if error.is_from_breaker() {
            return;
        }
        let now = self.health.started.elapsed();
        if let Some(silent) = self.health.lines[error.kind().index()].line(now) {
            tracing::warn!(
                kind = error.kind().as_str(),
                cause = error.detail(),
                since_last_line = silent,
                "calls to Redis fail; the failure mode decides"
            );
        }
    }

    /// The client's first attempt to connect begins. Later attempts change nothing.
    pub(super) fn connecting(&self) {
        self.change(|state| match state {
            State::New => State::Connecting,
            state => state,
        });
    }

    /// The client can reach the store, in a cluster all of its masters; or it cannot. Only changes
    /// are reported. Not for a connection that is closed and replaced at once: that is no outage.
    pub(super) fn reachable(&self, reachable: bool) {
        self.change(|_| match reachable {
            true => State::Up,
            false => State::Away,
        });
    }

    /// The failure mode decided about a request.
    #[cold]
    pub(super) fn decided_without(&self, mode: FailureMode) {
        let decided = &self.health.decided;
        let of_mode = match mode {
            FailureMode::Open => &decided.open,
            FailureMode::Closed => &decided.closed,
            FailureMode::LocalShare { .. } => &decided.local_share,
        };
        of_mode.fetch_add(1, Ordering::Relaxed);
        for observer in &self.observers {
            observer.decided_without(mode);
        }
    }

    pub(super) fn denied_from_cache(&self) {
        for observer in &self.observers {
            observer.denied_from_cache();
        }
    }

    fn change(&self, next: impl FnOnce(State) -> State) {
        let mut state = lock(&self.state);
        let (before, after) = (*state, next(*state));
        if before == after {
            return;
        }
        *state = after;
        let mut clients = lock(&self.health.clients);
        let was_away = clients.outage.is_some();
        let (reachable, over) = clients.change(before, after, Instant::now());
        if clients.outage.is_some() && !was_away {
            self.health.decided.take();
        }
        if let Some(reachable) = reachable {
            // Under the lock, as observers would else see changes in another order.
            for observer in &self.observers {
                observer.reachable(reachable);
            }
        }
        drop((clients, state));
        if let Some(outage) = over {
            self.log_end(&outage);
        }
    }

    fn log_end(&self, outage: &Outage) {
        let [open, closed, local_share] = self.health.decided.take();
        // A first connection is worth a line only if requests did not wait for it.
        if outage.is_failure || open + closed + local_share > 0 {
            tracing::info!(
                away_ms = outage.since.elapsed().as_millis() as u64,
                decided_open = open,
                decided_closed = closed,
                decided_local_share = local_share,
                "Redis is back"
            );
        }
    }
}

impl Clone for Events {
    fn clone(&self) -> Self {
        Self {
            observers: self.observers.clone(),
            health: self.health.clone(),
            state: Mutex::default(),
        }
    }
}

/// A client that is gone is not away.
impl Drop for Events {
    fn drop(&mut self) {
        self.change(|_| State::New);
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            lines: Default::default(),
            clients: Mutex::default(),
            decided: Decided::default(),
        }
    }
}

impl Clients {
    /// Moves a client from one state to another. Returns whether the store can be reached, if that
    /// is to be reported, and the outage that is over now.
    fn change(
        &mut self,
        before: State,
        after: State,
        now: Instant,
    ) -> (Option<bool>, Option<Outage>) {
        if let Some(count) = self.count(before) {
            *count -= 1;
        }
        if let Some(count) = self.count(after) {
            *count += 1;
        }
        let reachable = match (self.away, self.up, self.connecting) {
            (1.., _, _) => Some(false),
            (0, 1.., _) => Some(true),
            (0, 0, 1..) => Some(false),
            (0, 0, 0) => None,
        };
        let mut over = None;
        match reachable {
            Some(false) => {
                let outage = self.outage.get_or_insert(Outage {
                    since: now,
                    is_failure: false,
                });
                outage.is_failure |= self.away > 0;
            }
            Some(true) => over = self.outage.take(),
            // The clients are gone, and none has connected again.
            None => self.outage = None,
        }
        let is_news = reachable.is_some() && reachable != self.reported;
        self.reported = reachable.or(self.reported);
        (reachable.filter(|_| is_news), over)
    }

    fn count(&mut self, state: State) -> Option<&mut usize> {
        match state {
            State::New => None,
            State::Connecting => Some(&mut self.connecting),
            State::Up => Some(&mut self.up),
            State::Away => Some(&mut self.away),
        }
    }
}

impl Decided {
    fn take(&self) -> [u64; 3] {
        [&self.open, &self.closed, &self.local_share].map(|count| count.swap(0, Ordering::Relaxed))
    }
}

impl LineLimit {
    /// Whether a line may be written now; and how many failures had none since the last.
    fn line(&self, now: Duration) -> Option<u64> {
        let now = now.as_millis() as u64;
        let next = self.next.load(Ordering::Relaxed);
        let interval = LOG_INTERVAL.as_millis() as u64;
        let ours = now >= next
            && self
                .next
                .compare_exchange(next, now + interval, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if ours {
            Some(self.silent.swap(0, Ordering::Relaxed))
        } else {
            self.silent.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second() {
        let line = LineLimit::default();
        let at = Duration::from_millis;
        assert_eq!(line.line(at(0)), Some(0));
        assert_eq!(line.line(at(1)), None);
        assert_eq!(line.line(at(999)), None);
        assert_eq!(line.line(at(1000)), Some(2));
        assert_eq!(line.line(at(1001)), None);
    }
}
