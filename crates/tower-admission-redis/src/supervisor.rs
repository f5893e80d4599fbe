//! The task that connects to the servers of a store, and reconnects after a loss.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::attempt::connect;
use super::client::{Route, Shared};
use super::link::Link;
use super::node::Node;
use tower_admission::provider::TaskTerm;

/// The pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// A connection that lasted this long is replaced at once, and resets the pauses.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// The minimum interval between two requests for the map of a cluster, however many slots move.
const MIN_MAP_INTERVAL: Duration = Duration::from_millis(50);

/// The maximum time without a connection and without progress of the supervisor, which makes progress with each
/// attempt. Then another supervisor replaces it, because its runtime does not run.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// Starts the supervisor, unless one is making progress. For calls that find no connection.
pub(super) fn supervise(shared: &Arc<Shared>) {
    let context = &shared.context;
    let taken = if context.is_unattended_for(STALLED_AFTER) {
        shared.supervisor.take_over()
    } else {
        shared.supervisor.claim()
    };
    let Some(term) = taken else {
        return;
    };
    context.attended();
    // A replaced supervisor ends as soon as it runs.
    context.wake_supervisor();
    context.options.events.connecting();
    let supervised = Supervised(Arc::new(Watch {
        shared: shared.clone(),
        term,
    }));
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(supervised.supervise())),
        // Dropped, so that the next call tries again.
        Err(_) => drop(supervised),
    }
}

/// One run of the supervisor.
struct Watch {
    shared: Arc<Shared>,
    term: TaskTerm,
}

impl Watch {
    /// Whether this run is over, or replaced.
    fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire) || !self.shared.supervisor.is_current(self.term)
    }
}

/// The running supervisor. When its runtime ends, the supervisor and its connections, which that runtime drove, end
/// too.
struct Supervised(Arc<Watch>);

impl Drop for Supervised {
    fn drop(&mut self) {
        let Watch { shared, term } = &*self.0;
        if shared.supervisor.is_current(*term) {
            match &shared.route {
                Route::One(node) => node.begin_anew(),
                Route::BySlot(router) => router.begin_anew(),
            }
            shared.supervisor.release(*term);
            // Only now waiting calls can start another supervisor.
            match &shared.route {
                Route::One(node) => node.wake(),
                Route::BySlot(router) => router.wake(),
            }
        }
    }
}

impl Supervised {
    async fn supervise(self) {
        let watch = &self.0;
        let route = &watch.shared.route;
        let mut wake = watch.shared.context.wake.subscribe();
        // They end with this task.
        let mut tasks = JoinSet::new();
        let mut kept: Vec<Arc<Node>> = Vec::new();
        if let Route::BySlot(_) = route {
            tasks.spawn(follow_cluster(watch.clone()));
        }
        loop {
            wake.mark_unchanged();
            if watch.is_over() {
                return;
            }
            kept.retain(|node| !node.is_closed());
            let nodes = match route {
                Route::One(node) => vec![node.clone()],
                Route::BySlot(router) => router.nodes(),
            };
            for node in nodes {
                if !kept.iter().any(|kept| Arc::ptr_eq(kept, &node)) {
                    tasks.spawn(keep_connected(node.clone(), watch.clone()));
                    kept.push(node);
                }
            }
            tokio::select! {
                // The store was dropped.
                _ = wake.changed() => {}
                // The server was removed; or an observer panicked, and the next call starts over.
                ended = tasks.join_next(), if !tasks.is_empty() => {
                    if matches!(ended, Some(Err(_))) {
                        return;
                    }
                }
            }
        }
    }
}

async fn follow_cluster(watch: Arc<Watch>) {
    let Route::BySlot(router) = &watch.shared.route else {
        return;
    };
    let context = &watch.shared.context;
    let mut map_requests = context.map_requests.subscribe();
    while !watch.is_over() {
        map_requests.mark_unchanged();
        router.refresh().await;
        context.attended();
        tokio::select! {
            _ = map_requests.changed() => {}
            () = sleep(router.pause()) => {}
        }
        sleep(MIN_MAP_INTERVAL).await;
    }
}

async fn keep_connected(node: Arc<Node>, watch: Arc<Watch>) {
    let context = &watch.shared.context;
    let mut link = node.link.subscribe();
    let mut pause = FIRST_PAUSE;
    // When the last connection began.
    let mut since: Option<Instant> = None;
    let mut is_first = true;
    loop {
        let is_lost = {
            let lost = link.wait_for(|link| !matches!(link, Link::Up(_))).await;
            match lost.as_deref() {
                Ok(Link::Closed) | Err(_) => return,
                Ok(link) => matches!(link, Link::New | Link::Reconnecting),
            }
        };
        let has_held = since
            .take()
            .is_some_and(|since| since.elapsed() >= STABLE_AFTER);
        if has_held {
            pause = FIRST_PAUSE;
        }
        if !(is_first || is_lost || has_held) {
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
        is_first = false;
        if watch.is_over() {
            return;
        }
        context.attended();
        let connected = connect(context.clone(), node.address().cloned()).await;
        if watch.is_over() {
            return;
        }
        context.attended();
        match connected {
            Ok((connection, driver)) => {
                node.connected(connection, driver);
                since = Some(Instant::now());
            }
            Err(error) => node.not_connected(&error),
        }
    }
}
