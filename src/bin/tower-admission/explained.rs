//! Which limits apply to a key, as the admin endpoints answer it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_admission::{KeyName, LimitExplanation, LimitVerdict};

/// Which limits apply, and what a request would get.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Explained {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) address: Option<String>,
    /// The limit that the key has of its own.
    #[serde(default)]
    pub(crate) limit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<Vec<Group>>,
    pub(crate) limits: Vec<Row>,
    /// Limits on the client's address, which was not given.
    #[serde(default)]
    pub(crate) address_limits: Vec<String>,
    pub(crate) now: Now,
}

/// A group of a service's configuration that the request is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) enforce: u8,
    pub(crate) is_excluded: bool,
}

/// One limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) sort: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// `None` for a limit on all keys together.
    #[serde(default)]
    pub(crate) key: Option<String>,
    pub(crate) limit: String,
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) tier: Option<String>,
    #[serde(default)]
    pub(crate) used: Option<u64>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// What a request would get.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// `admitted`, `rejected` or `unknown`.
    pub(crate) verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remaining: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
}

/// What the next request would get.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Now {
    /// The limit that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<String>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) is_enforced: Option<bool>,
}

impl Explained {
    /// Of limits that are all on one key, without the configuration of a service.
    pub(crate) fn new(key: &KeyName, own: Option<String>, limits: &[LimitExplanation]) -> Self {
        let rows: Vec<_> = limits.iter().map(|limit| Row::new(key, limit)).collect();
        let now = now(&rows);
        Self {
            key: key.to_string(),
            address: None,
            limit: own,
            groups: None,
            limits: rows,
            address_limits: Vec::new(),
            now,
        }
    }

    /// The numbers, for a line.
    pub(crate) fn brief(&self) -> String {
        let of_key = self.limits.iter().filter(|row| row.key.is_some());
        let mut brief: Vec<_> = of_key
            .map(|row| match row.source() {
                "default" => format!("{} {}", row.name, row.limit),
                source => format!("{} {} ({source})", row.name, row.limit),
            })
            .collect();
        brief.dedup();
        brief.join(", ")
    }
}

impl Row {
    fn new(key: &KeyName, limit: &LimitExplanation) -> Self {
        Self {
            name: limit.name.to_string(),
            sort: limit.sort.to_owned(),
            group: None,
            key: (!limit.is_total).then(|| key.to_string()),
            limit: limit.limit.clone(),
            source: limit.source.as_str().to_owned(),
            tier: limit.tier.as_deref().map(str::to_owned),
            used: limit.used,
            verdict: Verdict::new(limit.verdict),
        }
    }

    /// Where the number is from, for people.
    pub(crate) fn source(&self) -> &str {
        match &*self.source {
            "override" => "its own",
            "stored_tier" => "its own tier",
            "request_tier" => "tier of the request",
            other => other,
        }
    }
}

impl Verdict {
    fn new(verdict: LimitVerdict) -> Self {
        let (verdict, remaining, reason, wait) = match verdict {
            LimitVerdict::Admitted { remaining } => ("admitted", remaining, None, None),
            LimitVerdict::Rejected {
                reason,
                retry_after,
            } => ("rejected", None, Some(reason.as_str()), retry_after),
            _ => ("unknown", None, None, None),
        };
        Self {
            verdict: verdict.to_owned(),
            remaining,
            reason: reason.map(str::to_owned),
            // Rounded up, so that waiting so long is enough.
            retry_after_ms: wait.map(|wait| wait.as_nanos().div_ceil(1_000_000) as u64),
        }
    }

    pub(crate) fn is_rejected(&self) -> bool {
        self.verdict == "rejected"
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = self.verdict.clone();
        if let Some(reason) = &self.reason {
            text = format!("{text}: {}", reason.replace('_', " "));
        }
        if let Some(remaining) = self.remaining {
            text = format!("{text}, {remaining} more after it");
        }
        if let Some(wait) = self.retry_after_ms {
            let wait = match wait {
                ..10_000 => wait,
                // Rounded up.
                _ => wait.div_ceil(1000) * 1000,
            };
            let wait = humantime::format_duration(Duration::from_millis(wait));
            text = format!("{text}, fits in {wait}");
        }
        text
    }
}

/// A permit is taken before a rate is charged, and of several rates the one with the longest wait is told, as a service
/// does it.
fn now(rows: &[Row]) -> Now {
    let passes = rows.iter().filter(|row| row.sort != "lease");
    let rejected = passes.clone().filter(|row| row.verdict.is_rejected());
    let rejected = rejected.max_by_key(|row| {
        let wait = row.verdict.retry_after_ms;
        // Without a time there is no use in waiting.
        (row.sort == "concurrency", wait.is_none(), wait)
    });
    let least = || {
        let left = passes.filter_map(|row| Some((row.verdict.remaining?, row)));
        left.min_by_key(|(remaining, _)| *remaining)
    };
    let decides = rejected.or_else(|| least().map(|(_, row)| row));
    let verdict = decides.map_or_else(
        || Verdict::new(LimitVerdict::Admitted { remaining: None }),
        |row| row.verdict.clone(),
    );
    Now {
        limit: decides.map(|row| row.name.clone()),
        verdict,
        is_enforced: None,
    }
}
