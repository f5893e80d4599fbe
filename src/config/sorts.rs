//! Which sorts of limits a group has, to find the strictest of several groups.

use super::model::Group;
use super::policies::Policies;

/// Which sorts of limits reject requests.
#[derive(Clone, Copy, Default)]
pub(super) struct SortsOfLimits {
    by_rate: bool,
    by_concurrency: bool,
}

impl SortsOfLimits {
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            by_rate: self.by_rate || other.by_rate,
            by_concurrency: self.by_concurrency || other.by_concurrency,
        }
    }

    pub(super) fn count(self) -> usize {
        usize::from(self.by_rate) + usize::from(self.by_concurrency)
    }
}

impl Group {
    pub(super) fn sorts_of_limits(&self, policies: &Policies) -> SortsOfLimits {
        if self.dry_run || self.enforce == Some(0) {
            return SortsOfLimits::default();
        }
        let guards = self
            .bad_credentials_per_ip
            .is_some_and(|quota| !quota.is_off());
        let by_rate = guards || policies.limit();
        let per_key = self.concurrency_per_key();
        let by_concurrency = self.concurrency > 0 || per_key.iter().any(|limit| *limit > 0);
        SortsOfLimits {
            by_rate,
            by_concurrency,
        }
    }
}
