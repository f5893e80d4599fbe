//! The number of requests admitted per period, with a burst.

mod derived;
mod error;
mod text;

use std::fmt;
use std::time::Duration;

pub use self::error::QuotaError;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The maximum time for an empty bucket to fill. A few such durations in nanoseconds can be added
/// without overflowing 64 bits.
const MAX_REFILL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The number of requests admitted per period, with a burst.
///
/// A quota is a bucket (the [generic cell rate algorithm][gcra], a leaky bucket used as a meter).
/// The bucket holds up to [`burst`](Quota::burst) requests and refills evenly with `count` requests
/// per period. Any interval of length `W` admits at most `burst + W × count / period` requests. A
/// client that stays at the rate is never rejected. Default burst: the count.
///
/// A quota has a text form: `"10/s"`, `"600/min burst 50"`, `"1000/h"`, `"5 per 30s"`.
///
/// ```
/// use tower_admission::Quota;
///
/// let quota = Quota::per_minute(600).burst(50);
/// assert_eq!(quota, "600/min burst 50".parse().unwrap());
/// assert_eq!(quota.to_string(), "600/min burst 50");
/// ```
///
/// # Sliding windows
///
/// [`sliding`](Quota::sliding) guarantees at most `count` requests in **any** period, wherever it
/// begins. `burst` then adds to the count: `"60/min burst 10 sliding"` admits at most 70 requests
/// in any minute.
///
/// ```
/// use tower_admission::Quota;
///
/// let quota = Quota::per_minute(60).burst(10).sliding();
/// assert_eq!(quota, "60/min burst 10 sliding".parse().unwrap());
/// assert_eq!(quota.burst_size(), Some(70));
/// ```
///
/// Prefer a bucket: it is exact to the nanosecond, takes 32 bytes a key in place of 123 to 151,
/// needs no lock, and lets a rejected client retry sooner. Use a sliding window when you must
/// guarantee at most N requests in any period. [The memory store's
/// documentation](crate::store::memory#sliding-windows) defines exactly how a sliding window counts.
///
/// # A quota of 0
///
/// A count of 0 turns the limit off, as in the settings of most systems, whatever the burst.
/// [`Quota::off`] makes the same quota. To reject every request, use [`Quota::deny_all`].
///
/// # Precision
///
/// The time between two requests is rounded up to whole nanoseconds, so that the rate is never
/// above the configured one. At a million requests per second the rate is exact to a thousandth.
///
/// [gcra]: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota(QuotaKind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum QuotaKind {
    Off,
    DenyAll,
    Rate(Rate),
}

/// A quota that limits. No number in it is 0, and no derived number overflows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    count: u32,
    period: Duration,
    /// The configured burst. Without one, each algorithm has its own default.
    burst: Option<u32>,
    sliding: bool,
}

impl Quota {
    /// `count` requests per second. 0 turns the limit off.
    ///
    /// # Panics
    ///
    /// Panics when `count` is above 1,000,000,000, which is more than one request per nanosecond.
    #[must_use]
    #[track_caller]
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, SECOND)
    }

    /// `count` requests per minute. 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_minute(count: u32) -> Self {
        Self::new(count, MINUTE)
    }

    /// `count` requests per hour. 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_hour(count: u32) -> Self {
        Self::new(count, HOUR)
    }

    /// `count` requests per day (24 hours). 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_day(count: u32) -> Self {
        Self::new(count, DAY)
    }

    /// `count` requests per `period`. 0 turns the limit off.
    ///
    /// # Panics
    ///
    /// Panics where [`Quota::try_new`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn new(count: u32, period: Duration) -> Self {
        match Self::try_new(count, period) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// `count` requests per `period`. 0 turns the limit off. Use it for numbers from outside.
    ///
    /// # Errors
    ///
    /// - [`QuotaError::TooFast`]: the rate is above one request per nanosecond.
    /// - [`QuotaError::NoPeriod`]: the period is 0, whatever the count.
    /// - [`QuotaError::TooSlow`]: the bucket would take more than 100 years to fill.
    pub const fn try_new(count: u32, period: Duration) -> Result<Self, QuotaError> {
        if period.is_zero() {
            return Err(QuotaError::NoPeriod);
        }
        if count == 0 {
            return Ok(Self::off());
        }
        if period.as_nanos() < count as u128 {
            return Err(QuotaError::TooFast);
        }
        Self::checked(Rate {
            count,
            period,
            burst: None,
            sliding: false,
        })
    }

    /// No limit, as [`Quota::new`] with a count of 0.
    #[must_use]
    pub const fn off() -> Self {
        Self(QuotaKind::Off)
    }

    /// Rejects every request.
    #[must_use]
    pub const fn deny_all() -> Self {
        Self(QuotaKind::DenyAll)
    }

    /// Sets the burst: the number of requests that a full bucket admits at once. For a
    /// [sliding](Self::sliding) quota, the number of requests that any window admits on top of the
    /// count.
    ///
    /// Default: the count for a bucket, so `10/s` admits ten at once; 0 for a sliding quota. Has no
    /// effect on [`Quota::off`] and [`Quota::deny_all`].
    ///
    /// # Panics
    ///
    /// Panics where [`Quota::try_burst`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn burst(self, burst: u32) -> Self {
        match self.try_burst(burst) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// As [`Quota::burst`]. Use it for a number from outside.
    ///
    /// # Errors
    ///
    /// - [`QuotaError::NoBurst`]: a burst of 0 would admit nothing.
    /// - [`QuotaError::TooSlow`]: the bucket would take more than 100 years to fill.
    /// - [`QuotaError::TooLarge`]: the count and the burst of a sliding quota add up to more than
    ///   [`u32::MAX`].
    pub const fn try_burst(self, burst: u32) -> Result<Self, QuotaError> {
        match self.0 {
            QuotaKind::Off | QuotaKind::DenyAll => Ok(self),
            QuotaKind::Rate(_) if burst == 0 => Err(QuotaError::NoBurst),
            QuotaKind::Rate(rate) => Self::checked(Rate {
                burst: Some(burst),
                ..rate
            }),
        }
    }

    /// Counts in a sliding window: at most count + burst requests in any period. Call it before or
    /// after [`burst`](Self::burst). Default burst of a sliding quota: 0.
    ///
    /// Has no effect on [`Quota::off`] and [`Quota::deny_all`].
    ///
    /// # Panics
    ///
    /// Panics where [`Quota::try_sliding`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn sliding(self) -> Self {
        match self.try_sliding() {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// As [`Quota::sliding`]. Use it for numbers from outside.
    ///
    /// # Errors
    ///
    /// Returns [`QuotaError::TooLarge`] when the count and the burst add up to more than
    /// [`u32::MAX`].
    pub const fn try_sliding(self) -> Result<Self, QuotaError> {
        match self.0 {
            QuotaKind::Off | QuotaKind::DenyAll => Ok(self),
            QuotaKind::Rate(rate) => Self::checked(Rate {
                sliding: true,
                ..rate
            }),
        }
    }

    /// Whether this quota counts in a sliding window. `false` for a bucket, [`Quota::off`] and
    /// [`Quota::deny_all`].
    #[must_use]
    pub const fn is_sliding(&self) -> bool {
        matches!(self.0, QuotaKind::Rate(Rate { sliding: true, .. }))
    }

    /// Whether this quota limits nothing.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        matches!(self.0, QuotaKind::Off)
    }

    /// Whether this quota rejects every request.
    pub(crate) const fn is_deny_all(&self) -> bool {
        matches!(self.0, QuotaKind::DenyAll)
    }

    /// The number of requests per period. `None` for [`Quota::off`] and [`Quota::deny_all`].
    #[must_use]
    pub const fn count(&self) -> Option<u32> {
        match self.0 {
            QuotaKind::Rate(rate) => Some(rate.count),
            QuotaKind::Off | QuotaKind::DenyAll => None,
        }
    }

    /// The period. `None` for [`Quota::off`] and [`Quota::deny_all`].
    #[must_use]
    pub const fn period(&self) -> Option<Duration> {
        match self.0 {
            QuotaKind::Rate(rate) => Some(rate.period),
            QuotaKind::Off | QuotaKind::DenyAll => None,
        }
    }

    /// The most requests admitted at once: the size of a bucket, or count + burst of a
    /// [sliding](Self::sliding) quota. `None` for [`Quota::off`] and [`Quota::deny_all`].
    #[must_use]
    pub const fn burst_size(&self) -> Option<u32> {
        match self.0 {
            QuotaKind::Rate(rate) => Some(rate.limit()),
            QuotaKind::Off | QuotaKind::DenyAll => None,
        }
    }

    /// The rate. `None` for [`Quota::off`] and [`Quota::deny_all`].
    pub(crate) const fn rate(&self) -> Option<Rate> {
        match self.0 {
            QuotaKind::Rate(rate) => Some(rate),
            QuotaKind::Off | QuotaKind::DenyAll => None,
        }
    }

    const fn checked(rate: Rate) -> Result<Self, QuotaError> {
        // A request leaves a sliding window after one period, whatever the burst.
        let (refill, limit) = if rate.sliding {
            (rate.period.as_nanos(), rate.window_limit())
        } else {
            let burst = rate.bucket_size();
            (rate.interval_nanos() * burst as u128, burst as u64)
        };
        if refill > MAX_REFILL.as_nanos() {
            return Err(QuotaError::TooSlow);
        }
        if limit > u32::MAX as u64 {
            return Err(QuotaError::TooLarge);
        }
        Ok(Self(QuotaKind::Rate(rate)))
    }
}

impl Rate {
    const fn interval_nanos(&self) -> u128 {
        self.period.as_nanos().div_ceil(self.count as u128)
    }

    /// The time between two requests at the steady rate, rounded up to a nanosecond.
    pub(crate) const fn interval(&self) -> Duration {
        // `checked` keeps this far below 2^64.
        Duration::from_nanos(self.interval_nanos() as u64)
    }

    /// The most requests admitted at once.
    pub(crate) const fn limit(&self) -> u32 {
        if self.sliding {
            // `checked` keeps this within 32 bits.
            self.window_limit() as u32
        } else {
            self.bucket_size()
        }
    }

    /// The size of a bucket.
    const fn bucket_size(&self) -> u32 {
        match self.burst {
            Some(burst) => burst,
            None => self.count,
        }
    }

    /// The most requests in a sliding window.
    const fn window_limit(&self) -> u64 {
        match self.burst {
            Some(burst) => self.count as u64 + burst as u64,
            None => self.count as u64,
        }
    }

    pub(crate) const fn is_sliding(&self) -> bool {
        self.sliding
    }

    pub(crate) const fn period(&self) -> Duration {
        self.period
    }

    /// The time in which an empty bucket fills at the exact rate, in nanoseconds, rounded down.
    pub(crate) const fn window_nanos(&self) -> u128 {
        self.period.as_nanos() * self.bucket_size() as u128 / self.count as u128
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_never_too_short() {
        for (quota, nanos) in [
            (Quota::per_second(10), 100_000_000),
            (Quota::per_second(7), 142_857_143),
            (Quota::per_second(1_000_000_000), 1),
            (Quota::per_second(600_000_000), 2),
        ] {
            assert_eq!(
                quota.rate().unwrap().interval(),
                Duration::from_nanos(nanos)
            );
        }
    }

    #[test]
    fn a_period_of_zero_is_an_error() {
        for count in [0, 1, u32::MAX] {
            let quota = Quota::try_new(count, Duration::ZERO);
            assert_eq!(quota, Err(QuotaError::NoPeriod));
        }
        assert_eq!(Quota::new(0, SECOND).burst(5), Quota::off());
    }

    #[test]
    fn a_period_can_be_a_year() {
        let quota = Quota::new(u32::MAX, 365 * DAY);
        assert_eq!(quota.rate().unwrap().limit(), u32::MAX);
    }

    #[test]
    fn a_sliding_quota_adds_its_burst_in_either_order() {
        let quota = Quota::per_minute(60);
        assert_eq!(quota.sliding().burst_size(), Some(60));
        assert_eq!(quota.burst(10).sliding(), quota.sliding().burst(10));
        assert_eq!(quota.burst(10).sliding().burst_size(), Some(70));
        // An explicit burst counts even if it equals the count.
        assert_eq!(quota.burst(60).sliding().burst_size(), Some(120));
        assert!(quota.sliding().is_sliding() && !quota.is_sliding());
        for quota in [Quota::off(), Quota::deny_all()] {
            assert_eq!(quota.sliding(), quota);
            assert!(!quota.sliding().is_sliding());
        }
        let full = Quota::new(u32::MAX, DAY).sliding();
        assert_eq!(full.try_burst(1), Err(QuotaError::TooLarge));
        let bucket = Quota::new(u32::MAX, DAY).burst(1);
        assert_eq!(bucket.try_sliding(), Err(QuotaError::TooLarge));
        // The bucket would take 4294967295 days to fill.
        let slow = Quota::per_day(1).sliding();
        assert_eq!(slow.burst(u32::MAX - 1).burst_size(), Some(u32::MAX));
    }

    #[test]
    fn each_named_period_has_its_length() {
        for (quota, seconds) in [
            (Quota::per_second(7), 1),
            (Quota::per_minute(7), 60),
            (Quota::per_hour(7), 3_600),
            (Quota::per_day(7), 86_400),
        ] {
            assert_eq!(quota.period(), Some(Duration::from_secs(seconds)));
            assert_eq!(quota.count(), Some(7));
        }
    }

    #[test]
    fn a_bucket_must_fill_within_a_hundred_years() {
        let most = Duration::from_secs(3_153_600_000);
        let too_long = most + Duration::from_nanos(1);
        assert!(Quota::try_new(1, most).is_ok());
        assert_eq!(Quota::try_new(1, too_long), Err(QuotaError::TooSlow));
        let day = Quota::per_day(1);
        assert!(day.try_burst(36_500).is_ok());
        assert_eq!(day.try_burst(36_501), Err(QuotaError::TooSlow));
        // A sliding window fits, whatever its burst.
        let day = day.sliding();
        assert!(day.try_burst(36_501).is_ok());
        let window = |period| Quota::new(2, period).burst(1).try_sliding();
        assert!(window(most).is_ok());
    }

    #[test]
    fn off_and_deny_all_have_no_numbers() {
        let (off, none) = (Quota::off(), Quota::deny_all());
        for quota in [off, none] {
            assert_eq!(quota.count(), None);
            assert_eq!(quota.period(), None);
            assert_eq!(quota.burst_size(), None);
            assert!(quota.rate().is_none());
            assert_eq!(quota.try_burst(0), Ok(quota));
        }
        assert_eq!((off.is_off(), off.is_deny_all()), (true, false));
        assert_eq!((none.is_off(), none.is_deny_all()), (false, true));
        let quota = Quota::per_second(1);
        assert_eq!((quota.is_off(), quota.is_deny_all()), (false, false));
        assert_eq!(quota.try_burst(0), Err(QuotaError::NoBurst));
    }

    #[test]
    fn an_interval_is_rounded_up_and_a_window_down() {
        let rate = Quota::per_second(7).burst(14).rate().unwrap();
        assert_eq!(rate.period(), SECOND);
        assert_eq!(rate.interval(), Duration::from_nanos(142_857_143));
        assert_eq!(rate.window_nanos(), 2_000_000_000);
        let rate = Quota::per_second(3).burst(1).rate().unwrap();
        assert_eq!(rate.window_nanos(), 333_333_333);
    }

    #[test]
    fn an_error_names_the_invalid_number() {
        let error = Quota::try_new(1, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("period is 0"));
        let shown = format!("{:?}", Quota::per_minute(5).burst(2));
        assert_eq!(shown, "Quota(5/min burst 2)");
    }

    #[test]
    #[should_panic(expected = "one request per nanosecond")]
    fn the_const_constructor_panics_on_a_rate_that_is_too_high() {
        let _ = Quota::per_second(u32::MAX);
    }
}
