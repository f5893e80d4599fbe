//! The task that connects to the servers of a store, and connects again when a connection is lost.

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
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that held for as long is replaced at once, and begins with short pauses again.
const HELD: Duration = Duration::from_secs(1);

/// Between two questions for the map of a cluster at least, however many slots move.
const BETWEEN_MAPS: Duration = Duration::from_millis(50);

/// How long there may be no connection and no sign of the supervisor, which gives one with each
/// attempt, before another takes its place: the runtime that should drive it is there and does not.
const OVERDUE: Duration = Duration::from_secs(2);

/// Starts the supervisor, unless there is one that works. For calls that find no connection.
pub(super) fn supervise(shared: &Arc<Shared>) {
    let context = &shared.context;
    let taken = if context.is_unattended_for(OVERDUE) {
        shared.supervisor.take_over()
    } else {
        shared.supervisor.claim()
    };
    let Some(term) = taken else {
        return;
    };
    context.attended();
    // One that lost the job ends, if it can.
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

/// One task's time as the supervisor.
struct Watch {
    shared: Arc<Shared>,
    term: TaskTerm,
}

impl Watch {
    /// Whether there is nothing more to do, or another does it.
    fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire) || !self.shared.supervisor.is_current(self.term)
    }
}

/// The supervisor at work. When it ends with its runtime, there is none any more; its connections,
/// which that runtime drove, are gone with it.
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
            // Only now can calls that wait for a connection start another.
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
                // It ends with what it belongs to.
                _ = wake.changed() => {}
                // Of a server that is no longer needed; or an observer panicked, and the next call
                // starts over.
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
    let mut trouble = context.trouble.subscribe();
    while !watch.is_over() {
        trouble.mark_unchanged();
        router.refresh().await;
        context.attended();
        tokio::select! {
            _ = trouble.changed() => {}
            () = sleep(router.pause()) => {}
        }
        sleep(BETWEEN_MAPS).await;
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
        let has_held = since.take().is_some_and(|since| since.elapsed() >= HELD);
        if has_held {
            pause = FIRST_PAUSE;
        }
        if !(is_first || is_lost || has_held) {
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
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
