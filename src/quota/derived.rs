//! Quotas that follow from others.

use super::{Kind, Quota, Rate};

impl Quota {
    /// The same numbers, counted in a sliding window or in a bucket. Where they are out of its bounds
    /// with the burst, without it; `None` where they are out of them all the same.
    pub(crate) fn counted_in(self, sliding: bool) -> Option<Self> {
        let Kind::Rate(rate) = self.0 else {
            return Some(self);
        };
        let with_burst = Self::checked(Rate { sliding, ..rate });
        let without = || {
            Self::checked(Rate {
                sliding,
                burst: None,
                ..rate
            })
        };
        with_burst.or_else(|_| without()).ok()
    }

    /// The part of it that one of several replicas grants: the rate and the burst over their
    /// number, and at least one at a time.
    #[cfg(feature = "redis")]
    pub(crate) fn share(self, replicas: u32) -> Self {
        let replicas = replicas.max(1);
        let Kind::Rate(rate) = self.0 else {
            return self;
        };
        let limit = (rate.limit() / replicas).max(1);
        Self::checked(if rate.sliding {
            Rate {
                count: limit,
                burst: None,
                ..rate
            }
        } else {
            Rate {
                period: rate.period.saturating_mul(replicas),
                burst: Some(limit),
                ..rate
            }
        })
        // Of a quota near the longest there is, the share would be too slow to count.
        .unwrap_or(Self::deny_all())
    }
}
