//! Limiters of rates that were changed or switched off, for when they are what is wanted again.

use super::admission::Groups;
use super::model::OnFailure;
use crate::limiter::RateLimiter;
use crate::policy::Policy;

/// How many are kept, each with what its keys have used.
const MOST: usize = 64;

/// Limiters that can be gone on with, the one that was used last at the end.
///
/// A request that was admitted before a change may hold a limiter for long, and with it the limiter's name in a
/// store that replicas share. A second one would have another name there and count apart from theirs.
#[derive(Clone, Default)]
pub(super) struct Kept(Vec<Rate>);

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
            let limiter = stack.rate.limiter();
            if !limiter.is_off() {
                let on_failure = stack.on_failure;
                kept.0.push(Rate {
                    limiter,
                    on_failure,
                });
            }
        }
        kept
    }

    /// Takes out the limiter that has these names and counts as these do.
    pub(super) fn take(
        &mut self,
        policies: &[Policy],
        on_failure: OnFailure,
    ) -> Option<RateLimiter> {
        let found = self.0.iter().position(|rate| {
            rate.on_failure == on_failure && rate.limiter.takes_policies(policies)
        })?;
        Some(self.0.remove(found).limiter)
    }

    /// Lets go of those whose names others have now, and of the oldest that are too many. Of the rest
    /// nobody is told while they limit nobody.
    pub(super) fn settle(&mut self, running: &Groups) {
        let running: Vec<_> = running.stacks().map(|stack| stack.rate.limiter()).collect();
        let is_taken = |name: &str| {
            let mut names = running.iter().flat_map(RateLimiter::all_names);
            names.any(|taken| taken == name)
        };
        self.0
            .retain(|rate| !rate.limiter.all_names().any(is_taken));
        self.0.drain(..self.0.len().saturating_sub(MOST));
        for limiter in &running {
            limiter.rest(false);
        }
        for rate in &self.0 {
            rate.limiter.rest(true);
        }
    }
}
