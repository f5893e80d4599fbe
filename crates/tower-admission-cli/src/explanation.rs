//! The limits that apply to a key, in the JSON of the admin endpoints.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_admission::{KeyName, LimitExplanation, LimitVerdict, ListEntry, Listing, Reason};

use crate::override_json::Timestamp;
use crate::usage::{Replica, Store};

/// The limits that apply, and the decision for a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Explanation {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) address: Option<String>,
    /// The override of the key.
    #[serde(default)]
    pub(crate) limit: Option<String>,
    /// The list entry that decides before any limit.
    #[serde(default)]
    pub(crate) listed: Option<ListEntryJson>,
    /// `path` or `all_paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<Vec<Group>>,
    pub(crate) limits: Vec<LimitRow>,
    /// The limits that depend on the client address, which is unknown here, and `lists`.
    #[serde(default)]
    pub(crate) address_limits: Vec<String>,
    /// `None` if the path decides, which is unknown here.
    #[serde(default)]
    pub(crate) now: Option<NextRequest>,
    /// What may decide as well but is unknown to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_known: Option<String>,
    /// The answering process, if a service answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<Replica>,
    /// The status of its store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<Store>,
}

/// An entry of an allow or deny list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ListEntryJson {
    pub(crate) key: String,
    /// `deny` or `allow`.
    pub(crate) list: String,
    /// `override` or `file`.
    pub(crate) source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<Timestamp>,
}

/// A group of the configuration that selects the request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) enforce: u8,
    pub(crate) is_excluded: bool,
}

/// One limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LimitRow {
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
    /// Where the usage is counted. A service of an older version does not send this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counted_in: Option<String>,
    /// Whether the next request does not reach this limit, or is exempt from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_skipped: bool,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// The decision for a request.
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

/// The decision for the next request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NextRequest {
    /// The limit that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<String>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) is_enforced: Option<bool>,
}

impl Explanation {
    /// An explanation of limits on one key, without the configuration of a service.
    pub(crate) fn new(
        key: &KeyName,
        own: Option<String>,
        limits: &[LimitExplanation],
        listed: Option<&ListEntry>,
    ) -> Self {
        let rows = limits.iter().map(|limit| LimitRow::new(key, limit, listed));
        let rows: Vec<_> = rows.collect();
        let now = now(&rows, listed);
        Self {
            key: key.to_string(),
            address: None,
            limit: own,
            listed: listed.map(ListEntryJson::from),
            scope: Some("all_paths".to_owned()),
            groups: None,
            limits: rows,
            address_limits: Vec::new(),
            now,
            not_known: None,
            replica: None,
            store: None,
        }
    }

    /// The limits that one process counts alone, for people. `None` if a store counts all.
    pub(crate) fn counted(&self) -> Option<String> {
        let replica = self.replica.as_ref()?;
        // A store that does not answer counts nothing.
        let counted = self.limits.iter().filter(|row| row.used.is_some());
        let mut alone = counted.clone().map(LimitRow::is_counted_alone);
        let what = match (alone.clone().any(|is| is), alone.all(|is| is)) {
            (false, _) => return None,
            (true, true) => "everything".to_owned(),
            (true, false) => {
                let names = counted.filter(|row| row.is_counted_alone());
                let mut names: Vec<_> = names.map(|row| &*row.name).collect();
                names.dedup();
                names.join(", ")
            }
        };
        Some(format!(
            "only {} (pid {}) counts: {what}. Other replicas count separately",
            replica.host, replica.pid
        ))
    }

    /// The limits in one line.
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

impl From<&ListEntry> for ListEntryJson {
    fn from(entry: &ListEntry) -> Self {
        Self {
            key: entry.key.to_string(),
            list: entry.listing.as_str().to_owned(),
            source: entry.source.as_str().to_owned(),
            end: entry.end.map(Timestamp),
        }
    }
}

impl ListEntryJson {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let what = match &*self.list {
            "deny" => "banned",
            _ => "exempt from rates and from limits per key",
        };
        let end = self
            .end
            .map_or(String::new(), |end| format!(" until {end}"));
        let source = match &*self.source {
            "file" => "from the file",
            _ => "set at run time",
        };
        format!("{what} by {}{end} ({source})", self.key)
    }
}

impl LimitRow {
    fn new(key: &KeyName, limit: &LimitExplanation, listed: Option<&ListEntry>) -> Self {
        let is_capacity = limit.is_total && limit.sort == "concurrency";
        let is_exempt = |entry: &ListEntry| entry.listing == Listing::Exempt;
        Self {
            // Lists do not apply to leases, and exempt requests count in the total capacity.
            is_skipped: limit.sort != "lease"
                && listed.is_some_and(|entry| !(is_exempt(entry) && is_capacity)),
            name: limit.name.to_string(),
            sort: limit.sort.to_owned(),
            group: None,
            key: (!limit.is_total).then(|| key.to_string()),
            limit: limit.limit.clone(),
            source: limit.source.as_str().to_owned(),
            tier: limit.tier.as_deref().map(str::to_owned),
            used: limit.used,
            counted_in: Some(limit.counted_in.as_str().to_owned()),
            verdict: Verdict::new(limit.verdict),
        }
    }

    fn is_counted_alone(&self) -> bool {
        self.counted_in.as_deref() == Some("this process")
    }

    /// The source of the number, for people.
    pub(crate) fn source(&self) -> &str {
        match &*self.source {
            "override" => "override",
            "stored_tier" => "stored tier",
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
            // Round up, so that the wait is long enough.
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

/// The decision over all limits, as a service makes it: permits come before rates, and of several rejecting rates the one
/// with the longest wait is reported.
///
/// `None` if the decision depends on the limits that a request passes.
fn now(rows: &[LimitRow], listed: Option<&ListEntry>) -> Option<NextRequest> {
    if let Some(banned) = listed.filter(|entry| entry.listing == Listing::Denied) {
        return Some(NextRequest {
            limit: None,
            verdict: Verdict::new(LimitVerdict::Rejected {
                reason: Reason::Banned,
                retry_after: banned.ends_in,
            }),
            is_enforced: Some(true),
        });
    }
    let passes = rows
        .iter()
        .filter(|row| row.sort != "lease" && !row.is_skipped);
    let first = passes.clone().next().map(|row| &row.name);
    let is_one = passes.clone().all(|row| Some(&row.name) == first);
    if !is_one && passes.clone().any(|row| row.verdict.is_rejected()) {
        return None;
    }
    let rejected = passes.clone().filter(|row| row.verdict.is_rejected());
    let rejected = rejected.max_by_key(|row| {
        let wait = row.verdict.retry_after_ms;
        // A rejection without a time cannot be waited for.
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
    Some(NextRequest {
        limit: decides.map(|row| row.name.clone()),
        verdict,
        is_enforced: None,
    })
}
