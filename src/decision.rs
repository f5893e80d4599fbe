//! The answer of a limiter, with its numbers.

use std::cmp::Reverse;
use std::time::Duration;

use smallvec::SmallVec;

use crate::rule::Rule;

/// Quotas that a decision holds without an allocation.
const INLINE: usize = 2;

/// What a limiter decided about one request, and what the caller has left.
///
/// The numbers of the decision itself are those of the quota that binds: the one that makes the
/// caller wait longest when the request is rejected, and the one with the least left when it is
/// admitted. Of equals it is the one that resets last.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    admitted: bool,
    usages: SmallVec<[Usage; INLINE]>,
}

/// How far one quota is used up, as seen by a [`Decision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    limit: u32,
    remaining: u32,
    /// In nanoseconds, as is the wait.
    reset: u64,
    /// How long until the request fits: [`FITS`], [`NEVER`], or in between.
    wait: u64,
    /// As [`Rule::window_seconds`] of the rule that it was decided by; 0 if the store did not say.
    window: u32,
    /// The place of the quota among those of the decision's charges.
    at: u16,
    /// Whether the key's bucket is still by another rule than this decision.
    is_unsettled: bool,
}

const FITS: u64 = 0;
const NEVER: u64 = u64::MAX;

impl Decision {
    /// Admitted by a limiter that limits nothing.
    pub fn unlimited() -> Self {
        Self {
            admitted: true,
            usages: SmallVec::new(),
        }
    }

    /// Refused because the store that counts cannot be reached.
    pub fn unavailable() -> Self {
        Self {
            admitted: false,
            usages: SmallVec::new(),
        }
    }

    /// The decision that follows from the usage of every quota: admitted when the request fits all. `None` is the
    /// usage of a quota that is off.
    pub fn from_usages(usages: impl IntoIterator<Item = impl Into<Option<Usage>>>) -> Self {
        let usages = usages.into_iter().enumerate();
        let usages: SmallVec<[Usage; INLINE]> = usages
            .filter_map(|(at, usage)| {
                let at = at as u16;
                Some(Usage {
                    at,
                    ..usage.into()?
                })
            })
            .collect();
        Self {
            admitted: usages.iter().all(Usage::fits),
            usages,
        }
    }

    /// The same, for a single quota.
    #[inline]
    pub(crate) fn from_usage(usage: Usage) -> Self {
        let mut usages = SmallVec::new();
        usages.push(usage);
        Self {
            admitted: usage.fits(),
            usages,
        }
    }

    /// The same with usages of other places.
    pub(crate) fn placed(mut self, places: &[u16]) -> Self {
        for usage in &mut self.usages {
            usage.at = places
                .get(usize::from(usage.at))
                .copied()
                .unwrap_or(usage.at);
        }
        self
    }

    /// The same with some of the usages.
    pub(crate) fn filtered(&self, is_kept: impl Fn(&Usage) -> bool) -> Self {
        let usages = self.usages.iter().filter(|usage| is_kept(usage));
        Self {
            admitted: self.admitted,
            usages: usages.copied().collect(),
        }
    }

    /// Whether the request may come in.
    #[inline]
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// How many requests a full bucket of the binding quota holds; `None` when nothing limits.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.binding().map(Usage::limit)
    }

    /// How many more requests the binding quota would admit now; `None` when nothing limits.
    #[must_use]
    pub fn remaining(&self) -> Option<u32> {
        self.binding().map(Usage::remaining)
    }

    /// The time until the binding quota is as good as unused; `None` when nothing limits.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.binding().map(Usage::reset)
    }

    /// How long a caller that was refused has to wait until the same request fits: the longest
    /// wait over every quota that refused it.
    ///
    /// `None` for an admitted request, and for one that can never fit because it costs more than
    /// a full bucket holds.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.binding().and_then(Usage::retry_after)
    }

    /// Whether the request was refused because it can never fit.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.usages.iter().any(|usage| usage.wait == NEVER)
    }

    /// Whether the request was refused because the store that counts cannot be reached.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        !self.admitted && self.usages.is_empty()
    }

    /// The usage of every quota that limits, in the order in which the limiter was given them.
    #[must_use]
    pub fn usages(&self) -> &[Usage] {
        &self.usages
    }

    /// The decision as it stands when a time has passed. (More may be left by then, which is known when it is asked
    /// for again.)
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

    /// The decision with the limits and windows of these rules, one for each quota of the charges.
    pub(crate) fn reported_under(mut self, rules: &[Rule]) -> Self {
        for usage in &mut self.usages {
            if let Some(rule) = rules.get(usage.at()) {
                let limit = rule.limit();
                *usage = Usage {
                    limit,
                    ..usage.under(rule)
                };
            }
        }
        self
    }

    /// Whether it rejects, and a key's bucket is still by another rule than it was made by.
    #[inline]
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.admitted && self.usages.iter().any(|usage| usage.is_unsettled)
    }

    /// The usage with the least left, which the response of an admitted request reports.
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
            // `SmallVec::clone` would push them one by one.
            usages: SmallVec::from_slice(&self.usages),
        }
    }
}

impl Usage {
    /// A quota that the request fits; `remaining` and `reset` count the request in.
    #[inline]
    #[must_use]
    pub fn admitted(limit: u32, remaining: u32, reset: Duration) -> Self {
        Self {
            limit,
            remaining,
            reset: nanos(reset),
            wait: FITS,
            window: 0,
            at: 0,
            is_unsettled: false,
        }
    }

    /// A quota that the request does not fit until `wait` has passed, or never.
    #[must_use]
    pub fn rejected(limit: u32, remaining: u32, reset: Duration, wait: Option<Duration>) -> Self {
        Self {
            limit,
            remaining,
            reset: nanos(reset),
            wait: wait.map_or(NEVER, |wait| nanos(wait).clamp(FITS + 1, NEVER - 1)),
            window: 0,
            at: 0,
            is_unsettled: false,
        }
    }

    /// Names the rule that it was decided by, so that responses report its window.
    #[inline]
    #[must_use]
    pub fn under(self, rule: &Rule) -> Self {
        Self {
            window: rule.window_seconds(),
            ..self
        }
    }

    /// Of a key whose bucket is still by another rule, which is not this decision's to change.
    pub(crate) fn unsettled(self) -> Self {
        Self {
            is_unsettled: true,
            ..self
        }
    }

    /// The place of its quota among those of the decision's charges. Quotas that are off have no usage.
    #[inline]
    #[must_use]
    pub fn at(&self) -> usize {
        self.at.into()
    }

    /// As [`Rule::window_seconds`] of the rule; `None` if the store did not say.
    pub(crate) fn window(&self) -> Option<u32> {
        (self.window > 0).then_some(self.window)
    }

    /// How many requests a full bucket holds.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many more requests of cost 1 would be admitted now.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The time until the bucket is full.
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

    /// How long until the request fits; `None` when it does now or never will.
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
    fn the_binding_quota_speaks() {
        let roomy = Usage::admitted(100, 99, SECOND);
        let tight = Usage::admitted(10, 1, 9 * SECOND);
        let decision = Decision::from_usages([roomy, tight]);
        assert!(decision.is_admitted());
        assert_eq!(decision.remaining(), Some(1));
        assert_eq!(decision.reset(), Some(9 * SECOND));
        assert_eq!(decision.retry_after(), None);
    }

    #[test]
    fn the_later_reset_speaks_of_quotas_with_equally_much_left() {
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
    fn the_longest_wait_speaks_for_a_refusal() {
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
    fn never_is_longer_than_any_wait() {
        let decision = Decision::from_usages([
            Usage::rejected(10, 3, SECOND, None),
            Usage::rejected(20, 0, SECOND, Some(Duration::MAX)),
        ]);
        assert!(decision.is_hopeless());
        assert_eq!(decision.retry_after(), None);
    }
}
