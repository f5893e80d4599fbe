//! The response fields that report rate limits.

mod draft;
mod list;
mod merge;
mod retry_after;
mod separate;

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use self::draft::Draft;
pub(crate) use self::retry_after::{add_retry_after, add_retry_after_ms};
use self::separate::Separate;
use crate::decision::{Decision, Usage};
use crate::limiter::RateLimiter;
use crate::policy::Policy;
use crate::rule::{Rule, SUB_SECOND};

/// Selects the response fields that report rate limits.
///
/// `Retry-After` is independent of this setting: every rejection with a known wait has it.
///
/// # Existing fields of a response
///
/// A proxied service or an inner layer may report limits too. Each quota is reported once, and the
/// fields of two limits are never mixed:
///
/// - [`Draft`](Self::Draft): members with other names stay. A member with the name of one of the
///   layer's quotas is replaced. A field that is not a structured list (RFC 9651), such as
///   `limit=100, remaining=50, reset=30` of an older draft, is replaced. Members that are not a
///   String, which the draft does not allow, are removed.
/// - The other dialects report one limit: the one with fewer requests remaining, and of equals the
///   one that resets later. The existing fields count only if each of the three occurs once, as a
///   number in the dialect's unit of time; otherwise the layer replaces them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// `RateLimit` and `RateLimit-Policy` as in [draft-ietf-httpapi-ratelimit-headers][draft], with
    /// one member per quota. Several layers on one route add their members.
    ///
    /// `q` is the burst and `w` the time in which an empty bucket fills, to the nearest second and
    /// omitted below one second. So `r` counts down from `q`, and `q` and `w` express the rate. For
    /// a [sliding](crate::Quota::sliding) quota `q` is count + burst, and `w` the period, rounded
    /// up. `t` is the time until the bucket is full or the window empty; in a rejection, the time
    /// until the request fits.
    ///
    /// [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    #[default]
    Draft,
    /// `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds until the bucket is
    /// full) of the quota with the least remaining, and `RateLimit-Policy` with all quotas, as in
    /// [draft 6][draft]. Use it for clients that expect this draft.
    ///
    /// That draft requires a window in whole seconds (`100;w=60`), so a quota with a window below
    /// one second is omitted from `RateLimit-Policy`.
    ///
    /// [draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06
    Draft6,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds until the
    /// bucket is full) of the quota with the least remaining.
    Legacy,
    /// As [`Legacy`](Self::Legacy), but `X-RateLimit-Reset` is a Unix timestamp in seconds.
    ///
    /// It is rounded up: never earlier than the bucket is full, if the clocks of both sides agree.
    LegacyEpoch,
    /// No fields. Only with this value an admitted request needs no allocation.
    Off,
}

/// The fields of one layer: the dialect, and the precomputed parts.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    dialect: RateLimitHeaders,
    fields: Fields,
}

#[derive(Clone, Debug)]
enum Fields {
    Draft(Draft),
    Separate(Separate),
    Off,
}

impl Headers {
    pub(crate) fn new(dialect: RateLimitHeaders, limiter: &RateLimiter) -> Self {
        let policies = limiter.policies();
        let fields = match dialect {
            RateLimitHeaders::Draft => Fields::Draft(Draft::new(policies)),
            RateLimitHeaders::Draft6 => Fields::Separate(Separate::draft_6(policies)),
            RateLimitHeaders::Legacy => Fields::Separate(Separate::legacy()),
            RateLimitHeaders::LegacyEpoch => Fields::Separate(Separate::legacy_epoch()),
            RateLimitHeaders::Off => Fields::Off,
        };
        Self { dialect, fields }
    }

    pub(crate) fn are_off(&self) -> bool {
        self.dialect == RateLimitHeaders::Off
    }

    /// Adds the numbers of a decision to the fields of a response.
    pub(crate) fn write(&self, decision: &Decision, headers: &mut HeaderMap) {
        match &self.fields {
            Fields::Draft(draft) => draft.write(decision, headers),
            Fields::Separate(separate) => separate.write(decision, headers),
            Fields::Off => {}
        }
    }
}

/// Parses the digits of a field. `parse` would also accept a plus sign.
fn number(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?;
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn ceil_seconds(time: Duration) -> u64 {
    time.as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The largest Integer of a structured field (RFC 9651 §3.3.1): 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// The limit of a rule and its window in whole seconds, if the window is at least one second.
fn limit_and_window(rule: &Rule) -> (u32, Option<u32>) {
    let window = rule.window_seconds();
    (rule.limit(), (window != SUB_SECOND).then_some(window))
}

/// The numbers of a limiter's default rules, for which the fields are precomputed.
#[derive(Clone, Debug)]
struct DefaultLimits(Vec<(u32, u32)>);

impl DefaultLimits {
    fn new(policies: &[Policy]) -> Self {
        let quotas = policies.iter().flat_map(Policy::quotas);
        let rules = quotas.map(|quota| Rule::new(quota.quota()));
        // A quota that is off has no usage. No usage has both numbers 0.
        let numbers = rules.map(|rule| match rule.quota().is_off() {
            true => (0, 0),
            false => (rule.limit(), rule.window_seconds()),
        });
        Self(numbers.collect())
    }

    /// Whether these rules made the decision.
    fn decided(&self, decision: &Decision) -> bool {
        let mut usages = decision.usages().iter();
        let is_same = |(at, (limit, window)): (usize, &(u32, u32))| {
            if (*limit, *window) == (0, 0) {
                return true;
            }
            usages.next().is_some_and(|usage| {
                let same_window = usage.window().is_none_or(|of_usage| of_usage == *window);
                usage.index() == at && usage.limit() == *limit && same_window
            })
        };
        // A decision may cover fewer keys.
        self.0.iter().enumerate().all(is_same) && usages.next().is_none()
    }

    /// The window of a usage, or the default window if the store did not report it.
    fn window_of(&self, usage: &Usage) -> Option<u32> {
        let default = || self.0.get(usage.index()).map(|(_, window)| *window);
        let window = usage.window().or_else(default)?;
        (window != SUB_SECOND && window > 0).then_some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    /// The fields added to an empty response, in alphabetical order.
    fn fields(dialect: RateLimitHeaders, decision: &Decision) -> Vec<(String, String)> {
        let policy = Policy::new("burst", Quota::per_second(10)).and("daily", Quota::per_day(500));
        let limiter = RateLimiter::new(policy);
        let mut headers = HeaderMap::new();
        let made = Headers::new(dialect, &limiter);
        assert_eq!(made.are_off(), dialect == RateLimitHeaders::Off);
        made.write(decision, &mut headers);
        let fields = headers.iter();
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut fields: Vec<_> = fields
            .map(|(name, v)| (name.to_string(), text(v)))
            .collect();
        fields.sort();
        fields
    }

    fn admitted() -> Decision {
        Decision::from_usages([
            Usage::admitted(10, 9, Duration::from_millis(100)),
            Usage::admitted(500, 3, Duration::from_millis(85_881_600)),
        ])
    }

    fn expected(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        let fields = fields.iter();
        fields
            .map(|(name, v)| ((*name).into(), (*v).into()))
            .collect()
    }

    #[test]
    fn each_dialect_has_its_fields() {
        use RateLimitHeaders::*;
        let told = |dialect| fields(dialect, &admitted());
        let policy = "\"burst\";q=10;w=1, \"daily\";q=500;w=86400";
        let limits = "\"burst\";r=9;t=1, \"daily\";r=3;t=85882";
        let draft = [("ratelimit", limits), ("ratelimit-policy", policy)];
        assert_eq!(told(Draft), expected(&draft));
        let draft_6 = [
            ("ratelimit-limit", "500"),
            ("ratelimit-policy", "10;w=1, 500;w=86400"),
            ("ratelimit-remaining", "3"),
            ("ratelimit-reset", "85882"),
        ];
        assert_eq!(told(Draft6), expected(&draft_6));
        let legacy = [
            ("x-ratelimit-limit", "500"),
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "85882"),
        ];
        assert_eq!(told(Legacy), expected(&legacy));
        let epoch = told(LegacyEpoch);
        assert_eq!(epoch[..2], expected(&legacy[..2]));
        // Any time since 2020.
        assert!(epoch[2].1.parse::<u64>().unwrap() > 1_577_836_800);
        assert_eq!(told(Off), []);
    }

    #[test]
    fn a_decision_without_numbers_has_no_fields() {
        use RateLimitHeaders::*;
        for dialect in [Draft, Draft6, Legacy, LegacyEpoch, Off] {
            assert_eq!(fields(dialect, &Decision::unlimited()), []);
        }
    }

    #[test]
    fn a_number_is_digits() {
        for (text, expected) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("+5", None),
            ("-5", None),
            ("5 ", None),
            ("", None),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(number(&value), expected, "{text}");
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (nanos, seconds) in [
            (0, 0),
            (1, 1),
            (999_999_999, 1),
            (1_000_000_000, 1),
            (1_000_000_001, 2),
        ] {
            assert_eq!(ceil_seconds(Duration::from_nanos(nanos)), seconds);
        }
        assert_eq!(ceil_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_window_is_in_whole_seconds_or_omitted() {
        for (text, expected) in [
            ("10/s", (10, Some(1))),
            ("60/min burst 30", (30, Some(30))),
            ("1 per 999ms", (1, None)),
            // To the nearest second.
            ("1 per 1499ms", (1, Some(1))),
            ("1 per 1500ms", (1, Some(2))),
            // Rounded up.
            ("10/s sliding", (10, Some(1))),
            ("10 per 1001ms burst 5 sliding", (15, Some(2))),
            ("10 per 999ms sliding", (10, None)),
            ("1 per 2000000001ns sliding", (1, Some(3))),
            ("off", (0, None)),
            ("deny all", (0, None)),
        ] {
            let quota: Quota = text.parse().unwrap();
            assert_eq!(limit_and_window(&Rule::new(quota)), expected, "{text}");
        }
    }
}
