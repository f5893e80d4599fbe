//! The compiled numbers of one quota.

use std::time::Duration;

use crate::quota::Quota;

/// The number of sub-windows per period of a sliding quota; see
/// [`store::memory`](crate::store::memory#sliding-windows).
/// [`store::memory`](crate::store::memory#sliding-windows).
const SUB_WINDOWS: u128 = 15;

/// The compiled numbers of one [`Quota`], which a store uses to decide.
///
/// A limiter resolves the rule of each quota before it asks its store: the key's
/// [override](crate::Limits), else the default of the request's [tier](crate::Policy::tier).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    quota: Quota,
    kind: RuleKind,
    limit: u32,
    /// In nanoseconds.
    length: u64,
    window: u32,
}

/// The algorithm of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// It admits every request.
    Unlimited,
    /// It rejects every request.
    DenyAll,
    /// It counts in a bucket.
    Bucket,
    /// It counts in a sliding window.
    Window,
}

/// The value of [`Rule::window_seconds`] for a window shorter than one second.
pub(crate) const SUB_SECOND: u32 = u32::MAX;

impl Rule {
    /// Compiles a quota. A quota that is off limits nothing.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let Some(rate) = quota.rate() else {
            let denies = quota.is_deny_all();
            return Self {
                quota,
                kind: if denies {
                    RuleKind::DenyAll
                } else {
                    RuleKind::Unlimited
                },
                limit: 0,
                length: 0,
                window: SUB_SECOND,
            };
        };
        let (kind, length, window) = if rate.is_sliding() {
            let micros = rate.period().as_nanos().div_ceil(SUB_WINDOWS * 1_000);
            // Round up: a client that follows the reported window stays within the quota.
            let whole = u128::from(rate.period().as_secs() > 0);
            let seconds = rate.period().as_nanos().div_ceil(NANOS_PER_SECOND) * whole;
            (RuleKind::Window, micros * 1_000, seconds)
        } else {
            let window = rate.window_nanos();
            let whole = u128::from(window >= NANOS_PER_SECOND);
            let seconds = (window + NANOS_PER_SECOND / 2) / NANOS_PER_SECOND * whole;
            (RuleKind::Bucket, rate.interval().as_nanos(), seconds)
        };
        Self {
            quota,
            kind,
            limit: rate.limit(),
            // At most 100 years, so 64 bits are enough.
            length: length as u64,
            window: u32::try_from(window)
                .ok()
                .filter(|window| *window > 0)
                .unwrap_or(SUB_SECOND),
        }
    }

    /// The quota that the rule was compiled from.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// The most requests admitted at once. 0 if the quota is off or denies all requests.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The time between two requests at the steady rate of a bucket, or the length of a sub-window.
    /// Zero if the quota is off or denies all requests.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::from_nanos(self.length)
    }

    /// How the rule counts.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> RuleKind {
        self.kind
    }

    /// [`length`](Self::length) in nanoseconds.
    #[inline]
    pub(crate) fn length_nanos(&self) -> u64 {
        self.length
    }

    /// The time in which an empty bucket fills, in nanoseconds. Meaningless for a sliding window,
    /// where it may saturate.
    #[inline]
    pub(crate) fn refill_nanos(&self) -> u64 {
        self.length.saturating_mul(self.limit.into())
    }

    /// The time in which an empty bucket fills, to the nearest second; for a sliding window the
    /// period, rounded up. [`SUB_SECOND`] if shorter than one second.
    #[inline]
    pub(crate) fn window_seconds(&self) -> u32 {
        self.window
    }
}

impl From<Quota> for Rule {
    fn from(quota: Quota) -> Self {
        Self::new(quota)
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_the_numbers_of_its_quota() {
        let numbers = |text: &str| {
            let rule = Rule::new(text.parse().unwrap());
            (rule.kind, rule.limit, rule.length, rule.window)
        };
        assert_eq!(
            numbers("7/min burst 3"),
            (RuleKind::Bucket, 3, 8_571_428_572, 26)
        );
        assert_eq!(
            numbers("10/s burst 4"),
            (RuleKind::Bucket, 4, 100_000_000, SUB_SECOND)
        );
        assert_eq!(
            numbers("60/min burst 10 sliding"),
            (RuleKind::Window, 70, 4_000_000_000, 60)
        );
        assert_eq!(
            numbers("5 per 1ms sliding"),
            (RuleKind::Window, 5, 67_000, SUB_SECOND)
        );
        assert_eq!(numbers("off"), (RuleKind::Unlimited, 0, 0, SUB_SECOND));
        assert_eq!(numbers("deny all"), (RuleKind::DenyAll, 0, 0, SUB_SECOND));
    }

    #[test]
    fn a_large_window_does_not_overflow() {
        let quota: Quota = "4444015 per 21081600s sliding".parse().unwrap();
        let rule = Rule::new(quota);
        assert_eq!(rule.limit(), 4_444_015);
        assert_eq!(rule.refill_nanos(), u64::MAX);
    }
}
