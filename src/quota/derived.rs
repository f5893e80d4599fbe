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

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(text: &str) -> Quota {
        text.parse().unwrap()
    }

    #[test]
    fn a_quota_is_counted_in_a_window_or_a_bucket_with_its_burst_if_that_fits() {
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
    fn a_share_is_the_rate_and_the_burst_over_the_replicas() {
        for (text, replicas, share) in [
            ("10/s", 0, "10/s burst 10"),
            ("10/s", 1, "10/s burst 10"),
            ("10/s burst 7", 3, "10 per 3s burst 2"),
            ("10/s burst 2", 3, "10 per 3s burst 1"),
            ("10/s burst 5 sliding", 3, "5/s sliding"),
            ("2/s sliding", 3, "1/s sliding"),
            ("off", 3, "off"),
            ("deny all", 3, "deny all"),
            // Its share would take 200 years to fill.
            ("1 per 36500d", 2, "deny all"),
        ] {
            assert_eq!(quota(text).share(replicas), quota(share), "{text}");
        }
    }
}
