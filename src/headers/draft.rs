//! `RateLimit` and `RateLimit-Policy`, with one member per quota.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::merge::merge_last_line;
use super::retry_after::retry_after;
use super::{DefaultLimits, MAX_INTEGER, ceil_seconds, limit_and_window};
use crate::decision::{Decision, Usage};
use crate::policy::{NamedQuota, Policy};
use crate::rejection::whole_seconds;
use crate::rule::Rule;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[derive(Clone, Debug)]
pub(super) struct Draft {
    policy: Option<HeaderValue>,
    /// The limits that `policy` reports.
    defaults: DefaultLimits,
    names: Vec<Arc<str>>,
    /// The start of each quota's member of `RateLimit`: its name and `;r=`.
    members: Vec<String>,
}

impl Draft {
    pub(super) fn new(policies: &[Policy]) -> Self {
        let quotas = || policies.iter().flat_map(Policy::quotas);
        Self {
            policy: policy_field(policies),
            defaults: DefaultLimits::new(policies),
            names: quotas().map(NamedQuota::shared_name).collect(),
            members: quotas()
                .map(|quota| sf_string(quota.name()) + ";r=")
                .collect(),
        }
    }

    pub(super) fn write(&self, decision: &Decision, headers: &mut HeaderMap) {
        if decision.usages().is_empty() {
            // Admitted without counting, so there are no numbers.
            return;
        }
        let policy = match &self.policy {
            Some(policy) if self.defaults.decided(decision) => policy.clone(),
            _ => match self.policy_of(decision) {
                Some(policy) => policy,
                None => return,
            },
        };
        let retry_after = retry_after(headers);
        // `append` reports whether the response already has the field. Only then it is parsed.
        if headers.append(RATELIMIT_POLICY, policy) {
            merge_last_line(&RATELIMIT_POLICY, &self.names, headers);
        }
        let mut field = String::new();
        let (mut r, mut t) = (itoa::Buffer::new(), itoa::Buffer::new());
        for usage in decision.usages() {
            let Some(member) = self.members.get(usage.index()) else {
                continue;
            };
            let comma = if field.is_empty() { "" } else { ", " };
            let r = r.format(usage.remaining());
            // At most the `Retry-After`, which an inner layer may have set.
            let reset = reset(decision, usage).filter(|reset| *reset <= retry_after);
            let (parameter, t) = match reset {
                Some(reset) => (";t=", t.format(reset.min(MAX_INTEGER))),
                None => ("", ""),
            };
            let parts = [comma, member, r, parameter, t];
            // The exact capacity, so that the string becomes the value without a copy.
            field.reserve_exact(parts.iter().map(|part| part.len()).sum());
            parts.iter().for_each(|part| field.push_str(part));
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(field))
            && headers.append(RATELIMIT, value)
        {
            merge_last_line(&RATELIMIT, &self.names, headers);
        }
    }
}

impl Draft {
    /// The `RateLimit-Policy` of a decision by rules other than the defaults.
    fn policy_of(&self, decision: &Decision) -> Option<HeaderValue> {
        let mut field = String::new();
        for usage in decision.usages() {
            let name = self.names.get(usage.index())?;
            let comma = if field.is_empty() { "" } else { ", " };
            let _ = write!(field, "{comma}{};q={}", sf_string(name), usage.limit());
            if let Some(window) = self.defaults.window_of(usage) {
                let _ = write!(field, ";w={window}");
            }
        }
        HeaderValue::from_maybe_shared(Bytes::from(field)).ok()
    }
}

/// The value of `t`. A rejection has it only for quotas that reject: `Retry-After` must not be
/// below any `t`.
fn reset(decision: &Decision, usage: &Usage) -> Option<u64> {
    if decision.is_admitted() {
        Some(ceil_seconds(usage.reset()))
    } else {
        usage.retry_after().map(whole_seconds)
    }
}

fn policy_field(policies: &[Policy]) -> Option<HeaderValue> {
    let mut field = String::new();
    for quota in policies.iter().flat_map(Policy::quotas) {
        if quota.quota().is_off() {
            continue;
        }
        let comma = if field.is_empty() { "" } else { ", " };
        let (limit, window) = limit_and_window(&Rule::new(quota.quota()));
        let _ = write!(field, "{comma}{};q={limit}", sf_string(quota.name()));
        if let Some(window) = window {
            let _ = write!(field, ";w={window}");
        }
    }
    if field.is_empty() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::from(field)).ok()
}

/// Writes a String (RFC 9651 §3.3.3). Policy names are printable ASCII.
fn sf_string(text: &str) -> String {
    let mut string = String::with_capacity(text.len() + 2);
    string.push('"');
    for char in text.chars() {
        if matches!(char, '"' | '\\') {
            string.push('\\');
        }
        string.push(char);
    }
    string.push('"');
    string
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::Quota;

    const SECOND: Duration = Duration::from_secs(1);

    fn draft() -> Draft {
        let policy = Policy::new("a", Quota::per_minute(10)).and("b", Quota::per_day(500));
        Draft::new(&[policy])
    }

    fn told(decision: &Decision, mut headers: HeaderMap) -> String {
        draft().write(decision, &mut headers);
        let lines = headers.get_all(RATELIMIT).iter();
        let lines: Vec<_> = lines.map(|line| line.to_str().unwrap()).collect();
        lines.join(", ")
    }

    #[test]
    fn a_rejection_has_times_only_of_quotas_that_reject() {
        let decision = Decision::from_usages([
            Usage::rejected(10, 0, 60 * SECOND, Some(SECOND / 2)),
            Usage::admitted(500, 400, 100 * SECOND),
        ]);
        let expected = "\"a\";r=0;t=1, \"b\";r=400";
        assert_eq!(told(&decision, HeaderMap::new()), expected);
    }

    #[test]
    fn no_time_exceeds_the_retry_after_of_the_response() {
        let decision = Decision::from_usages([
            Usage::admitted(10, 9, 6 * SECOND),
            Usage::admitted(500, 400, 7 * SECOND),
        ]);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("6"));
        assert_eq!(told(&decision, headers), "\"a\";r=9;t=6, \"b\";r=400");
    }

    #[test]
    fn members_with_other_names_stay() {
        let decision = Decision::from_usages([
            Usage::admitted(10, 9, 6 * SECOND),
            Usage::admitted(500, 400, 7 * SECOND),
        ]);
        let mut headers = HeaderMap::new();
        headers.insert(RATELIMIT, HeaderValue::from_static("\"c\";r=5, \"a\";r=1"));
        headers.insert(RATELIMIT_POLICY, HeaderValue::from_static("\"c\";q=5"));
        let mut with_policy = headers.clone();
        draft().write(&decision, &mut with_policy);
        let policies = with_policy.get_all(RATELIMIT_POLICY).iter();
        let policies: Vec<_> = policies.map(|line| line.to_str().unwrap()).collect();
        let ours = "\"a\";q=10;w=60, \"b\";q=500;w=86400";
        assert_eq!(policies, ["\"c\";q=5", ours]);
        let expected = "\"c\";r=5, \"a\";r=9;t=6, \"b\";r=400;t=7";
        assert_eq!(told(&decision, headers), expected);
    }

    #[test]
    fn a_quota_below_a_second_has_no_window() {
        let policy = Policy::new("q\"\\", "5 per 500ms".parse::<Quota>().unwrap());
        assert_eq!(policy_field(&[policy]).unwrap(), r#""q\"\\";q=5"#);
        assert_eq!(policy_field(&[]), None);
    }
}
