//! What one key, or the requests of one tier, may do, where that is not the default.

mod error;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

pub use self::error::LimitError;
use crate::capacity::Capacity;
use crate::quota::Quota;
use crate::rule::Rule;

/// Numbers for some of the limits of a service, as people write them: an override of
/// [`Limits`](crate::Limits), or a [tier](crate::Limits::tier).
///
/// Written as its parts with commas between them. A part is a [`Quota`], a number with
/// `concurrent` behind it, `unlimited` or `deny all`, and the name of the limit that it is for; or
/// the name of a tier:
///
/// | text | |
/// |---|---|
/// | `1000/min burst 50` | the quota of each policy that has a single one |
/// | `20 concurrent` | how many may be in flight, or at work |
/// | `burst=20/s, daily=100000/day` | the quotas of these names |
/// | `1000/min, jobs=5 concurrent` | both; 5 for the limiter that is called `jobs` |
/// | `unlimited`, `jobs=unlimited` | no limit at all; none for the limit of this name |
/// | `deny all` | nothing: requests are answered 403 |
/// | `tier=pro` | the limits of this tier |
/// | `tier=pro, daily=100000/day` | the same, but for one quota |
///
/// What is wholly `unlimited` or `deny all` is also an entry of a list, see [`access`](crate::access).
///
/// A part with a name goes before one without. Where a policy has several quotas, a part without a name is
/// about none of them, unless it is `unlimited` or `deny all`: `daily=100000/day` names one. A limit that no part is
/// about keeps its default. An override cannot change the algorithm: a [sliding](Quota::sliding) quota stays
/// sliding and a bucket stays a bucket.
///
/// 0 is an error, as it is ambiguous here: write `unlimited` or `deny all`.
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
    /// One part is next to the rest, as that is the usual case.
    parts: SmallVec<[Part; 1]>,
    tier: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// What it is for; every limit of its sort, if it has no name.
    name: Option<Arc<str>>,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// Of rates; off and deny all are of concurrency as well.
    Rate {
        quota: Quota,
        /// As a bucket and as a sliding window, compiled once for all decisions.
        rules: [Option<Rule>; 2],
    },
    Concurrency(u32),
}

/// Parts that a limit may have.
const MAX_PARTS: usize = 16;

/// What stands behind a number of requests in flight.
const CONCURRENT: &str = "concurrent";

const UNLIMITED: &str = "unlimited";

/// What stands before the name of a tier. No limit can be called so.
const TIER: &str = "tier";

/// What [`is_addressable`] asks for.
pub(crate) const NAME: &str = "a name is 1 to 64 bytes of printable ASCII without `,` and `=`, with no \
                               space at its ends, and not `tier`";

impl Limit {
    /// At most so many in flight or at work.
    ///
    /// # Errors
    ///
    /// [`LimitError::Zero`] for 0.
    pub fn concurrent(limit: u32) -> Result<Self, LimitError> {
        Self::default().with(None, Value::Concurrency(limit))
    }

    /// No limit at all.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::from(Quota::off())
    }

    /// Nothing at all: requests are answered 403.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::from(Quota::deny_all())
    }

    /// For quotas by name.
    #[cfg(any(feature = "config", feature = "redis"))]
    pub(crate) fn of_quotas<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Self, LimitError> {
        let mut quotas = quotas.into_iter();
        quotas.try_fold(Self::default(), |limit, (name, quota)| {
            limit.with(Some(name), Value::of_quota(quota))
        })
    }

    fn with(mut self, name: Option<&str>, value: Value) -> Result<Self, LimitError> {
        if value == Value::Concurrency(0) {
            return Err(LimitError::Zero);
        }
        if let Some(name) = name
            && !is_name(name)
        {
            return Err(LimitError::Name);
        }
        let same = |part: &Part| part.name.as_deref() == name && part.value.is_like(value);
        if self.parts.iter().any(same) {
            return Err(LimitError::Twice);
        }
        if self.parts.len() == MAX_PARTS {
            return Err(LimitError::TooMany);
        }
        self.parts.push(Part {
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

    /// The quota that it has for a policy's only quota, which is called so.
    #[must_use]
    pub fn quota(&self, name: &str) -> Option<Quota> {
        let value = self.rate(Some(name)).or_else(|| self.rate(None))?;
        value.quota()
    }

    /// Calls the parts for one limit as another one.
    pub(crate) fn rename(&mut self, from: &str, to: &Arc<str>) {
        for part in &mut self.parts {
            if part.name.as_deref() == Some(from) {
                part.name = Some(to.clone());
            }
        }
    }

    /// How many a limiter of this name may admit at a time.
    #[must_use]
    pub fn concurrency(&self, name: &str) -> Option<Capacity> {
        let of = |name| {
            let parts = || self.of(name);
            let counts = parts().find_map(|value| match value {
                Value::Concurrency(limit) => Some(Capacity::AtMost(*limit as usize)),
                Value::Rate { .. } => None,
            });
            counts.or_else(|| parts().find_map(Value::for_all))
        };
        of(Some(name)).or_else(|| of(None))
    }

    /// The tier that it names.
    #[must_use]
    pub fn tier(&self) -> Option<&str> {
        self.tier.as_deref()
    }

    /// The names that it has parts for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| part.name.as_deref())
    }

    /// The rule that it has for a quota. `is_single`: the quota's policy has no other. `None`: the default.
    #[inline]
    pub(crate) fn rule(&self, name: &str, is_single: bool, sliding: bool) -> Option<&Rule> {
        let value = self.rate(Some(name)).or_else(|| {
            let value = self.rate(None)?;
            (is_single || value.for_all().is_some()).then_some(value)
        })?;
        match value {
            Value::Rate { rules, .. } => rules[usize::from(sliding)].as_ref(),
            Value::Concurrency(_) => None,
        }
    }

    fn rate(&self, name: Option<&str>) -> Option<&Value> {
        self.of(name)
            .find(|value| matches!(value, Value::Rate { .. }))
    }

    fn of(&self, name: Option<&str>) -> impl Iterator<Item = &Value> {
        let parts = self.parts.iter();
        parts
            .filter(move |part| part.name.as_deref() == name)
            .map(|part| &part.value)
    }

    /// What it has for all limits, if it is wholly `unlimited` or `deny all`.
    pub(crate) fn for_all(&self) -> Option<Capacity> {
        match (&*self.parts, &self.tier) {
            ([Part { name: None, value }], None) => value.for_all(),
            _ => None,
        }
    }

    /// The rates that it has parts for.
    pub(crate) fn quotas(&self) -> impl Iterator<Item = Quota> {
        self.parts.iter().filter_map(|part| part.value.quota())
    }
}

/// What a limit may be called. It is sent in headers.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// What a tier may be called, and a limit that is to be named in overrides: what `name=10/s` is read as.
pub(crate) fn is_addressable(name: &str) -> bool {
    is_name(name) && !name.contains([',', '=']) && name.trim() == name && name != TIER
}

impl Value {
    fn of_quota(quota: Quota) -> Self {
        // Numbers that are out of one algorithm's bounds are in the other's.
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

    /// What is not about rates alone.
    fn for_all(&self) -> Option<Capacity> {
        match self {
            Self::Rate { quota, .. } if quota.is_off() => Some(Capacity::Unlimited),
            Self::Rate { quota, .. } if quota.denies_all() => Some(Capacity::AtMost(0)),
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

/// The quota of each policy that has a single one; a quota that is off is `unlimited`.
impl From<Quota> for Limit {
    fn from(quota: Quota) -> Self {
        Self {
            parts: smallvec![Part {
                name: None,
                value: Value::of_quota(quota),
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

impl FromStr for Value {
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
        // `FromStr` of integers would also take a sign.
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
                Value::Rate { quota, .. } if quota.is_off() => f.write_str(UNLIMITED)?,
                Value::Rate { quota, .. } => write!(f, "{quota}")?,
                Value::Concurrency(limit) => write!(f, "{limit} {CONCURRENT}")?,
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
    fn is_shown_as_it_is_read() {
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
    fn what_is_none_is_refused() {
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
    fn a_part_with_a_name_goes_before_one_without() {
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
    fn concurrency_is_a_number_or_none_or_everything() {
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
    fn a_quota_keeps_its_algorithm() {
        let rule = |text: &str, sliding| {
            let limit = limit(text);
            limit.rule("x", true, sliding).unwrap().quota().to_string()
        };
        assert_eq!(rule("10/s burst 5", true), "10/s burst 5 sliding");
        assert_eq!(rule("10/s burst 5 sliding", false), "10/s burst 5");
        // Neither fits the other's bounds: the nearest there is.
        assert_eq!(
            rule("4294967295/day burst 5", true),
            "4294967295/day sliding"
        );
        assert_eq!(rule("1/day burst 4294967294 sliding", false), "1/day");
    }
}
