//! Rate limiters that a reload replaced or switched off, kept so that a later reload can resume them.

use tower_admission::provider::RateLimiterInternals;
use tower_admission::{Policy, RateLimiter};

use super::admission::Groups;
use super::model::OnFailure;

/// How many limiters are kept, each with the usage of its keys.
const MAX_RETIRED: usize = 64;

/// Limiters that can be resumed, the most recently used one at the end.
///
/// A request in flight can hold a limiter for long, and with it the limiter's name in a store that replicas share. A
/// second limiter would get another name there, and would count apart from the other replicas.
#[derive(Clone, Default)]
pub(super) struct RetiredLimiters {
    limiters: Vec<RetiredLimiter>,
    /// Limiters that others replace as soon as the reload has succeeded.
    replaced: Vec<RateLimiter>,
}

#[derive(Clone)]
struct RetiredLimiter {
    limiter: RateLimiter,
    on_failure: OnFailure,
}

impl RetiredLimiters {
    /// Adds the running limiters.
    pub(super) fn with(&self, running: &Groups) -> Self {
        let mut retired = self.clone();
        for group in running.running() {
            let limiter = group.limiter.clone();
            if !limiter.is_off() {
                let on_failure = group.on_failure;
                retired.limiters.push(RetiredLimiter {
                    limiter,
                    on_failure,
                });
            }
        }
        retired
    }

    /// Removes and returns the limiter with the same quota names and algorithms. A limiter with another failure mode is
    /// retired and not returned.
    pub(super) fn take(
        &mut self,
        policies: &[Policy],
        on_failure: OnFailure,
    ) -> Option<RateLimiter> {
        let takes = |rate: &RetiredLimiter| rate.limiter.accepts_policies(policies);
        let found = self.limiters.iter().position(takes)?;
        let rate = self.limiters.remove(found);
        if rate.on_failure == on_failure {
            return Some(rate.limiter);
        }
        rate.limiter.retire();
        self.replaced.push(rate.limiter);
        None
    }

    /// Drops the limiters whose names running limiters have now, and the oldest ones above the bound. Suspends the rest, so
    /// that no tool lists them.
    pub(super) fn update(&mut self, running: &Groups) {
        let running: Vec<_> = running.running().map(|group| &group.limiter).collect();
        let is_taken = |name: &str| {
            let mut names = running.iter().flat_map(|limiter| limiter.quota_names());
            names.any(|taken| taken == name)
        };
        let rates = std::mem::take(&mut self.limiters).into_iter();
        let (replaced, mut kept): (Vec<_>, Vec<_>) =
            rates.partition(|rate| rate.limiter.quota_names().any(is_taken));
        let too_many = kept.drain(..kept.len().saturating_sub(MAX_RETIRED));
        for rate in replaced.into_iter().chain(too_many) {
            rate.limiter.retire();
            self.replaced.push(rate.limiter);
        }
        for limiter in &running {
            limiter.set_suspended(false);
        }
        let kept_too = kept.iter().map(|rate| &rate.limiter);
        for limiter in self.replaced.iter().chain(kept_too) {
            limiter.set_suspended(true);
        }
        self.replaced.clear();
        self.limiters = kept;
    }
}
