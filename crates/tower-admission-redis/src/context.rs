//! State that the servers of a store share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::call_error::CallError;
use super::client::Options;
use super::health::Health;
use super::url::Target;

pub(super) struct Context {
    pub(super) target: Target,
    pub(super) options: Options,
    pub(super) health: Health,
    started: Instant,
    /// Wakes the supervisor, and a replaced one.
    pub(super) wake: watch::Sender<()>,
    /// Requests for the map of a cluster.
    pub(super) map_requests: watch::Sender<()>,
    /// When the supervisor last ran or was woken, in microseconds since `started`.
    attended: AtomicU64,
    /// The generation of the last connection.
    generation: AtomicU64,
}

impl Context {
    pub(super) fn new(target: Target, options: Options) -> Arc<Self> {
        Arc::new(Self {
            target,
            options,
            health: Health::default(),
            started: Instant::now(),
            wake: watch::Sender::new(()),
            map_requests: watch::Sender::new(()),
            attended: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        })
    }

    pub(super) fn failed(&self, error: &CallError) {
        self.options.events.failed(error);
    }

    pub(super) fn report_health(&self) {
        self.health
            .report(|reachable| self.options.events.reachable(reachable));
    }

    pub(super) fn wake_supervisor(&self) {
        self.wake.send_replace(());
    }

    /// Requests the map of a cluster, because something has changed that may be in it.
    pub(super) fn request_map(&self) {
        self.map_requests.send_replace(());
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Records that the supervisor ran or was woken.
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
