//! How much per how long, with a burst.

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

/// The longest time that an empty bucket may take to fill. Nanoseconds up to here can be added
/// a few times over without overflowing 64 bits.
const LONGEST_REFILL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How much per how long, with a burst.
///
/// A quota is a bucket (the [generic cell rate algorithm][gcra], a leaky bucket used as a meter):
/// it holds up to [`burst`](Quota::burst) requests and fills evenly with `count` of them per
/// period. Any interval of length `W` admits at most `burst + W × count / period` requests, and a
/// client that stays at the rate is never refused. Unless said otherwise the burst is the count.
///
/// It is written as it is said: `"10/s"`, `"600/min burst 50"`, `"1000/h"`, `"5 per 30s"`.
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
/// [`sliding`](Quota::sliding) makes the same numbers a promise about every window: never more
/// than the count in **any** period, wherever it begins. `burst` is then an allowance on top of
/// the count, so `"60/min burst 10 sliding"` admits at most 70 in any minute.
///
/// ```
/// use tower_admission::Quota;
///
/// let quota = Quota::per_minute(60).burst(10).sliding();
/// assert_eq!(quota, "60/min burst 10 sliding".parse().unwrap());
/// assert_eq!(quota.burst_size(), Some(70));
/// ```
///
/// A bucket is exact to the nanosecond, takes a third of the memory and no lock, and gives a
/// refused client its next request sooner. A sliding window is for who has promised a number per
/// window. What is counted, to the letter, is in
/// [the memory store's documentation](crate::store::memory#sliding-windows).
///
/// # A quota of 0
///
/// turns the limit off, as in most systems' settings ([`Quota::off`] says the same by name), whatever burst is
/// written next to it.
/// Refusing everything is [`Quota::deny_all`].
///
/// # Precision
///
/// The time between two requests is rounded up to whole nanoseconds, so that the rate is never
/// above what was asked: at a million a second it is right to a thousandth.
///
/// [gcra]: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Off,
    DenyAll,
    Rate(Rate),
}

/// A quota that limits: none of its numbers is 0, and none overflows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    count: u32,
    period: Duration,
    /// As it was set; what it means without one is the algorithm's to say.
    burst: Option<u32>,
    sliding: bool,
}

impl Quota {
    /// `count` requests a second; 0 turns the limit off.
    ///
    /// # Panics
    ///
    /// When `count` is above a thousand million, which is more than one a nanosecond.
    #[must_use]
    #[track_caller]
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, SECOND)
    }

    /// `count` requests a minute; 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_minute(count: u32) -> Self {
        Self::new(count, MINUTE)
    }

    /// `count` requests an hour; 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_hour(count: u32) -> Self {
        Self::new(count, HOUR)
    }

    /// `count` requests a day (24 hours); 0 turns the limit off.
    #[must_use]
    #[track_caller]
    pub const fn per_day(count: u32) -> Self {
        Self::new(count, DAY)
    }

    /// `count` requests every `period`; 0 turns the limit off.
    ///
    /// # Panics
    ///
    /// Where [`Quota::try_new`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn new(count: u32, period: Duration) -> Self {
        match Self::try_new(count, period) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// `count` requests every `period`; 0 turns the limit off.
    ///
    /// # Errors
    ///
    /// - [`QuotaError::TooFast`]: more than one request a nanosecond.
    /// - [`QuotaError::NoPeriod`]: a period of 0, whatever the count.
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

    /// No limit. What [`Quota::new`] makes of a count of 0.
    #[must_use]
    pub const fn off() -> Self {
        Self(Kind::Off)
    }

    /// Refuses every request.
    #[must_use]
    pub const fn deny_all() -> Self {
        Self(Kind::DenyAll)
    }

    /// The most requests that are admitted at once by a bucket that was left alone long enough;
    /// of a [sliding](Self::sliding) quota, what any window admits on top of the count.
    ///
    /// Default: the count, so `10/s` admits ten at once; nothing, if the quota is sliding. Has no
    /// effect on [`Quota::off`] and [`Quota::deny_all`].
    ///
    /// # Panics
    ///
    /// Where [`Quota::try_burst`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn burst(self, burst: u32) -> Self {
        match self.try_burst(burst) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// As [`Quota::burst`], for a number that comes from outside.
    ///
    /// # Errors
    ///
    /// - [`QuotaError::NoBurst`]: a burst of 0 would never admit anything.
    /// - [`QuotaError::TooSlow`]: the bucket would take more than 100 years to fill.
    /// - [`QuotaError::TooLarge`]: a sliding quota's count and burst together are above
    ///   [`u32::MAX`].
    pub const fn try_burst(self, burst: u32) -> Result<Self, QuotaError> {
        match self.0 {
            Kind::Off | Kind::DenyAll => Ok(self),
            Kind::Rate(_) if burst == 0 => Err(QuotaError::NoBurst),
            Kind::Rate(rate) => Self::checked(Rate {
                burst: Some(burst),
                ..rate
            }),
        }
    }

    /// Counts in a sliding window: never more than count + burst in any period. Before or after
    /// [`burst`](Self::burst), which is nothing unless it is set.
    ///
    /// Has no effect on [`Quota::off`] and [`Quota::deny_all`].
    ///
    /// # Panics
    ///
    /// Where [`Quota::try_sliding`] returns an error.
    #[must_use]
    #[track_caller]
    pub const fn sliding(self) -> Self {
        match self.try_sliding() {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.message()),
        }
    }

    /// As [`Quota::sliding`], for numbers that come from outside.
    ///
    /// # Errors
    ///
    /// [`QuotaError::TooLarge`]: count and burst together are above [`u32::MAX`].
    pub const fn try_sliding(self) -> Result<Self, QuotaError> {
        match self.0 {
            Kind::Off | Kind::DenyAll => Ok(self),
            Kind::Rate(rate) => Self::checked(Rate {
                sliding: true,
                ..rate
            }),
        }
    }

    /// Whether this quota counts in a sliding window; if not, it is a bucket, or limits nothing
    /// or everything.
    #[must_use]
    pub const fn is_sliding(&self) -> bool {
        matches!(self.0, Kind::Rate(Rate { sliding: true, .. }))
    }

    /// Whether this quota limits nothing.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        matches!(self.0, Kind::Off)
    }

    /// Whether this quota refuses everything.
    pub(crate) const fn denies_all(&self) -> bool {
        matches!(self.0, Kind::DenyAll)
    }

    /// How many requests a period has; `None` for [`Quota::off`] and [`Quota::deny_all`].
    #[must_use]
    pub const fn count(&self) -> Option<u32> {
        match self.0 {
            Kind::Rate(rate) => Some(rate.count),
            Kind::Off | Kind::DenyAll => None,
        }
    }

    /// The period; `None` for [`Quota::off`] and [`Quota::deny_all`].
    #[must_use]
    pub const fn period(&self) -> Option<Duration> {
        match self.0 {
            Kind::Rate(rate) => Some(rate.period),
            Kind::Off | Kind::DenyAll => None,
        }
    }

    /// The most requests that are admitted at once: what a full bucket holds, or the count and
    /// the burst of a [sliding](Self::sliding) quota. `None` for [`Quota::off`] and
    /// [`Quota::deny_all`].
    #[must_use]
    pub const fn burst_size(&self) -> Option<u32> {
        match self.0 {
            Kind::Rate(rate) => Some(rate.limit()),
            Kind::Off | Kind::DenyAll => None,
        }
    }

    /// The rate, if there is one: neither off nor refusing everything.
    pub(crate) const fn rate(&self) -> Option<Rate> {
        match self.0 {
            Kind::Rate(rate) => Some(rate),
            Kind::Off | Kind::DenyAll => None,
        }
    }

    const fn checked(rate: Rate) -> Result<Self, QuotaError> {
        // What a window holds of a sliding quota does not take longer to come back.
        let (refill, limit) = if rate.sliding {
            (rate.period.as_nanos(), rate.sum())
        } else {
            let burst = rate.bucket();
            (rate.interval_nanos() * burst as u128, burst as u64)
        };
        if refill > LONGEST_REFILL.as_nanos() {
            return Err(QuotaError::TooSlow);
        }
        if limit > u32::MAX as u64 {
            return Err(QuotaError::TooLarge);
        }
        Ok(Self(Kind::Rate(rate)))
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

    /// The most requests that are admitted at once.
    pub(crate) const fn limit(&self) -> u32 {
        if self.sliding {
            // `checked` keeps this within 32 bits.
            self.sum() as u32
        } else {
            self.bucket()
        }
    }

    /// How many requests a full bucket holds.
    const fn bucket(&self) -> u32 {
        match self.burst {
            Some(burst) => burst,
            None => self.count,
        }
    }

    /// How many requests a sliding window admits.
    const fn sum(&self) -> u64 {
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

    /// How long an empty bucket takes to fill, as asked for, in nanoseconds rounded down.
    pub(crate) const fn window_nanos(&self) -> u128 {
        self.period.as_nanos() * self.bucket() as u128 / self.count as u128
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
    fn nothing_is_counted_in_no_time() {
        for count in [0, 1, u32::MAX] {
            let quota = Quota::try_new(count, Duration::ZERO);
            assert_eq!(quota, Err(QuotaError::NoPeriod));
        }
        assert_eq!(Quota::new(0, SECOND).burst(5), Quota::off());
    }

    #[test]
    fn a_year_is_a_period() {
        let quota = Quota::new(u32::MAX, 365 * DAY);
        assert_eq!(quota.rate().unwrap().limit(), u32::MAX);
    }

    #[test]
    fn a_sliding_quota_adds_its_burst_whichever_comes_first() {
        let quota = Quota::per_minute(60);
        assert_eq!(quota.sliding().burst_size(), Some(60));
        assert_eq!(quota.burst(10).sliding(), quota.sliding().burst(10));
        assert_eq!(quota.burst(10).sliding().burst_size(), Some(70));
        // A burst that was asked for is one, also when it is the count.
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
    fn the_named_periods_are_what_they_are_called() {
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
    fn a_bucket_fills_within_a_hundred_years() {
        let most = Duration::from_secs(3_153_600_000);
        let too_long = most + Duration::from_nanos(1);
        assert!(Quota::try_new(1, most).is_ok());
        assert_eq!(Quota::try_new(1, too_long), Err(QuotaError::TooSlow));
        let day = Quota::per_day(1);
        assert!(day.try_burst(36_500).is_ok());
        assert_eq!(day.try_burst(36_501), Err(QuotaError::TooSlow));
        // A window, whatever its burst.
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
        assert_eq!((off.is_off(), off.denies_all()), (true, false));
        assert_eq!((none.is_off(), none.denies_all()), (false, true));
        let quota = Quota::per_second(1);
        assert_eq!((quota.is_off(), quota.denies_all()), (false, false));
        assert_eq!(quota.try_burst(0), Err(QuotaError::NoBurst));
    }

    #[test]
    fn an_interval_rounds_up_and_a_window_does_not() {
        let rate = Quota::per_second(7).burst(14).rate().unwrap();
        assert_eq!(rate.period(), SECOND);
        assert_eq!(rate.interval(), Duration::from_nanos(142_857_143));
        assert_eq!(rate.window_nanos(), 2_000_000_000);
        let rate = Quota::per_second(3).burst(1).rate().unwrap();
        assert_eq!(rate.window_nanos(), 333_333_333);
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        let error = Quota::try_new(1, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("period is above 0"));
        let shown = format!("{:?}", Quota::per_minute(5).burst(2));
        assert_eq!(shown, "Quota(5/min burst 2)");
    }

    #[test]
    #[should_panic(expected = "one request a nanosecond")]
    fn too_fast_panics_in_the_const_constructor() {
        let _ = Quota::per_second(u32::MAX);
    }
}
