//! Quotas derived from other quotas.

use super::{Quota, QuotaKind, Rate};

impl Quota {
    /// The same numbers, counted in a sliding window or in a bucket. Drops the burst if the numbers
    /// are out of bounds with it. `None` if they are still out of bounds.
    pub(crate) fn counted_in(self, sliding: bool) -> Option<Self> {
        let QuotaKind::Rate(rate) = self.0 else {
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

    /// The share of one of several replicas: the rate and the burst divided by `replicas`, with a
    /// burst of at least one.
    pub(crate) fn replica_share(self, replicas: u32) -> Self {
        let replicas = replicas.max(1);
        let QuotaKind::Rate(rate) = self.0 else {
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
        // The share of a quota near the maximum period is too slow to represent.
        .unwrap_or(Self::deny_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(text: &str) -> Quota {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_is_dropped_when_the_other_algorithm_cannot_count_it() {
        for (text, sliding, counted) in [
            ("10/s burst 5", true, Some("10/s burst 5 sliding")),
            ("10/s burst 5 sliding", false, Some("10/s burst 5")),
            ("1/day burst 4294967294 sliding", false, Some("1/day")),
            ("4294967295/h burst 1", true, Some("4294967295/h sliding")),
            ("off", true, Some("off")),
            ("deny all", true, Some("deny all")),
        ] {
            let counted = counted.map(quota);
            assert_eq!(quota(text).counted_in(sliding), counted, "{text}");
        }
    }

    #[test]
    fn a_share_divides_the_rate_and_the_burst_by_the_replicas() {
        for (text, replicas, share) in [
            ("10/s", 0, "10/s burst 10"),
            ("10/s", 1, "10/s burst 10"),
            ("10/s burst 7", 3, "10 per 3s burst 2"),
            ("10/s burst 2", 3, "10 per 3s burst 1"),
            ("10/s burst 5 sliding", 3, "5/s sliding"),
            ("2/s sliding", 3, "1/s sliding"),
            ("off", 3, "off"),
            ("deny all", 3, "deny all"),
            // The share would take 200 years to fill.
            ("1 per 36500d", 2, "deny all"),
        ] {
            assert_eq!(quota(text).replica_share(replicas), quota(share), "{text}");
        }
    }
}
