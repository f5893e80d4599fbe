//! Where the memory store's time comes from, and the wall clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governor::clock::{Clock, QuantaClock, Reference};
use governor::nanos::Nanos;

/// The clock that [`Buckets`](super::governed::Buckets) run on: nanoseconds since it was made.
///
/// Monotonic time, from the processor's counter where that can be trusted. Making one calibrates
/// that counter, which takes microseconds, so it happens once per process.
#[derive(Clone, Debug)]
pub(crate) struct RealClock {
    clock: QuantaClock,
}

impl RealClock {
    pub(crate) fn new() -> Self {
        static CLOCK: std::sync::OnceLock<QuantaClock> = std::sync::OnceLock::new();
        Self {
            clock: CLOCK.get_or_init(QuantaClock::default).clone(),
        }
    }
}

impl Clock for RealClock {
    type Instant = <QuantaClock as Clock>::Instant;

    #[inline]
    fn now(&self) -> Self::Instant {
        self.clock.now()
    }
}

/// The wall clock, as the time since the Unix epoch, for protocols that have it. Nothing is decided by
/// it: it may step.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub(crate) fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Before 1970.
    now.unwrap_or_default()
}

/// What a store measures times to live with: nanoseconds since it was made.
#[derive(Clone, Debug)]
pub(super) enum Timer {
    Real {
        clock: RealClock,
        start: <RealClock as Clock>::Instant,
    },
    #[cfg(feature = "test-util")]
    Test(TestClock),
}

impl Timer {
    pub(super) fn real() -> Self {
        let clock = RealClock::new();
        let start = clock.now();
        Self::Real { clock, start }
    }

    pub(super) fn now(&self) -> u64 {
        match self {
            Self::Real { clock, start } => clock.now().duration_since(*start).into(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => clock.now().into(),
        }
    }
}

/// A clock as nanoseconds since its own zero, the same for all that are made from clones of it.
#[derive(Debug)]
pub(super) struct SinceZero<C: Clock> {
    clock: C,
    zero: C::Instant,
}

impl<C: Clock> SinceZero<C> {
    pub(super) fn new(clock: C) -> Self {
        Self {
            zero: clock.now().saturating_sub(Nanos::from(u64::MAX)),
            clock,
        }
    }

    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.clock.now().duration_since(self.zero).into()
    }
}

/// A clock whose first reading, which governor takes for the beginning of time, is that of 0.
///
/// governor counts from when a limiter is made, and time before that stands still: a clock that
/// steps back further would stop the limiter until it has caught up.
#[derive(Debug)]
pub(super) struct FromZero<C> {
    clock: C,
    started: AtomicBool,
}

impl<C> FromZero<C> {
    pub(super) fn new(clock: C) -> Self {
        Self {
            clock,
            started: AtomicBool::new(false),
        }
    }

    /// From here on the clock tells the time.
    pub(super) fn start(&self) {
        self.started.store(true, Ordering::Release);
    }
}

impl<C: Clock> Clock for FromZero<C> {
    type Instant = C::Instant;

    #[inline]
    fn now(&self) -> C::Instant {
        let now = self.clock.now();
        if self.started.load(Ordering::Relaxed) {
            now
        } else {
            now.saturating_sub(Nanos::from(u64::MAX))
        }
    }
}

/// A clock for tests, which stands still until it is told to move.
///
/// Clones share the time.
///
/// ```
/// use std::time::Duration;
/// use tower_admission::{Key, Quota, RateLimiter, store::MemoryStore, test_util::TestClock};
///
/// let clock = TestClock::default();
/// let store = MemoryStore::new().clock(clock.clone());
/// let limiter = RateLimiter::with_store(Quota::per_minute(1), &store);
/// let key = Key::id("user", "alice");
///
/// assert!(limiter.check(&key).is_admitted());
/// assert!(!limiter.check(&key).is_admitted());
/// clock.advance(Duration::from_secs(60));
/// assert!(limiter.check(&key).is_admitted());
/// ```
#[cfg(feature = "test-util")]
#[derive(Clone, Debug, Default)]
pub struct TestClock(std::sync::Arc<std::sync::atomic::AtomicU64>);

#[cfg(feature = "test-util")]
mod test_clock {
    use super::{Clock, Duration, Nanos, Ordering, TestClock};

    impl TestClock {
        /// Moves the time forward.
        ///
        /// # Panics
        ///
        /// When `by` is over 584 years.
        pub fn advance(&self, by: Duration) {
            self.0.fetch_add(nanos(by), Ordering::SeqCst);
        }

        /// Moves the time back, as broken clocks do; not beyond the time when it was made.
        ///
        /// # Panics
        ///
        /// When `by` is over 584 years.
        pub fn step_back(&self, by: Duration) {
            let by = nanos(by);
            let _ = self
                .0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                    Some(now.saturating_sub(by))
                });
        }
    }

    fn nanos(duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos()).expect("a duration below 584 years")
    }

    impl Clock for TestClock {
        type Instant = Nanos;

        fn now(&self) -> Nanos {
            self.0.load(Ordering::SeqCst).into()
        }
    }
}
