//! Three fields for one quota: its limit, what remains, and when it resets.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::draft::RATELIMIT_POLICY;
use super::{Defaults, MAX_INTEGER, ceil_seconds, limit_and_window, number};
use crate::decision::Decision;
use crate::policy::Policy;
use crate::rule::Rule;
use crate::store::memory::clock::since_epoch;

#[derive(Clone, Debug)]
pub(super) struct Separate {
    names: &'static Names,
    unit: Unit,
    /// `RateLimit-Policy`, where the dialect has it.
    policy: PolicyField,
}

#[derive(Debug)]
struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

static DRAFT_6: Names = Names {
    limit: HeaderName::from_static("ratelimit-limit"),
    remaining: HeaderName::from_static("ratelimit-remaining"),
    reset: HeaderName::from_static("ratelimit-reset"),
};

static LEGACY: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit"),
    remaining: HeaderName::from_static("x-ratelimit-remaining"),
    reset: HeaderName::from_static("x-ratelimit-reset"),
};

/// What the time of a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Seconds from now.
    Seconds,
    /// Seconds since the Unix epoch.
    Epoch,
}

#[derive(Clone, Debug)]
enum PolicyField {
    None,
    Draft6(Option<HeaderValue>, Defaults),
}

impl Separate {
    pub(super) fn draft_6(policies: &[Policy]) -> Self {
        Self {
            names: &DRAFT_6,
            unit: Unit::Seconds,
            policy: PolicyField::Draft6(policy_field(policies), Defaults::new(policies)),
        }
    }

    pub(super) fn legacy() -> Self {
        Self {
            names: &LEGACY,
            unit: Unit::Seconds,
            policy: PolicyField::None,
        }
    }

    pub(super) fn legacy_epoch() -> Self {
        Self {
            names: &LEGACY,
            unit: Unit::Epoch,
            policy: PolicyField::None,
        }
    }

    pub(super) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        let (Some(limit), Some(remaining), Some(reset)) =
            (decision.limit(), decision.remaining(), decision.reset())
        else {
            return;
        };
        let ours = Numbers {
            limit: limit.into(),
            remaining: remaining.into(),
            reset: self.unit.reset(reset, since_epoch),
        };
        let theirs = self.names.read(headers);
        let theirs = theirs.filter(|theirs| self.unit.is_of(theirs.reset));
        if theirs.is_some_and(|theirs| theirs.is_at_least_as_tight_as(&ours)) {
            return;
        }
        headers.insert(&self.names.limit, ours.limit.into());
        headers.insert(&self.names.remaining, ours.remaining.into());
        headers.insert(&self.names.reset, ours.reset.into());
        if let PolicyField::Draft6(policy, defaults) = &self.policy {
            // Replaced with the three, as it belongs to their limit.
            let policy = match defaults.are_those_of(decision) {
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

impl Names {
    /// The numbers of a response, if all three are there once.
    fn read(&self, headers: &HeaderMap) -> Option<Numbers> {
        let read = |name| {
            let mut values = headers.get_all(name).iter();
            let value = number(values.next()?)?;
            values.next().is_none().then_some(value)
        };
        Some(Numbers {
            // First the one whose absence ends this for most responses.
            remaining: read(&self.remaining)?,
            limit: read(&self.limit)?,
            reset: read(&self.reset)?,
        })
    }
}

#[derive(Clone, Copy)]
struct Numbers {
    limit: u64,
    remaining: u64,
    reset: u64,
}

impl Numbers {
    fn is_at_least_as_tight_as(&self, other: &Self) -> bool {
        self.remaining < other.remaining
            || self.remaining == other.remaining && self.reset >= other.reset
    }
}

/// Numbers from here on are taken for an epoch: 2001 as an epoch, 31 years as a wait.
const FIRST_EPOCH: u64 = 1_000_000_000;

impl Unit {
    /// A reset in this unit, never earlier than it is.
    fn reset(self, reset: Duration, since_epoch: impl FnOnce() -> Duration) -> u64 {
        let reset = match self {
            Self::Seconds => reset,
            Self::Epoch => since_epoch().saturating_add(reset),
        };
        ceil_seconds(reset).min(MAX_INTEGER)
    }

    /// Whether a number can be a reset in this unit. One in the other would be misread.
    fn is_of(self, reset: u64) -> bool {
        (self == Self::Epoch) == (reset >= FIRST_EPOCH)
    }
}

/// `RateLimit-Policy` of draft 6 (§2.1): numbers, each with a window.
fn policy_field(policies: &[Policy]) -> Option<HeaderValue> {
    let quotas = policies.iter().flat_map(Policy::quotas);
    let rules = quotas.map(|quota| Rule::new(quota.quota()));
    let limiting = rules.filter(|rule| !rule.quota().is_off());
    written(limiting.map(|rule| limit_and_window(&rule)))
}

impl Defaults {
    /// The same of a decision by other rules.
    fn policy_of(&self, decision: &Decision) -> Option<HeaderValue> {
        let usages = decision.usages().iter();
        written(usages.map(|usage| (usage.limit(), self.window_of(usage))))
    }
}

fn written(numbers: impl Iterator<Item = (u32, Option<u32>)>) -> Option<HeaderValue> {
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
    fn a_reset_is_never_earlier_than_it_is() {
        let now = || Duration::new(1_800_000_000, 600_000_000);
        for (millis, seconds, epoch) in [
            (0, 0, 1_800_000_001),
            (1, 1, 1_800_000_001),
            (400, 1, 1_800_000_001),
            (401, 1, 1_800_000_002),
            (1_400, 2, 1_800_000_002),
        ] {
            let reset = Duration::from_millis(millis);
            assert_eq!(Unit::Seconds.reset(reset, now), seconds);
            assert_eq!(Unit::Epoch.reset(reset, now), epoch);
        }
        assert_eq!(Unit::Epoch.reset(Duration::MAX, now), MAX_INTEGER);
    }

    /// The three fields after an answer with (limit, remaining, reset) was told to a response that has some.
    fn told(theirs: &[(&'static str, &'static str)], ours: (u32, u32, u64)) -> [String; 3] {
        let mut headers = HeaderMap::new();
        for (name, value) in theirs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let (limit, remaining, reset) = ours;
        let usage = crate::decision::Usage::admitted(limit, remaining, Duration::from_secs(reset));
        Separate::legacy().tell(&Decision::from_usage(usage), &mut headers);
        [&LEGACY.limit, &LEGACY.remaining, &LEGACY.reset].map(|name| {
            assert_eq!(headers.get_all(name).iter().count(), 1);
            headers[name].to_str().unwrap().to_owned()
        })
    }

    #[test]
    fn the_tighter_limit_stays_whole() {
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
            // An epoch, where seconds are expected.
            &[(limit, "100"), (left, "5"), (reset, "1000000000")],
        ] {
            assert_eq!(told(theirs, ours), goes(ours), "{theirs:?}");
        }
        let longest = [(limit, "100"), (left, "5"), (reset, "999999999")];
        assert_eq!(told(&longest, ours), ["100", "5", "999999999"]);
    }

    #[test]
    fn a_policy_without_windows_replaces_the_one_that_is_there() {
        let policy = |text: &str| Policy::from(text.parse::<crate::quota::Quota>().unwrap());
        for (text, expected) in [("5/s", Some("5;w=1")), ("5 per 500ms", None)] {
            let mut headers = HeaderMap::new();
            headers.insert(RATELIMIT_POLICY, HeaderValue::from_static("7;w=7"));
            let usage = crate::decision::Usage::admitted(5, 4, Duration::ZERO);
            let separate = Separate::draft_6(&[policy(text)]);
            separate.tell(&Decision::from_usage(usage), &mut headers);
            let told = headers.get(RATELIMIT_POLICY);
            assert_eq!(told.map(|told| told.to_str().unwrap()), expected);
        }
    }
}
