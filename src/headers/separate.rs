//! Three fields for one quota: the limit, the remaining requests and the reset.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::draft::RATELIMIT_POLICY;
use super::{DefaultLimits, MAX_INTEGER, ceil_seconds, limit_and_window, number};
use crate::decision::Decision;
use crate::policy::Policy;
use crate::rule::Rule;
use crate::store::memory::clock::since_epoch;

#[derive(Clone, Debug)]
pub(super) struct Separate {
    names: &'static FieldNames,
    unit: ResetUnit,
    /// The `RateLimit-Policy` of dialects that have it.
    policy: PolicyField,
}

#[derive(Debug)]
struct FieldNames {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

static DRAFT_6: FieldNames = FieldNames {
    limit: HeaderName::from_static("ratelimit-limit"),
    remaining: HeaderName::from_static("ratelimit-remaining"),
    reset: HeaderName::from_static("ratelimit-reset"),
};

static LEGACY: FieldNames = FieldNames {
    limit: HeaderName::from_static("x-ratelimit-limit"),
    remaining: HeaderName::from_static("x-ratelimit-remaining"),
    reset: HeaderName::from_static("x-ratelimit-reset"),
};

/// The unit of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetUnit {
    /// Seconds from now.
    Seconds,
    /// Seconds since the Unix epoch.
    Epoch,
}

#[derive(Clone, Debug)]
enum PolicyField {
    None,
    Draft6(Option<HeaderValue>, DefaultLimits),
}

impl Separate {
    pub(super) fn draft_6(policies: &[Policy]) -> Self {
        Self {
            names: &DRAFT_6,
            unit: ResetUnit::Seconds,
            policy: PolicyField::Draft6(policy_field(policies), DefaultLimits::new(policies)),
        }
    }

    pub(super) fn legacy() -> Self {
        Self {
            names: &LEGACY,
            unit: ResetUnit::Seconds,
            policy: PolicyField::None,
        }
    }

    pub(super) fn legacy_epoch() -> Self {
        Self {
            names: &LEGACY,
            unit: ResetUnit::Epoch,
            policy: PolicyField::None,
        }
    }

    pub(super) fn write(&self, decision: &Decision, headers: &mut HeaderMap) {
        let (Some(limit), Some(remaining), Some(reset)) =
            (decision.limit(), decision.remaining(), decision.reset())
        else {
            return;
        };
        let ours = ReportedLimit {
            limit: limit.into(),
            remaining: remaining.into(),
            reset: self.unit.reset(reset, since_epoch),
        };
        let theirs = self.names.read(headers);
        let theirs = theirs.filter(|theirs| self.unit.is_plausible(theirs.reset));
        if theirs.is_some_and(|theirs| theirs.is_at_least_as_tight_as(&ours)) {
            return;
        }
        headers.insert(&self.names.limit, ours.limit.into());
        headers.insert(&self.names.remaining, ours.remaining.into());
        headers.insert(&self.names.reset, ours.reset.into());
        if let PolicyField::Draft6(policy, defaults) = &self.policy {
            // Replaced together with the three fields, because it belongs to the same limit.
            let policy = match defaults.decided(decision) {
                true => policy.clone(),
                false => defaults.policy_of(decision),
            };
            match policy {
                Some(policy) => headers.insert(RATELIMIT_POLICY, policy),
                None => headers.remove(RATELIMIT_POLICY),
            };
        }
    }
}

impl FieldNames {
    /// Reads the numbers of a response. `None` unless each field occurs once.
    fn read(&self, headers: &HeaderMap) -> Option<ReportedLimit> {
        let read = |name| {
            let mut values = headers.get_all(name).iter();
            let value = number(values.next()?)?;
            values.next().is_none().then_some(value)
        };
        Some(ReportedLimit {
            // First, because most responses lack it.
            remaining: read(&self.remaining)?,
            limit: read(&self.limit)?,
            reset: read(&self.reset)?,
        })
    }
}

#[derive(Clone, Copy)]
struct ReportedLimit {
    limit: u64,
    remaining: u64,
    reset: u64,
}

impl ReportedLimit {
    fn is_at_least_as_tight_as(&self, other: &Self) -> bool {
        self.remaining < other.remaining
            || self.remaining == other.remaining && self.reset >= other.reset
    }
}

/// A larger number is a timestamp: as a Unix time it is in 2001 or later, as a wait it exceeds 31
/// years.
const FIRST_EPOCH: u64 = 1_000_000_000;

impl ResetUnit {
    /// Converts a reset to this unit, rounded up.
    fn reset(self, reset: Duration, since_epoch: impl FnOnce() -> Duration) -> u64 {
        let reset = match self {
            Self::Seconds => reset,
            Self::Epoch => since_epoch().saturating_add(reset),
        };
        ceil_seconds(reset).min(MAX_INTEGER)
    }

    /// Whether a number is plausible as a reset in this unit. A number in the other unit would be
    /// misread.
    fn is_plausible(self, reset: u64) -> bool {
        (self == Self::Epoch) == (reset >= FIRST_EPOCH)
    }
}

/// `RateLimit-Policy` of draft 6 (§2.1): limits with their windows.
fn policy_field(policies: &[Policy]) -> Option<HeaderValue> {
    let quotas = policies.iter().flat_map(Policy::quotas);
    let rules = quotas.map(|quota| Rule::new(quota.quota()));
    let limiting = rules.filter(|rule| !rule.quota().is_off());
    policy_value(limiting.map(|rule| limit_and_window(&rule)))
}

impl DefaultLimits {
    /// The `RateLimit-Policy` of a decision by other rules.
    fn policy_of(&self, decision: &Decision) -> Option<HeaderValue> {
        let usages = decision.usages().iter();
        policy_value(usages.map(|usage| (usage.limit(), self.window_of(usage))))
    }
}

fn policy_value(numbers: impl Iterator<Item = (u32, Option<u32>)>) -> Option<HeaderValue> {
    let mut field = String::new();
    for (limit, window) in numbers {
        if let Some(window) = window {
            let comma = if field.is_empty() { "" } else { ", " };
            let _ = write!(field, "{comma}{limit};w={window}");
        }
    }
    HeaderValue::try_from(field)
        .ok()
        .filter(|field| !field.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_rounded_up() {
        let now = || Duration::new(1_800_000_000, 600_000_000);
        for (millis, seconds, epoch) in [
            (0, 0, 1_800_000_001),
            (1, 1, 1_800_000_001),
            (400, 1, 1_800_000_001),
            (401, 1, 1_800_000_002),
            (1_400, 2, 1_800_000_002),
        ] {
            let reset = Duration::from_millis(millis);
            assert_eq!(ResetUnit::Seconds.reset(reset, now), seconds);
            assert_eq!(ResetUnit::Epoch.reset(reset, now), epoch);
        }
        assert_eq!(ResetUnit::Epoch.reset(Duration::MAX, now), MAX_INTEGER);
    }

    /// The three fields of a response with the fields `theirs`, after adding a decision with
    /// (limit, remaining, reset).
    fn told(theirs: &[(&'static str, &'static str)], ours: (u32, u32, u64)) -> [String; 3] {
        let mut headers = HeaderMap::new();
        for (name, value) in theirs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let (limit, remaining, reset) = ours;
        let usage = crate::decision::Usage::admitted(limit, remaining, Duration::from_secs(reset));
        Separate::legacy().write(&Decision::from_usage(usage), &mut headers);
        [&LEGACY.limit, &LEGACY.remaining, &LEGACY.reset].map(|name| {
            assert_eq!(headers.get_all(name).iter().count(), 1);
            headers[name].to_str().unwrap().to_owned()
        })
    }

    #[test]
    fn the_tighter_limit_is_kept_as_a_whole() {
        let (limit, left, reset) = (
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
        );
        let theirs = [(limit, "100"), (left, "5"), (reset, "30")];
        let (stays, goes) = (["100", "5", "30"], |ours: (u32, u32, u64)| {
            [ours.0.to_string(), ours.1.to_string(), ours.2.to_string()]
        });
        for ours in [(10, 6, 40), (10, 5, 30), (10, 5, 29)] {
            assert_eq!(told(&theirs, ours), stays, "{ours:?}");
        }
        for ours in [(10, 4, 20), (10, 5, 31)] {
            assert_eq!(told(&theirs, ours), goes(ours), "{ours:?}");
        }
        let ours = (10, 9, 1);
        for theirs in [
            &[(limit, "100"), (left, "5")][..],
            &[(limit, "100"), (left, "5"), (left, "5"), (reset, "30")],
            &[(limit, "100"), (left, "5"), (reset, "soon")],
            // A timestamp where seconds are expected.
            &[(limit, "100"), (left, "5"), (reset, "1000000000")],
        ] {
            assert_eq!(told(theirs, ours), goes(ours), "{theirs:?}");
        }
        let longest = [(limit, "100"), (left, "5"), (reset, "999999999")];
        assert_eq!(told(&longest, ours), ["100", "5", "999999999"]);
    }

    #[test]
    fn a_policy_without_windows_removes_the_existing_one() {
        let policy = |text: &str| Policy::from(text.parse::<crate::quota::Quota>().unwrap());
        for (text, expected) in [("5/s", Some("5;w=1")), ("5 per 500ms", None)] {
            let mut headers = HeaderMap::new();
            headers.insert(RATELIMIT_POLICY, HeaderValue::from_static("7;w=7"));
            let usage = crate::decision::Usage::admitted(5, 4, Duration::ZERO);
            let separate = Separate::draft_6(&[policy(text)]);
            separate.write(&Decision::from_usage(usage), &mut headers);
            let told = headers.get(RATELIMIT_POLICY);
            assert_eq!(told.map(|told| told.to_str().unwrap()), expected);
        }
    }
}
