//! The result of a limiter's check, with its numbers.

use std::cmp::Reverse;
use std::time::Duration;

use smallvec::SmallVec;

use crate::rule::Rule;

/// Quotas that a decision holds without a heap allocation.
const INLINE: usize = 2;

/// The result of a rate limiter's check, with what the caller has left.
///
/// The methods of a decision report the *binding* quota. For a rejected request that is the quota
/// with the longest wait. For an admitted request it is the quota with the least remaining; of
/// equals, the one that resets last.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    admitted: bool,
    usages: SmallVec<[Usage; INLINE]>,
}

/// How far one quota is used up, as part of a [`Decision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    limit: u32,
    remaining: u32,
    /// In nanoseconds, like `wait`.
    reset: u64,
    /// The time until the request fits: [`FITS`], [`NEVER`], or in between.
    wait: u64,
    /// [`Rule::window_seconds`] of the rule that decided; 0 if the store did not report it.
    window: u32,
    /// The index of the quota among all quotas of the decision's charges.
    index: u16,
    /// Whether the key's bucket was last charged by another rule, so that it must be converted
    /// first.
    needs_conversion: bool,
}

const FITS: u64 = 0;
const NEVER: u64 = u64::MAX;

impl Decision {
    /// An admission by a limiter without quotas.
    pub fn unlimited() -> Self {
        Self {
            admitted: true,
            usages: SmallVec::new(),
        }
    }

    /// A rejection because the store is unavailable.
    pub fn unavailable() -> Self {
        Self {
            admitted: false,
            usages: SmallVec::new(),
        }
    }

    /// Combines the usage of every quota. The request is admitted when it fits all of them. Use
    /// `None` for a quota that is off.
    pub fn from_usages(usages: impl IntoIterator<Item = impl Into<Option<Usage>>>) -> Self {
        let usages = usages.into_iter().enumerate();
        let usages: SmallVec<[Usage; INLINE]> = usages
            .filter_map(|(at, usage)| {
                let index = at as u16;
                Some(Usage {
                    index,
                    ..usage.into()?
                })
            })
            .collect();
        Self {
            admitted: usages.iter().all(Usage::fits),
            usages,
        }
    }

    /// As [`from_usages`](Self::from_usages), for a single quota.
    #[inline]
    pub(crate) fn from_usage(usage: Usage) -> Self {
        let mut usages = SmallVec::new();
        usages.push(usage);
        Self {
            admitted: usage.fits(),
            usages,
        }
    }

    /// Maps the index of each usage through `indices`.
    pub(crate) fn with_indices(mut self, indices: &[u16]) -> Self {
        for usage in &mut self.usages {
            usage.index = indices
                .get(usize::from(usage.index))
                .copied()
                .unwrap_or(usage.index);
        }
        self
    }

    /// Keeps some of the usages.
    pub(crate) fn filtered(&self, is_kept: impl Fn(&Usage) -> bool) -> Self {
        let usages = self.usages.iter().filter(|usage| is_kept(usage));
        Self {
            admitted: self.admitted,
            usages: usages.copied().collect(),
        }
    }

    /// Whether the request is admitted.
    #[inline]
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// The most requests that the binding quota admits at once. `None` if no quota limits.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.binding().map(Usage::limit)
    }

    /// The number of further requests that the binding quota would admit now. `None` if no quota
    /// limits.
    #[must_use]
    pub fn remaining(&self) -> Option<u32> {
        self.binding().map(Usage::remaining)
    }

    /// The time until the binding quota has fully recovered. `None` if no quota limits.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.binding().map(Usage::reset)
    }

    /// The time after which a rejected request fits: the longest wait over all quotas that rejected
    /// it.
    ///
    /// `None` for an admitted request, and for a request that can never fit because it costs more
    /// than a full bucket holds.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.binding().and_then(Usage::retry_after)
    }

    /// Whether the request was rejected because it can never fit.
    #[must_use]
    pub fn can_never_fit(&self) -> bool {
        self.usages.iter().any(|usage| usage.wait == NEVER)
    }

    /// Whether the request was rejected because the store is unavailable.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        !self.admitted && self.usages.is_empty()
    }

    /// The usage of every quota that limits, in the order of the policy.
    #[must_use]
    pub fn usages(&self) -> &[Usage] {
        &self.usages
    }

    /// The decision after `passed` time. (More may remain by then; only another check can tell.)
    pub(crate) fn later(&self, passed: Duration) -> Self {
        let passed = nanos(passed);
        let usages = self.usages.iter().map(|usage| Usage {
            reset: usage.reset.saturating_sub(passed),
            wait: match usage.wait {
                FITS => FITS,
                NEVER => NEVER,
                wait => wait.saturating_sub(passed).max(FITS + 1),
            },
            ..*usage
        });
        Self {
            admitted: self.admitted,
            usages: usages.collect(),
        }
    }

    /// Reports the limits and windows of these rules, one for each quota of the charges.
    pub(crate) fn with_rules(mut self, rules: &[Rule]) -> Self {
        for usage in &mut self.usages {
            if let Some(rule) = rules.get(usage.index()) {
                let limit = rule.limit();
                *usage = Usage {
                    limit,
                    ..usage.with_rule(rule)
                };
            }
        }
        self
    }

    /// Whether the decision rejects although the key's bucket must be converted first.
    #[inline]
    pub(crate) fn needs_conversion(&self) -> bool {
        !self.admitted && self.usages.iter().any(|usage| usage.needs_conversion)
    }

    /// The usage with the least remaining, which the response of an admitted request reports.
    pub(crate) fn least(&self) -> Option<&Usage> {
        let usages = self.usages.iter();
        usages.min_by_key(|usage| (usage.remaining, Reverse(usage.reset)))
    }

    fn binding(&self) -> Option<&Usage> {
        if self.is_admitted() {
            self.least()
        } else {
            self.usages
                .iter()
                .max_by_key(|usage| (usage.wait, usage.reset))
        }
    }
}

impl Clone for Decision {
    #[inline]
    fn clone(&self) -> Self {
        Self {
            admitted: self.admitted,
            // `SmallVec::clone` would push the elements one by one.
            usages: SmallVec::from_slice(&self.usages),
        }
    }
}

impl Usage {
    /// The usage of a quota that the request fits. `remaining` and `reset` include the request.
    #[inline]
    #[must_use]
    pub fn admitted(limit: u32, remaining: u32, reset: Duration) -> Self {
        Self {
            limit,
            remaining,
            reset: nanos(reset),
            wait: FITS,
            window: 0,
            index: 0,
            needs_conversion: false,
        }
    }

    /// The usage of a quota that rejects the request until `wait` has passed, or forever if `None`.
    #[must_use]
    pub fn rejected(limit: u32, remaining: u32, reset: Duration, wait: Option<Duration>) -> Self {
        Self {
            limit,
            remaining,
            reset: nanos(reset),
            wait: wait.map_or(NEVER, |wait| nanos(wait).clamp(FITS + 1, NEVER - 1)),
            window: 0,
            index: 0,
            needs_conversion: false,
        }
    }

    /// Adds the window of the rule that decided, so that responses report it.
    #[inline]
    #[must_use]
    pub fn with_rule(self, rule: &Rule) -> Self {
        Self {
            window: rule.window_seconds(),
            ..self
        }
    }

    /// Marks the usage of a bucket that must be converted to this rule first.
    pub(crate) fn requiring_conversion(self) -> Self {
        Self {
            needs_conversion: true,
            ..self
        }
    }

    /// The index of the quota among all quotas of the decision's charges. Quotas that are off have
    /// no usage.
    #[inline]
    #[must_use]
    pub fn index(&self) -> usize {
        self.index.into()
    }

    /// [`Rule::window_seconds`] of the rule; `None` if the store did not report it.
    pub(crate) fn window(&self) -> Option<u32> {
        (self.window > 0).then_some(self.window)
    }

    /// The most requests that the quota admits at once.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The number of further requests of cost 1 that the quota would admit now.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The time until the quota has fully recovered.
    #[must_use]
    pub fn reset(&self) -> Duration {
        Duration::from_nanos(self.reset)
    }

    /// Whether the request fits this quota.
    #[inline]
    #[must_use]
    pub fn fits(&self) -> bool {
        self.wait == FITS
    }

    /// The time until the request fits. `None` if it fits now, or never.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.wait {
            FITS | NEVER => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

/// Saturates at 584 years.
#[inline]
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_quota_with_the_least_remaining_binds() {
        let roomy = Usage::admitted(100, 99, SECOND);
        let tight = Usage::admitted(10, 1, 9 * SECOND);
        let decision = Decision::from_usages([roomy, tight]);
        assert!(decision.is_admitted());
        assert_eq!(decision.remaining(), Some(1));
        assert_eq!(decision.reset(), Some(9 * SECOND));
        assert_eq!(decision.retry_after(), None);
    }

    #[test]
    fn the_later_reset_binds_among_equals() {
        let (soon, late) = (
            Usage::admitted(10, 1, SECOND),
            Usage::admitted(20, 1, 9 * SECOND),
        );
        for usages in [[soon, late], [late, soon]] {
            let decision = Decision::from_usages(usages);
            assert_eq!(decision.limit(), Some(20));
            assert_eq!(decision.reset(), Some(9 * SECOND));
        }
    }

    #[test]
    fn the_longest_wait_binds_in_a_rejection() {
        let decision = Decision::from_usages([
            Usage::rejected(10, 0, SECOND, Some(SECOND)),
            Usage::admitted(100, 0, SECOND),
            Usage::rejected(20, 0, SECOND, Some(5 * SECOND)),
        ]);
        assert!(!decision.is_admitted());
        assert_eq!(decision.retry_after(), Some(5 * SECOND));
        assert_eq!(decision.limit(), Some(20));
    }

    #[test]
    fn never_exceeds_any_wait() {
        let decision = Decision::from_usages([
            Usage::rejected(10, 3, SECOND, None),
            Usage::rejected(20, 0, SECOND, Some(Duration::MAX)),
        ]);
        assert!(decision.can_never_fit());
        assert_eq!(decision.retry_after(), None);
    }
}
