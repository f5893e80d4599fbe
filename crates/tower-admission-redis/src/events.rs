//! The health of a store: hooks for observers, and log lines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::call_error::CallError;
use super::recent_failures::RecentFailures;
use super::sync::lock;
use tower_admission::store::FailureKind;
use tower_admission::store::{FailureMode, StoreStatus};

/// Observes the health of a remote store. Hooks have empty default bodies.
///
/// Hooks run while requests wait: they must be quick, and must not use the store.
#[diagnostic::on_unimplemented(note = "implement `StoreObserver`; each hook has an empty default")]
pub trait StoreObserver: Send + Sync + 'static {
    /// Called after a call or an attempt to connect failed, and for a call that was not made because calls fail.
    fn failed(&self, kind: FailureKind) {
        let _ = kind;
    }

    /// Called when the store becomes reachable or unreachable; a cluster is reachable when all masters are. The first
    /// attempt to connect calls it with `false`.
    fn reachable(&self, reachable: bool) {
        let _ = reachable;
    }

    /// Called after the failure mode decided a request, because the store did not.
    fn decided_without(&self, mode: FailureMode) {
        let _ = mode;
    }

    /// Called after a key was rejected again without a call.
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

/// Reports the events of one client's connections.
///
/// A clone is for another client of the same store. Clones share observers and log lines: an outage of a server is
/// reported once, also when several clients notice it.
#[derive(Default)]
pub(super) struct Events {
    observers: Vec<Arc<dyn StoreObserver>>,
    health: Arc<Health>,
    state: Mutex<State>,
}

/// The state that the clients of a store share.
struct Health {
    started: Instant,
    /// One for each kind of failure.
    lines: Box<[LineLimit]>,
    clients: Mutex<Clients>,
    decided: Decided,
    recent_failures: RecentFailures,
}

/// The state of a client's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The client has not tried to connect.
    #[default]
    New,
    /// The first attempt is in progress.
    Connecting,
    Up,
    Away,
}

/// The number of clients in each state, and the last report.
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
    /// False while clients connect for the first time.
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
    /// Adds an observer. From now on clones without it no longer share their state with this one.
    pub(super) fn add(&mut self, observer: impl StoreObserver) {
        self.observers.push(Arc::new(observer));
        self.health = Arc::default();
    }

    /// Reports a failed call or attempt to connect. A call that the breaker rejects is counted but not logged, because
    /// its cause is logged.
    pub(super) fn failed(&self, error: &CallError) {
        for observer in &self.observers {
            observer.failed(error.kind());
        }
        if error.is_from_breaker() {
            return;
        }
        self.health.recent_failures.note(Some(error));
        let now = self.health.started.elapsed();
        if let Some(silent) = self.health.lines[error.kind() as usize].line(now) {
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

    /// Reports whether the client can reach the store, in a cluster all of its masters. Only changes are reported. Do not
    /// call it for a connection that is replaced at once: that is no outage.
    ///
    /// Call it under the lock of the connections, so that the last call reports their last state.
    pub(super) fn reachable(&self, reachable: bool) {
        self.change(|_| match reachable {
            true => State::Up,
            false => State::Away,
        });
    }

    /// Reports that the failure mode decided a request.
    #[cold]
    pub(super) fn decided_without(&self, mode: FailureMode) {
        let decided = &self.health.decided;
        let of_mode = match mode {
            FailureMode::Open => &decided.open,
            FailureMode::LocalShare { .. } => &decided.local_share,
            // The store rejects in a mode that this version does not know.
            _ => &decided.closed,
        };
        of_mode.fetch_add(1, Ordering::Relaxed);
        self.health.recent_failures.note(None);
        for observer in &self.observers {
            observer.decided_without(mode);
        }
    }

    /// Whether the store decides, for operators.
    pub(super) fn status(&self, mode: FailureMode) -> StoreStatus {
        let clients = lock(&self.health.clients);
        let outage = clients
            .outage
            .as_ref()
            .filter(|outage| outage.is_failure)
            .map(|outage| outage.since);
        drop(clients);
        self.health.recent_failures.status(outage, mode)
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
            // Under the lock, so that observers see changes in their order.
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
        // A first connection is logged only if the failure mode decided requests meanwhile.
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

/// A dropped client does not count as unreachable.
impl Drop for Events {
    fn drop(&mut self) {
        self.change(|_| State::New);
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            lines: FailureKind::ALL
                .iter()
                .map(|_| LineLimit::default())
                .collect(),
            clients: Mutex::default(),
            decided: Decided::default(),
            recent_failures: RecentFailures::default(),
        }
    }
}

impl Clients {
    /// Moves a client from one state to another. Returns the reachability if it must be reported, and the outage that has
    /// ended.
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
            // All clients were dropped.
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
    /// Returns the number of unlogged failures if a line may be written now.
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
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use tower_admission::store::StoreError;

    const MODES: [FailureMode; 3] = [
        FailureMode::Open,
        FailureMode::Closed,
        FailureMode::LocalShare { replicas: 3 },
    ];

    /// The log, one line for each event with its fields.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    struct Fields<'a>(&'a mut String);

    impl tracing::field::Visit for Fields<'_> {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            *self.0 += &format!("{field}={value:?} ");
        }
    }

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            let mut line = format!("{} ", event.metadata().level());
            event.record(&mut Fields(&mut line));
            lock(&self.0).push(line.trim_end().to_owned());
        }
    }

    impl Lines {
        fn collect(&self) -> tracing::subscriber::DefaultGuard {
            tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<bool>>>);

    impl StoreObserver for Seen {
        fn reachable(&self, reachable: bool) {
            lock(&self.0).push(reachable);
        }
    }

    impl Seen {
        fn take(&self) -> Vec<bool> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    async fn pass(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    fn refused() -> CallError {
        CallError::because(FailureKind::Disconnected, "connection refused")
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_failure_is_logged_once_per_second() {
        let lines = Lines::default();
        let _collecting = lines.collect();
        let events = Events::default();
        let busy = CallError::because(FailureKind::Busy, "LOADING");
        for _ in 0..3 {
            events.failed(&refused());
            events.failed(&busy);
            pass(333).await;
        }
        let line = |kind, cause, silent| {
            format!(
                "WARN message=calls to Redis fail; the failure mode decides kind={kind:?} \
                 cause={cause:?} since_last_line={silent}"
            )
        };
        assert_eq!(
            lines.take(),
            [
                line("disconnected", "connection refused", 0),
                line("busy", "LOADING", 0)
            ]
        );
        pass(1).await;
        // Another client of the store has the same clock and the same lines.
        events.clone().failed(&refused());
        assert_eq!(
            lines.take(),
            [line("disconnected", "connection refused", 2)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_the_breaker_rejects_is_not_logged() {
        let lines = Lines::default();
        let _collecting = lines.collect();
        let events = Events::default();
        let rejected = CallError::breaker_open(&refused());
        assert_eq!(rejected.kind(), FailureKind::Disconnected);
        assert_eq!(
            StoreError::from(rejected.clone()).to_string(),
            "the store failed: disconnected: connection refused"
        );
        for _ in 0..1000 {
            events.failed(&rejected);
        }
        assert_eq!(lines.take(), [""; 0]);
        events.failed(&refused());
        let line = lines.take().join("\n");
        assert!(
            line.ends_with("cause=\"connection refused\" since_last_line=0"),
            "{line}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_with_one_line_for_all_clients() {
        let (lines, seen) = (Lines::default(), Seen::default());
        let _collecting = lines.collect();
        let mut events = Events::default();
        events.add(seen.clone());
        let clients = MODES.map(|mode| (mode, events.clone()));
        for (_, client) in &clients {
            client.connecting();
            client.reachable(true);
        }
        assert_eq!(seen.take(), [false, true]);
        // Before the outage.
        clients[0].1.decided_without(FailureMode::Open);
        for (at, (mode, client)) in clients.iter().enumerate() {
            client.reachable(false);
            client.reachable(false);
            pass(100).await;
            for _ in 0..=at {
                client.decided_without(*mode);
            }
        }
        for (_, client) in &clients {
            client.connecting();
            client.reachable(true);
            pass(50).await;
        }
        assert_eq!(seen.take(), [false, true]);
        assert_eq!(
            lines.take(),
            [
                "INFO message=Redis is back away_ms=400 decided_open=1 decided_closed=2 \
                 decided_local_share=3"
            ]
        );
        clients[1].1.reachable(false);
        clients[1].1.reachable(true);
        assert_eq!(
            lines.take(),
            [
                "INFO message=Redis is back away_ms=0 decided_open=0 decided_closed=0 \
                 decided_local_share=0"
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_connection_is_logged_only_if_the_failure_mode_decided() {
        let (lines, seen) = (Lines::default(), Seen::default());
        let _collecting = lines.collect();
        for decided in [0, 2] {
            let mut events = Events::default();
            events.add(seen.clone());
            events.connecting();
            assert_eq!(seen.take(), [false]);
            pass(40).await;
            for _ in 0..decided {
                events.decided_without(FailureMode::Closed);
            }
            events.reachable(true);
            assert_eq!(seen.take(), [true]);
        }
        assert_eq!(
            lines.take(),
            [
                "INFO message=Redis is back away_ms=40 decided_open=0 decided_closed=2 \
                 decided_local_share=0"
            ]
        );
    }

    #[test]
    fn a_dropped_client_does_not_count_as_unreachable() {
        let (lines, seen) = (Lines::default(), Seen::default());
        let _collecting = lines.collect();
        let mut events = Events::default();
        events.add(seen.clone());
        let (one, two) = (events.clone(), events.clone());
        one.reachable(true);
        two.reachable(false);
        assert_eq!(seen.take(), [true, false]);
        drop(two);
        assert_eq!(seen.take(), [true], "the other one is up");
        one.reachable(false);
        drop(one);
        assert_eq!(seen.take(), [false]);
        assert_eq!(lines.take().len(), 1);
        // The last client was dropped, so no outage ends.
        events.reachable(true);
        assert_eq!(seen.take(), [true]);
        assert_eq!(lines.take(), [""; 0]);
    }

    #[test]
    fn connections_of_a_second_client_are_no_outage() {
        let seen = Seen::default();
        let mut events = Events::default();
        events.add(seen.clone());
        events.reachable(true);
        let other = events.clone();
        other.connecting();
        other.reachable(true);
        assert_eq!(seen.take(), [true]);
    }

    #[test]
    fn each_failure_mode_is_counted() {
        #[derive(Default)]
        struct Modes(Mutex<Vec<FailureMode>>);
        impl StoreObserver for Modes {
            fn decided_without(&self, mode: FailureMode) {
                lock(&self.0).push(mode);
            }
        }
        let modes = Arc::new(Modes::default());
        let mut events = Events::default();
        events.add(modes.clone());
        for mode in MODES {
            events.decided_without(mode);
        }
        assert_eq!(*lock(&modes.0), MODES);
        assert_eq!(events.health.decided.take(), [1, 1, 1]);
    }
}
