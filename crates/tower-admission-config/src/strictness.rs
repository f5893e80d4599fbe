//! Which sorts of limits a group has, to find the strictest of several groups.

use super::model::Group;
use super::policies::Policies;

/// Which sorts of limits reject requests.
#[derive(Clone, Copy, Default)]
pub(super) struct Strictness {
    by_rate: bool,
    by_concurrency: bool,
    /// Which of them reject requests of all keys, and not of a share alone.
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

    /// How strict these limits are: how many sorts are enforced for all keys decides first.
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
