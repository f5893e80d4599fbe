//! The strictness of a group, to find the strictest of several groups.

use super::model::Group;
use super::policies::Policies;

/// The kinds of limits that reject requests.
#[derive(Clone, Copy, Default)]
pub(super) struct Strictness {
    by_rate: bool,
    by_concurrency: bool,
    /// The kinds that are enforced for all keys, not only for a share.
    rate_of_all: bool,
    concurrency_of_all: bool,
}

impl Strictness {
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            by_rate: self.by_rate || other.by_rate,
            by_concurrency: self.by_concurrency || other.by_concurrency,
            rate_of_all: self.rate_of_all || other.rate_of_all,
            concurrency_of_all: self.concurrency_of_all || other.concurrency_of_all,
        }
    }

    /// The rank of these limits: first the kinds that are enforced for all keys, then all kinds.
    pub(super) fn strictness(self) -> [usize; 2] {
        let count = |sorts: [bool; 2]| sorts.into_iter().map(usize::from).sum();
        [
            count([self.rate_of_all, self.concurrency_of_all]),
            count([self.by_rate, self.by_concurrency]),
        ]
    }
}

impl Group {
    pub(super) fn strictness(&self, policies: &Policies) -> Strictness {
        if self.dry_run || self.enforce == Some(0) {
            return Strictness::default();
        }
        let guards = self
            .bad_credentials_per_ip
            .is_some_and(|quota| !quota.is_off());
        let by_rate = guards || policies.limit();
        let per_key = self.concurrency_per_key();
        let by_concurrency = self.concurrency > 0 || per_key.iter().any(|limit| *limit > 0);
        let of_all = self.enforce.is_none_or(|percent| percent >= 100);
        Strictness {
            by_rate,
            by_concurrency,
            rate_of_all: by_rate && of_all,
            concurrency_of_all: by_concurrency && of_all,
        }
    }
}
