//! The clocks: a monotonic clock for buckets and windows, the wall clock, and a clock for tests.

#[cfg(feature = "test-util")]
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governor::clock::{Clock, QuantaClock, QuantaInstant, Reference};
use governor::nanos::Nanos;

/// The clock of buckets and windows. It reads the processor's counter where that is reliable.
///
/// Creating a `QuantaClock` calibrates the counter, which takes microseconds, so it happens once
/// per process.
#[derive(Clone, Debug)]
pub(crate) struct ProcessClock {
    clock: QuantaClock,
    zero: QuantaInstant,
}

impl ProcessClock {
    fn new() -> Self {
        static CLOCK: std::sync::OnceLock<QuantaClock> = std::sync::OnceLock::new();
        let clock = CLOCK.get_or_init(QuantaClock::default).clone();
        // The earliest zero there is: a clock that steps back must not pass it.
        let zero = clock.now().saturating_sub(Nanos::from(u64::MAX));
        Self { clock, zero }
    }
}

impl ProcessClock {
    /// Nanoseconds since this clock's zero.
    #[inline]
    fn now(&self) -> u64 {
        self.clock.now().duration_since(self.zero).into()
    }
}

/// The wall clock, as the time since the Unix epoch, for protocols that need it. No limit depends
/// on it, because it can step.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
#[must_use]
pub fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // The clock is before 1970.
    now.unwrap_or_default()
}

/// The wall clock for the ends of overrides, which must mean the same in all replicas and after a
/// restart.
#[derive(Clone, Debug, Default)]
pub(crate) enum WallClock {
    #[default]
    Real,
    #[cfg(feature = "test-util")]
    Test(TestClock),
}

impl WallClock {
    /// Whole seconds since the Unix epoch.
    pub(crate) fn seconds(&self) -> u64 {
        self.since_epoch().as_secs()
    }

    /// Monotonic time since an unspecified zero.
    pub(crate) fn uptime(&self) -> Duration {
        Duration::from_nanos(match self {
            Self::Real => MonotonicClock::process().now(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => clock.now(),
        })
    }

    pub(crate) fn since_epoch(&self) -> Duration {
        match self {
            Self::Real => since_epoch(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => clock.since_epoch(),
        }
    }
}

/// A clock that the wall clock does not affect.
#[derive(Clone, Debug)]
pub(crate) enum MonotonicClock {
    Process(ProcessClock),
    #[cfg(feature = "test-util")]
    Test(TestClock),
}

impl MonotonicClock {
    pub(crate) fn process() -> Self {
        Self::Process(ProcessClock::new())
    }

    /// Nanoseconds since this clock's zero.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        match self {
            Self::Process(clock) => clock.now(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => clock.now(),
        }
    }
}

/// A clock for tests. It stands still until [`advance`](Self::advance) moves it.
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
/// assert!(limiter.check_now(&key).unwrap().is_admitted());
/// assert!(!limiter.check_now(&key).unwrap().is_admitted());
/// clock.advance(Duration::from_secs(60));
/// assert!(limiter.check_now(&key).unwrap().is_admitted());
/// ```
#[cfg(feature = "test-util")]
#[derive(Clone, Debug, Default)]
pub struct TestClock(std::sync::Arc<std::sync::atomic::AtomicU64>);

#[cfg(feature = "test-util")]
mod test_clock {
    use super::{Duration, Ordering, SystemTime, TestClock, UNIX_EPOCH};

    const WALL_CLOCK_START: Duration = Duration::from_secs(1_000_000_000);

    impl TestClock {
        /// Moves the time forward.
        ///
        /// # Panics
        ///
        /// Panics if `by` is over 584 years.
        pub fn advance(&self, by: Duration) {
            self.0.fetch_add(nanos(by), Ordering::SeqCst);
        }

        /// The time as a wall clock, which starts 10^9 seconds after the Unix epoch.
        #[must_use]
        pub fn wall_clock(&self) -> SystemTime {
            UNIX_EPOCH + self.since_epoch()
        }

        /// Moves the time back, as a faulty clock does, but not before the time at which this clock
        /// was created.
        ///
        /// # Panics
        ///
        /// Panics if `by` is over 584 years.
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

    impl TestClock {
        pub(super) fn now(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }

        pub(super) fn since_epoch(&self) -> Duration {
            Duration::from_nanos(self.now()).saturating_add(WALL_CLOCK_START)
        }
    }
}
