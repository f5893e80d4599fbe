//! A lease store behind a simulated network: it answers when the test lets it, and can be
//! unavailable.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tower_admission::MemoryStore;
use tower_admission::store::{
    AcquireOutcome, FailureMode, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseStore,
    LeaseUsage, NamedAcquireOutcome, NamedLease, NamedLimits, Reply,
};
use tower_admission::test_util::TestClock;

/// Memory slots behind a simulated network.
#[derive(Clone)]
pub(crate) struct DelayedLeases {
    pub(crate) clock: TestClock,
    slots: Arc<dyn LeaseSlots>,
    mode: FailureMode,
    network: watch::Sender<Network>,
    /// Calls that the server has not received yet.
    asked: Arc<Mutex<Vec<(NamedLease, NamedLimits)>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Network {
    is_away: bool,
    answers: bool,
}

impl Default for DelayedLeases {
    fn default() -> Self {
        Self::failing(FailureMode::Closed)
    }
}

impl DelayedLeases {
    pub(crate) fn failing(mode: FailureMode) -> Self {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        Self {
            clock,
            slots: store.open_leases(""),
            mode,
            network: watch::Sender::default(),
            asked: Arc::default(),
        }
    }

    /// Delivers the pending calls to the server.
    pub(crate) fn take_in(&self) {
        for (lease, limits) in self.asked.lock().unwrap().drain(..) {
            assert!(matches!(
                self.slots.acquire_named(&lease, limits),
                Reply::Ready(NamedAcquireOutcome::Granted)
            ));
        }
    }

    pub(crate) fn answer(&self) {
        self.network.send_modify(|network| network.answers = true);
    }

    pub(crate) fn answer_at_once(&self) {
        self.answer();
    }

    /// From now on, no call is answered.
    pub(crate) fn hang(&self) {
        self.network.send_modify(|network| network.answers = false);
    }

    pub(crate) fn go_away(&self) {
        self.network.send_modify(|network| network.is_away = true);
    }

    pub(crate) fn come_back(&self) {
        self.network.send_modify(|network| network.is_away = false);
    }

    /// Delivers all pending calls, and the calls that follow from them.
    pub(crate) async fn give_all_answers(&self) {
        self.answer();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Advances the clocks of the store and of the runtime.
    pub(crate) async fn pass(&self, seconds: u32) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(crate) async fn taken(&self) -> u64 {
        self.slots.usage(None).await.unwrap().total
    }

    pub(crate) async fn until_taken(&self, expected: u64) {
        for _ in 0..10_000 {
            if self.taken().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{expected} are taken, within ten seconds");
    }

    /// Delays an answer until the network delivers it.
    fn later<T: Send + 'static>(
        &self,
        away: T,
        answer: impl FnOnce(&dyn LeaseSlots) -> Reply<T> + Send + 'static,
    ) -> Reply<T> {
        let (slots, mut network) = (self.slots.clone(), self.network.subscribe());
        Reply::Pending(Box::pin(async move {
            let state = *network.wait_for(|network| network.answers).await.unwrap();
            if state.is_away {
                return away;
            }
            answer(&*slots).await
        }))
    }
}

impl LeaseStore for DelayedLeases {
    fn open_leases(&self, _: &str) -> Arc<dyn LeaseSlots> {
        Arc::new(self.clone())
    }
}

impl LeaseSlots for DelayedLeases {
    fn acquire(&self, limits: LeaseLimits) -> Reply<AcquireOutcome> {
        self.slots.acquire(limits)
    }

    fn usage_at(
        &self,
        key: Option<&tower_admission::Key>,
        place: usize,
    ) -> Reply<Option<LeaseUsage>> {
        let key = key.copied();
        self.later(None, move |slots| slots.usage_at(key.as_ref(), place))
    }

    fn acquire_named(&self, lease: &NamedLease, limits: NamedLimits) -> Reply<NamedAcquireOutcome> {
        let lease = *lease;
        let later = self.clone();
        self.asked.lock().unwrap().push((lease, limits));
        self.later(NamedAcquireOutcome::Unavailable(self.mode), move |slots| {
            // Unless the server received the call before.
            let mut asked = later.asked.lock().unwrap();
            let waits = asked
                .iter()
                .position(|(asked, _)| asked.holder == lease.holder);
            if let Some(at) = waits {
                asked.remove(at);
                return slots.acquire_named(&lease, limits);
            }
            Reply::Ready(NamedAcquireOutcome::Granted)
        })
    }

    fn heartbeat(
        &self,
        name: &LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> Reply<LeaseStatus> {
        let name = *name;
        self.later(LeaseStatus::Unavailable, move |slots| {
            slots.heartbeat(&name, holder, ttl)
        })
    }

    fn release(&self, name: &LeaseName, holder: Option<u64>) -> Reply<LeaseStatus> {
        let name = *name;
        self.later(LeaseStatus::Unavailable, move |slots| {
            slots.release(&name, holder)
        })
    }
}
