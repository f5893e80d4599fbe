//! Numbers that replace the defaults for one key or one tier.

mod error;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

pub use self::error::LimitError;
use crate::capacity::Capacity;
use crate::quota::Quota;
use crate::rule::Rule;

/// Numbers for some of the limits of a service, in text form: an override of
/// [`Limits`](crate::Limits), or a [tier](crate::Limits::tier).
///
/// The text is a list of parts, separated by commas. A part is a [`Quota`], a number followed by
/// `concurrent`, `unlimited` or `deny all`, with or without the name of a limit before it; or it
/// names a tier:
///
/// | text | meaning |
/// |---|---|
/// | `1000/min burst 50` | the quota of each policy that has a single one |
/// | `20 concurrent` | the maximum number of requests in flight, or of leases |
/// | `burst=20/s, daily=100000/day` | the quotas of these names |
/// | `1000/min, jobs=5 concurrent` | both; 5 for the limiter named `jobs` |
/// | `unlimited`, `jobs=unlimited` | no limit at all; no limit named `jobs` |
/// | `deny all` | rejects every request with 403 |
/// | `tier=pro` | the limits of this tier |
/// | `tier=pro, daily=100000/day` | the limits of this tier, except for one quota |
///
/// A limit that is only `unlimited` or `deny all` is also an entry of an allow or deny list, see
/// [`access`](crate::access).
///
/// A named part takes precedence over an unnamed one. Where a policy has several quotas, an unnamed
/// part applies to none of them, unless it is `unlimited` or `deny all`; name the quota instead, as
/// in `daily=100000/day`. A limit without a part keeps its default. An override cannot change the
/// algorithm: a [sliding](Quota::sliding) quota stays sliding and a bucket stays a bucket.
///
/// 0 is an error, because it is ambiguous here: write `unlimited` or `deny all`.
///
/// ```
/// use tower_admission::{Capacity, Limit, Quota};
///
/// let limit: Limit = "1000/min burst 50, jobs=5 concurrent".parse().unwrap();
/// assert_eq!(limit.quota("default"), Some(Quota::per_minute(1000).burst(50)));
/// assert_eq!(limit.concurrency("jobs"), Some(Capacity::AtMost(5)));
/// assert_eq!(limit.concurrency("streams"), None);
/// assert_eq!(limit.to_string(), "1000/min burst 50, jobs=5 concurrent");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limit {
    /// Most limits have one part, which is stored inline.
    parts: SmallVec<[LimitPart; 1]>,
    tier: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LimitPart {
    /// The name of the limit. Without a name the part applies to every limit of its sort.
    name: Option<Arc<str>>,
    value: LimitValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LimitValue {
    /// A rate. `unlimited` and `deny all` also apply to concurrency.
    Rate {
        quota: Quota,
        /// The rule of a bucket and that of a sliding window, compiled once.
        rules: [Option<Rule>; 2],
    },
    Concurrency(u32),
}

/// The maximum number of parts.
const MAX_PARTS: usize = 16;

/// The word after a number of requests in flight.
const CONCURRENT: &str = "concurrent";

const UNLIMITED: &str = "unlimited";

/// The word before the name of a tier. No limit can have this name.
const TIER: &str = "tier";

/// Describes the names that [`is_addressable`] accepts.
pub const NAME_RULES: &str = "a name is 1 to 64 bytes of printable ASCII without `,` and `=`, with no \
                               space at its ends, and not `tier`";

impl Limit {
    /// Makes a limit on the number of requests in flight, or of leases.
    ///
    /// # Errors
    ///
    /// Returns [`LimitError::Zero`] for 0.
    pub fn concurrent(limit: u32) -> Result<Self, LimitError> {
        Self::default().with(None, LimitValue::Concurrency(limit))
    }

    /// No limit at all.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::from(Quota::off())
    }

    /// Rejects every request with 403.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::from(Quota::deny_all())
    }

    /// Makes a limit from quotas by name.
    pub(crate) fn from_quotas<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Self, LimitError> {
        let mut quotas = quotas.into_iter();
        quotas.try_fold(Self::default(), |limit, (name, quota)| {
            limit.with(Some(name), LimitValue::of_quota(quota))
        })
    }

    fn with(mut self, name: Option<&str>, value: LimitValue) -> Result<Self, LimitError> {
        if value == LimitValue::Concurrency(0) {
            return Err(LimitError::Zero);
        }
        if let Some(name) = name
            && !is_name(name)
        {
            return Err(LimitError::Name);
        }
        let same = |part: &LimitPart| part.name.as_deref() == name && part.value.is_like(value);
        if self.parts.iter().any(same) {
            return Err(LimitError::Twice);
        }
        if self.parts.len() == MAX_PARTS {
            return Err(LimitError::TooMany);
        }
        self.parts.push(LimitPart {
            name: name.map(Into::into),
            value,
        });
        Ok(self)
    }

    fn with_tier(mut self, name: &str) -> Result<Self, LimitError> {
        if !is_addressable(name) {
            return Err(LimitError::Name);
        }
        if self.tier.replace(name.into()).is_some() {
            return Err(LimitError::Twice);
        }
        Ok(self)
    }

    /// The quota for a policy whose only quota has this name.
    #[must_use]
    pub fn quota(&self, name: &str) -> Option<Quota> {
        let value = self.rate(Some(name)).or_else(|| self.rate(None))?;
        value.quota()
    }

    /// Renames the parts for one limit.
    pub(crate) fn rename(&mut self, from: &str, to: &Arc<str>) {
        for part in &mut self.parts {
            if part.name.as_deref() == Some(from) {
                part.name = Some(to.clone());
            }
        }
    }

    /// The capacity for a limiter with this name.
    #[must_use]
    pub fn concurrency(&self, name: &str) -> Option<Capacity> {
        let values = |name| {
            let parts = || self.values(name);
            let counts = parts().find_map(|value| match value {
                LimitValue::Concurrency(limit) => Some(Capacity::AtMost(*limit as usize)),
                LimitValue::Rate { .. } => None,
            });
            counts.or_else(|| parts().find_map(LimitValue::blanket_capacity))
        };
        values(Some(name)).or_else(|| values(None))
    }

    /// The tier that the limit names.
    #[must_use]
    pub fn tier(&self) -> Option<&str> {
        self.tier.as_deref()
    }

    /// The names of the limits that it has parts for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| part.name.as_deref())
    }

    /// The rule for a quota. `is_single`: the policy has no other quota. `None`: the quota keeps
    /// its default.
    #[inline]
    pub(crate) fn rule(&self, name: &str, is_single: bool, sliding: bool) -> Option<&Rule> {
        let value = self.rate(Some(name)).or_else(|| {
            let value = self.rate(None)?;
            (is_single || value.blanket_capacity().is_some()).then_some(value)
        })?;
        match value {
            LimitValue::Rate { rules, .. } => rules[usize::from(sliding)].as_ref(),
            LimitValue::Concurrency(_) => None,
        }
    }

    fn rate(&self, name: Option<&str>) -> Option<&LimitValue> {
        self.values(name)
            .find(|value| matches!(value, LimitValue::Rate { .. }))
    }

    fn values(&self, name: Option<&str>) -> impl Iterator<Item = &LimitValue> {
        let parts = self.parts.iter();
        parts
            .filter(move |part| part.name.as_deref() == name)
            .map(|part| &part.value)
    }

    /// The capacity for all limits, if the limit is only `unlimited` or `deny all`.
    pub(crate) fn blanket_capacity(&self) -> Option<Capacity> {
        match (&*self.parts, &self.tier) {
            ([LimitPart { name: None, value }], None) => value.blanket_capacity(),
            _ => None,
        }
    }

    /// The quotas of all parts.
    pub(crate) fn quotas(&self) -> impl Iterator<Item = Quota> {
        self.parts.iter().filter_map(|part| part.value.quota())
    }
}

/// Whether a limit can have this name. Names are sent in headers.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// Whether an override can refer to this name, as in `name=10/s`. Required of tiers.
#[must_use]
pub fn is_addressable(name: &str) -> bool {
    is_name(name) && !name.contains([',', '=']) && name.trim() == name && name != TIER
}

impl LimitValue {
    fn of_quota(quota: Quota) -> Self {
        // Numbers that exceed the bounds of one algorithm fit the other.
        let rule = |sliding| quota.counted_in(sliding).map(Rule::new);
        Self::Rate {
            quota,
            rules: [rule(false), rule(true)],
        }
    }

    fn quota(&self) -> Option<Quota> {
        match self {
            Self::Rate { quota, .. } => Some(*quota),
            Self::Concurrency(_) => None,
        }
    }

    /// The capacity of `unlimited` and `deny all`, which apply to rates and concurrency.
    fn blanket_capacity(&self) -> Option<Capacity> {
        match self {
            Self::Rate { quota, .. } if quota.is_off() => Some(Capacity::Unlimited),
            Self::Rate { quota, .. } if quota.is_deny_all() => Some(Capacity::AtMost(0)),
            _ => None,
        }
    }

    fn is_like(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Rate { .. }, Self::Rate { .. }) | (Self::Concurrency(_), Self::Concurrency(_))
        )
    }
}

/// A limit for each policy that has a single quota. [`Quota::off`] becomes `unlimited`.
impl From<Quota> for Limit {
    fn from(quota: Quota) -> Self {
        Self {
            parts: smallvec![LimitPart {
                name: None,
                value: LimitValue::of_quota(quota),
            }],
            tier: None,
        }
    }
}

impl TryFrom<&str> for Limit {
    type Error = LimitError;

    fn try_from(text: &str) -> Result<Self, LimitError> {
        text.parse()
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let mut limit = Self::default();
        for part in text.split(',') {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (Some(name.trim()), value.trim()),
                None => (None, part.trim()),
            };
            limit = match name {
                Some(TIER) => limit.with_tier(value)?,
                name => limit.with(name, value.parse()?)?,
            };
        }
        Ok(limit)
    }
}

impl FromStr for LimitValue {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        if text == UNLIMITED {
            return Ok(Self::of_quota(Quota::off()));
        }
        let Some(number) = text.strip_suffix(CONCURRENT) else {
            let quota: Quota = text.parse().map_err(LimitError::Quota)?;
            if quota.is_off() {
                return Err(LimitError::Zero);
            }
            return Ok(Self::of_quota(quota));
        };
        let number = number.trim_end();
        // `u32::from_str` would also accept a sign.
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(LimitError::Concurrency);
        }
        let number = number.parse().map_err(|_| LimitError::Concurrency)?;
        Ok(Self::Concurrency(number))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        if let Some(tier) = &self.tier {
            write!(f, "{TIER}={tier}")?;
            comma = ", ";
        }
        for part in &self.parts {
            f.write_str(comma)?;
            comma = ", ";
            if let Some(name) = &part.name {
                write!(f, "{name}=")?;
            }
            match part.value {
                LimitValue::Rate { quota, .. } if quota.is_off() => f.write_str(UNLIMITED)?,
                LimitValue::Rate { quota, .. } => write!(f, "{quota}")?,
                LimitValue::Concurrency(limit) => write!(f, "{limit} {CONCURRENT}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::QuotaError;

    fn limit(text: &str) -> Limit {
        text.parse().unwrap()
    }

    #[test]
    fn the_text_of_a_limit_reads_back() {
        for (text, shown) in [
            ("1000/min burst 50", "1000/min burst 50"),
            (" 20 concurrent ", "20 concurrent"),
            ("20concurrent", "20 concurrent"),
            ("a = 1/s,b=2/s , 3/s", "a=1/s, b=2/s, 3/s"),
            ("10/s, 5 concurrent", "10/s, 5 concurrent"),
            (
                "jobs=10/s, jobs=5 concurrent",
                "jobs=10/s, jobs=5 concurrent",
            ),
            ("deny all", "deny all"),
            ("60/min burst 10 sliding", "60/min burst 10 sliding"),
            ("unlimited", "unlimited"),
            (
                "jobs=unlimited, 5 concurrent",
                "jobs=unlimited, 5 concurrent",
            ),
            ("tier=pro", "tier=pro"),
            ("daily = 5/day, tier = pro ", "tier=pro, daily=5/day"),
        ] {
            assert_eq!(limit(text).to_string(), shown);
            assert_eq!(limit(shown), limit(text));
        }
    }

    #[test]
    fn an_invalid_limit_is_an_error() {
        use LimitError::*;
        for (text, error) in [
            ("", Quota(QuotaError::Syntax)),
            ("10", Quota(QuotaError::Syntax)),
            ("10/s,", Quota(QuotaError::Syntax)),
            ("10/fortnight", Quota(QuotaError::Unit)),
            ("daily=-5/s", Quota(QuotaError::Count)),
            ("10/s burst 0", Quota(QuotaError::NoBurst)),
            ("0", Zero),
            ("off", Zero),
            ("0 concurrent", Zero),
            ("-1 concurrent", Concurrency),
            ("concurrent", Concurrency),
            ("4294967296 concurrent", Concurrency),
            ("=10/s", Name),
            ("ä=10/s", Name),
            ("10/s, 20/s", Twice),
            ("10/s, unlimited", Twice),
            ("tier=", Name),
            ("tier=a=b", Name),
            ("tier=tier", Name),
            ("tier=a, tier=b", Twice),
            ("tier", Quota(QuotaError::Syntax)),
            ("a=10/s, a=20/s", Twice),
        ] {
            assert_eq!(text.parse::<Limit>(), Err(error), "{text}");
        }
        let many: Vec<_> = (0..17).map(|n| format!("q{n}=1/s")).collect();
        assert_eq!(many.join(",").parse::<Limit>(), Err(TooMany));
    }

    #[test]
    fn a_named_part_takes_precedence() {
        let rule = |text: &str, name, is_single| {
            let limit = limit(text);
            let rule = limit.rule(name, is_single, false);
            rule.map(|rule| rule.quota().to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(rule("20/s", "burst", false), None);
        assert_eq!(rule("20/s", "burst", true), some("20/s"));
        assert_eq!(rule("20/s, burst=30/s", "burst", true), some("30/s"));
        assert_eq!(rule("20/s, burst=30/s", "daily", false), None);
        assert_eq!(rule("deny all", "daily", false), some("deny all"));
        assert_eq!(rule("unlimited", "daily", false), some("off"));
        assert_eq!(rule("deny all, daily=5/day", "daily", false), some("5/day"));
        assert_eq!(rule("5 concurrent", "daily", true), None);
        assert_eq!(rule("tier=pro", "daily", true), None);
    }

    #[test]
    fn a_concurrency_is_a_number_unlimited_or_zero() {
        let jobs = |text: &str| limit(text).concurrency("jobs");
        assert_eq!(jobs("deny all"), Some(Capacity::AtMost(0)));
        assert_eq!(jobs("unlimited"), Some(Capacity::Unlimited));
        assert_eq!(jobs("unlimited, 5 concurrent"), Some(Capacity::AtMost(5)));
        assert_eq!(
            jobs("5 concurrent, jobs=unlimited"),
            Some(Capacity::Unlimited)
        );
        assert_eq!(jobs("10/s"), None);
        assert_eq!(
            jobs("5 concurrent, jobs=7 concurrent"),
            Some(Capacity::AtMost(7))
        );
    }

    #[test]
    fn an_override_keeps_the_algorithm() {
        let rule = |text: &str, sliding| {
            let limit = limit(text);
            limit.rule("x", true, sliding).unwrap().quota().to_string()
        };
        assert_eq!(rule("10/s burst 5", true), "10/s burst 5 sliding");
        assert_eq!(rule("10/s burst 5 sliding", false), "10/s burst 5");
        // The numbers exceed the bounds of the other algorithm, so the burst is dropped.
        assert_eq!(
            rule("4294967295/day burst 5", true),
            "4294967295/day sliding"
        );
        assert_eq!(rule("1/day burst 4294967294 sliding", false), "1/day");
    }
}
