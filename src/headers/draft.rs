//! `RateLimit` and `RateLimit-Policy`, a member for each quota.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::merge::merge_last_line;
use super::retry_after::retry_after;
use super::{MAX_INTEGER, ceil_seconds, limit_and_window};
use crate::decision::{Decision, Usage};
use crate::policy::{NamedQuota, Policy};
use crate::rejection::whole_seconds;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[derive(Clone, Debug)]
pub(super) struct Draft {
    policy: Option<HeaderValue>,
    names: Vec<Arc<str>>,
    /// What begins each quota's member of `RateLimit`: its name and `;r=`.
    members: Vec<String>,
}

impl Draft {
    pub(super) fn new(policies: &[Policy]) -> Self {
        let quotas = || policies.iter().flat_map(Policy::quotas);
        Self {
            policy: policy_field(policies),
            names: quotas().map(NamedQuota::shared_name).collect(),
            members: quotas()
                .map(|quota| sf_string(quota.name()) + ";r=")
                .collect(),
        }
    }

    pub(super) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        let Some(policy) = &self.policy else {
            return;
        };
        if decision.usages().is_empty() {
            // Admitted without being counted: there are no numbers.
            return;
        }
        let retry_after = retry_after(headers);
        let own = decision.policies().and_then(policy_field);
        // A field is parsed only if the response has it already, which `append` reports.
        if headers.append(RATELIMIT_POLICY, own.unwrap_or_else(|| policy.clone())) {
            merge_last_line(&RATELIMIT_POLICY, &self.names, headers);
        }
        let mut field = String::new();
        let (mut r, mut t) = (itoa::Buffer::new(), itoa::Buffer::new());
        for (member, usage) in self.members.iter().zip(decision.usages()) {
            let comma = if field.is_empty() { "" } else { ", " };
            let r = r.format(usage.remaining());
            // Not above a `Retry-After`, which may be that of a layer further in.
            let reset = reset(decision, usage).filter(|reset| *reset <= retry_after);
            let (parameter, t) = match reset {
                Some(reset) => (";t=", t.format(reset.min(MAX_INTEGER))),
                None => ("", ""),
            };
            let parts = [comma, member, r, parameter, t];
            // No more than that, so that the string becomes the value without a copy.
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

/// `t`: in a rejection only of quotas that reject, because no other has a time to come back at and
/// `Retry-After` must not be below any `t`.
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
        let comma = if field.is_empty() { "" } else { ", " };
        let (limit, window) = limit_and_window(quota.quota());
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

/// A String (RFC 9651 §3.3.3). Policies' names are printable ASCII.
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
