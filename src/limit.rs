//! What one key may do, where that is not what everybody may.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::policy::{Policy, Shape};
use crate::quota::{Quota, QuotaError};

/// What one key may do, in place of what everybody may: an entry of
/// [`Limits`](crate::Limits).
///
/// Written as its parts with commas between them. A part is a [`Quota`] or a number with
/// `concurrent` behind it, and what it is called, if it is for one limit only:
///
/// | text | |
/// |---|---|
/// | `1000/min burst 50` | the quota of each policy that has a single one |
/// | `20 concurrent` | how many may be in flight, or at work |
/// | `burst=20/s, daily=100000/day` | the quotas of these names |
/// | `1000/min, jobs=5 concurrent` | both; 5 for the limiter that is called `jobs` |
/// | `deny all` | nothing: requests are answered 403 |
///
/// Where a policy (or a [tier](Policy::tier) of it) has several quotas, a part without a name is about none of them, unless it denies
/// everything: `daily=100000/day` says which. A part with a name goes before one without. What no part is about stays as it is for
/// everybody. A key's limit is its own in every tier that has a quota which the limit is about. A [sliding](Quota::sliding) quota stays one and a bucket stays one, whatever the part says.
///
/// A limit cannot be lifted by a 0, which would mean *off* to some and *nothing* to others: it is
/// an error. Give a high number, or say `deny all`.
///
/// ```
/// use tower_admission::{Limit, Quota};
///
/// let limit: Limit = "1000/min burst 50, jobs=5 concurrent".parse().unwrap();
/// assert_eq!(limit.quota("default"), Some(Quota::per_minute(1000).burst(50)));
/// assert_eq!(limit.concurrency("jobs"), Some(5));
/// assert_eq!(limit.concurrency("streams"), None);
/// assert_eq!(limit.to_string(), "1000/min burst 50, jobs=5 concurrent");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// What it is for; every limit of its sort, if it has no name.
    name: Option<Arc<str>>,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Rate(Quota),
    Concurrency(u32),
}

/// Parts that a limit may have.
const MOST_PARTS: usize = 16;

/// What stands behind a number of requests in flight.
const CONCURRENT: &str = "concurrent";

impl Limit {
    /// A rate, for the quota of each policy that has a single one.
    ///
    /// # Errors
    ///
    /// [`LimitError::Zero`] for a quota that is off.
    pub fn rate(quota: Quota) -> Result<Self, LimitError> {
        Self { parts: Vec::new() }.with(None, Value::Rate(quota))
    }

    /// How many may be in flight or at work.
    ///
    /// # Errors
    ///
    /// [`LimitError::Zero`] for 0.
    pub fn concurrent(limit: u32) -> Result<Self, LimitError> {
        Self { parts: Vec::new() }.with(None, Value::Concurrency(limit))
    }

    /// Nothing at all.
    #[must_use]
    pub fn deny_all() -> Self {
        let deny = Part {
            name: None,
            value: Value::Rate(Quota::deny_all()),
        };
        Self { parts: vec![deny] }
    }

    fn with(mut self, name: Option<&str>, value: Value) -> Result<Self, LimitError> {
        match value {
            Value::Rate(quota) if quota.is_off() => return Err(LimitError::Zero),
            Value::Concurrency(0) => return Err(LimitError::Zero),
            _ => {}
        }
        if let Some(name) = name {
            let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !(1..=64).contains(&name.len()) || !printable {
                return Err(LimitError::Name);
            }
        }
        let same = |part: &Part| part.name.as_deref() == name && part.value.is_like(value);
        if self.parts.iter().any(same) {
            return Err(LimitError::Twice);
        }
        if self.parts.len() == MOST_PARTS {
            return Err(LimitError::TooMany);
        }
        self.parts.push(Part {
            name: name.map(Into::into),
            value,
        });
        Ok(self)
    }

    /// What it says about a quota of this name, or about all quotas.
    #[must_use]
    pub fn quota(&self, name: &str) -> Option<Quota> {
        self.named_quota(name).or_else(|| self.of(None, rate))
    }

    /// How many a limiter of this name may give the key.
    #[must_use]
    pub fn concurrency(&self, name: &str) -> Option<u32> {
        let concurrency = |value| match value {
            Value::Concurrency(limit) => Some(limit),
            Value::Rate(quota) => quota.denies_all().then_some(0),
        };
        self.of(Some(name), concurrency)
            .or_else(|| self.of(None, concurrency))
    }

    /// The names that it has parts for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| part.name.as_deref())
    }

    /// The policy as it is for the key, if anything in it is not as for everybody.
    pub(crate) fn of_policy(&self, policy: &Policy, shape: &Shape) -> Option<Policy> {
        let mut changed = false;
        let own = policy.map_quotas(|at, with, quota| {
            let own = if with == 1 {
                self.quota(quota.name())
            } else {
                self.named_quota(quota.name()).or_else(|| self.denial())
            };
            changed |= own.is_some();
            let own = own.and_then(|own| own.counted_in(shape.is_sliding(at)));
            own.unwrap_or(quota.quota())
        });
        changed.then_some(own)
    }

    fn named_quota(&self, name: &str) -> Option<Quota> {
        self.of(Some(name), rate)
    }

    fn denial(&self) -> Option<Quota> {
        self.of(None, rate).filter(Quota::denies_all)
    }

    fn of<T>(&self, name: Option<&str>, read: impl Fn(Value) -> Option<T>) -> Option<T> {
        let parts = self
            .parts
            .iter()
            .filter(|part| part.name.as_deref() == name);
        parts.map(|part| part.value).find_map(read)
    }
}

fn rate(value: Value) -> Option<Quota> {
    match value {
        Value::Rate(quota) => Some(quota),
        Value::Concurrency(_) => None,
    }
}

impl Value {
    fn is_like(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Rate(_), Self::Rate(_)) | (Self::Concurrency(_), Self::Concurrency(_))
        )
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let mut limit = Self { parts: Vec::new() };
        for part in text.split(',') {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (Some(name.trim()), value.trim()),
                None => (None, part.trim()),
            };
            limit = limit.with(name, value.parse()?)?;
        }
        Ok(limit)
    }
}

impl FromStr for Value {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let Some(number) = text.strip_suffix(CONCURRENT) else {
            return Ok(Self::Rate(text.parse().map_err(LimitError::Quota)?));
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
        for (n, part) in self.parts.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            if let Some(name) = &part.name {
                write!(f, "{name}=")?;
            }
            match part.value {
                Value::Rate(quota) => write!(f, "{quota}")?,
                Value::Concurrency(limit) => write!(f, "{limit} {CONCURRENT}")?,
            }
        }
        Ok(())
    }
}

/// Why a text is no [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// A part is neither a number with `concurrent` behind it nor a quota.
    Quota(QuotaError),
    /// What stands before `concurrent` is no number up to [`u32::MAX`].
    Concurrency,
    /// A 0, or a quota that is off.
    Zero,
    /// A name is empty, longer than 64 bytes or has anything but printable ASCII in it.
    Name,
    /// Two parts are about the same.
    Twice,
    /// There are more than 16 parts.
    TooMany,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota(_) => {
                "a limit is written as a quota, 1000/min burst 50, or as a number, 20 concurrent"
            }
            Self::Concurrency => "there is no number before `concurrent`",
            Self::Zero => {
                "0 lifts no limit and denies nothing: give a high number, or say `deny all`"
            }
            Self::Name => "a limit's name is 1 to 64 bytes of printable ASCII",
            Self::Twice => "two parts of the limit are about the same",
            Self::TooMany => "a limit has at most 16 parts",
        })
    }
}

impl std::error::Error for LimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("a=10/s, a=20/s", Twice),
        ] {
            assert_eq!(text.parse::<Limit>(), Err(error), "{text}");
        }
        let many: Vec<_> = (0..17).map(|n| format!("q{n}=1/s")).collect();
        assert_eq!(many.join(",").parse::<Limit>(), Err(TooMany));
    }

    #[test]
    fn names_go_before_what_is_for_all() {
        let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(100));
        let of = |text: &str| {
            let own = limit(text).of_policy(&policy, &policy.shape())?;
            let quotas: Vec<_> = own.quotas().iter().map(|q| q.quota().to_string()).collect();
            Some(quotas.join(", "))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("20/s"), None);
        assert_eq!(of("daily=200/day"), some("10/s, 200/day"));
        assert_eq!(of("20/s, burst=30/s"), some("30/s, 100/day"));
        let single = Policy::new("burst", Quota::per_second(10));
        let own = limit("20/s").of_policy(&single, &single.shape()).unwrap();
        assert_eq!(own.quotas()[0].quota(), Quota::per_second(20));
        assert_eq!(of("deny all"), some("deny all, deny all"));
        assert_eq!(of("deny all, daily=5/day"), some("deny all, 5/day"));
        assert_eq!(of("weekly=1/s"), None);
        assert_eq!(of("5 concurrent"), None);
        assert_eq!(limit("deny all").concurrency("jobs"), Some(0));
        assert_eq!(limit("10/s").concurrency("jobs"), None);
        assert_eq!(
            limit("5 concurrent, jobs=7 concurrent").concurrency("jobs"),
            Some(7)
        );
    }

    #[test]
    fn a_quota_keeps_its_kind() {
        let sliding = Policy::from(Quota::per_minute(60).sliding());
        let own = limit("10/s burst 5")
            .of_policy(&sliding, &sliding.shape())
            .unwrap();
        assert_eq!(own.quotas()[0].quota().to_string(), "10/s burst 5 sliding");
        let bucket = Policy::from(Quota::per_minute(60));
        let own = limit("10/s burst 5 sliding")
            .of_policy(&bucket, &bucket.shape())
            .unwrap();
        assert_eq!(own.quotas()[0].quota().to_string(), "10/s burst 5");
        // Neither fits the other's bounds: the nearest there is.
        let own = limit("4294967295/day burst 5")
            .of_policy(&sliding, &sliding.shape())
            .unwrap();
        assert_eq!(
            own.quotas()[0].quota().to_string(),
            "4294967295/day sliding"
        );
        let own = limit("1/day burst 4294967294 sliding")
            .of_policy(&bucket, &bucket.shape())
            .unwrap();
        assert_eq!(own.quotas()[0].quota().to_string(), "1/day");
    }
}
