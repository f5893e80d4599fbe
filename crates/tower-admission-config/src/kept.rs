//! Limiters of rates that were changed or switched off, for when they are what is wanted again.

use tower_admission::provider::RateLimiterInternals;
use tower_admission::{Policy, RateLimiter};

use super::admission::Groups;
use super::model::OnFailure;

/// How many are kept, each with what its keys have used.
const MOST: usize = 64;

/// Limiters that can be gone on with, the one that was used last at the end.
///
/// A request that was admitted before a change may hold a limiter for long, and with it the limiter's name in a
/// store that replicas share. A second one would have another name there and count apart from theirs.
#[derive(Clone, Default)]
pub(super) struct Kept {
    rates: Vec<Rate>,
    /// What others have taken the place of, once the reload is known to be right.
    replaced: Vec<RateLimiter>,
}

#[derive(Clone)]
struct Rate {
    limiter: RateLimiter,
    on_failure: OnFailure,
}

impl Kept {
    /// With what is running.
    pub(super) fn with(&self, running: &Groups) -> Self {
        let mut kept = self.clone();
        for stack in running.stacks() {
            let limiter = stack.limiter.clone();
            if !limiter.is_off() {
                let on_failure = stack.on_failure;
                kept.rates.push(Rate {
                    limiter,
                    on_failure,
                });
            }
        }
        kept
    }

    /// Takes out the limiter that has these names and counts as these do. One that fails in another way goes.
    pub(super) fn take(
        &mut self,
        policies: &[Policy],
        on_failure: OnFailure,
    ) -> Option<RateLimiter> {
        let takes = |rate: &Rate| rate.limiter.accepts_policies(policies);
        let found = self.rates.iter().position(takes)?;
        let rate = self.rates.remove(found);
        if rate.on_failure == on_failure {
            return Some(rate.limiter);
        }
        rate.limiter.retire();
        self.replaced.push(rate.limiter);
        None
    }

    /// Lets go of those whose names others have now, and of the oldest that are too many. Of the rest
    /// nobody is told while they limit nobody.
    pub(super) fn settle(&mut self, running: &Groups) {
        let running: Vec<_> = running.stacks().map(|stack| &stack.limiter).collect();
        let is_taken = |name: &str| {
            let mut names = running.iter().flat_map(|limiter| limiter.quota_names());
            names.any(|taken| taken == name)
        };
        let rates = std::mem::take(&mut self.rates).into_iter();
        let (gone, mut kept): (Vec<_>, Vec<_>) =
            rates.partition(|rate| rate.limiter.quota_names().any(is_taken));
        let too_many = kept.drain(..kept.len().saturating_sub(MOST));
        for rate in gone.into_iter().chain(too_many) {
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
        self.rates = kept;
    }
}
