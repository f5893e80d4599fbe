//! The response to `POST /explain`: the limits of a request, the list entry before them, and the verdict.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tower_admission::{KeyName, LimitExplanation, LimitVerdict, ListEntry, Listing, Reason};

use super::activity::StoreStatusJson;
use super::groups::{GUARD, RequestGroup};
use super::replica::Replica;

#[derive(Serialize)]
pub(super) struct ExplanationJson<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<StoreStatusJson>,
    pub(super) key: &'a str,
    pub(super) address: Option<&'a str>,
    pub(super) limit: Option<String>,
    /// The list entry that decides before all limits.
    pub(super) listed: Option<ListEntryJson<'a>>,
    /// Whether the limits are those of one path, or of all paths. No single request passes the limits of all paths.
    pub(super) scope: ExplanationScope,
    /// Absent without a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) groups: Option<Vec<GroupJson<'a>>>,
    pub(super) limits: Vec<ExplainedLimitJson<'a>>,
    /// The limits that depend on the unknown address of the client, and `lists`.
    pub(super) address_limits: Vec<&'a str>,
    /// `None` if the verdict depends on the unknown path.
    pub(super) now: Option<NextVerdictJson<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ExplanationScope {
    Path,
    AllPaths,
}

/// An entry of an allow or deny list.
#[derive(Serialize)]
pub(super) struct ListEntryJson<'a> {
    key: &'a str,
    list: &'static str,
    source: &'static str,
    /// In seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct GroupJson<'a> {
    name: &'a str,
    enforce: u8,
    is_excluded: bool,
}

/// One limit.
#[derive(Serialize)]
pub(super) struct ExplainedLimitJson<'a> {
    name: &'a str,
    sort: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    key: Option<&'a str>,
    limit: &'a str,
    source: &'static str,
    tier: Option<&'a str>,
    used: Option<u64>,
    counted_in: &'static str,
    /// Whether the next request does not reach this limit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_skipped: bool,
    #[serde(flatten)]
    verdict: VerdictJson,
}

#[derive(Serialize)]
struct VerdictJson {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// The verdict on the next request.
#[derive(Serialize)]
pub(super) struct NextVerdictJson<'a> {
    /// The limit that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(flatten)]
    verdict: VerdictJson,
    /// Whether the rejection is enforced for this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_enforced: Option<bool>,
}

/// A limit that applies to a key, with its group.
pub(super) struct AppliedLimit<'a> {
    pub(super) limit: LimitExplanation,
    pub(super) key: &'a KeyName,
    pub(super) group: Option<&'a RequestGroup>,
    /// Whether the next request does not reach the limit.
    pub(super) is_skipped: bool,
}

impl<'a> From<&'a ListEntry> for ListEntryJson<'a> {
    fn from(entry: &'a ListEntry) -> Self {
        let end = entry
            .end
            .and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        Self {
            key: entry.key.as_str(),
            list: entry.listing.as_str(),
            source: entry.source.as_str(),
            end: end.map(|end| end.as_secs()),
        }
    }
}

impl<'a> From<&'a RequestGroup> for GroupJson<'a> {
    fn from(group: &'a RequestGroup) -> Self {
        Self {
            name: group.name(),
            enforce: group.percent(),
            is_excluded: group.is_excluded(),
        }
    }
}

impl<'a> From<&'a AppliedLimit<'_>> for ExplainedLimitJson<'a> {
    fn from(applied: &'a AppliedLimit<'_>) -> Self {
        let limit = &applied.limit;
        Self {
            name: &limit.name,
            sort: limit.sort,
            group: applied.group.map(RequestGroup::name),
            key: (!limit.is_total).then(|| applied.key.as_str()),
            limit: &limit.limit,
            source: limit.source.as_str(),
            tier: limit.tier.as_deref(),
            used: limit.used,
            counted_in: limit.counted_in.as_str(),
            is_skipped: applied.is_skipped,
            verdict: limit.verdict.into(),
        }
    }
}

impl From<LimitVerdict> for VerdictJson {
    fn from(verdict: LimitVerdict) -> Self {
        let none = |verdict| Self {
            verdict,
            remaining: None,
            reason: None,
            retry_after_ms: None,
        };
        match verdict {
            LimitVerdict::Admitted { remaining } => Self {
                remaining,
                ..none("admitted")
            },
            LimitVerdict::Rejected {
                reason,
                retry_after,
            } => Self {
                reason: Some(reason.as_str()),
                // Rounded up, so that the wait suffices.
                retry_after_ms: retry_after.map(|wait| wait.as_nanos().div_ceil(1_000_000) as u64),
                ..none("rejected")
            },
            _ => none("unknown"),
        }
    }
}

/// The order in which limits decide about the next request. A limit that is not enforced decides only if no other limit
/// rejects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum VerdictRank {
    /// Admits this number of further requests, or any number.
    Admits(std::cmp::Reverse<Option<u64>>),
    /// Would reject, but is not enforced.
    WouldReject(RejectionRank),
    Unknown,
    Rejects(RejectionRank),
}

/// The layers acquire a permit first, then check the guard, then charge rates. Of several rates the one with the longest
/// wait decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RejectionRank {
    is_permit: bool,
    is_guard: bool,
    /// Without a wait, no retry is admitted.
    never: bool,
    wait: Option<Duration>,
}

impl AppliedLimit<'_> {
    /// Whether the next request reaches the limit.
    fn is_reached(&self) -> bool {
        self.limit.sort != "lease" && !self.is_skipped
    }

    fn is_enforced(&self) -> Option<bool> {
        Some(self.group?.enforces(&self.key.key()))
    }

    fn rank(&self) -> VerdictRank {
        match self.limit.verdict {
            LimitVerdict::Rejected { retry_after, .. } => {
                let rejecting = RejectionRank {
                    is_permit: self.limit.sort == "concurrency",
                    is_guard: self.limit.sort == GUARD,
                    never: retry_after.is_none(),
                    wait: retry_after,
                };
                match self.is_enforced() {
                    Some(false) => VerdictRank::WouldReject(rejecting),
                    _ => VerdictRank::Rejects(rejecting),
                }
            }
            // No number means no bound.
            LimitVerdict::Admitted { remaining } => {
                VerdictRank::Admits(std::cmp::Reverse(remaining.or(Some(u64::MAX))))
            }
            _ => VerdictRank::Unknown,
        }
    }

    fn admits(&self) -> bool {
        matches!(self.limit.verdict, LimitVerdict::Admitted { .. })
    }
}

/// The verdict on the next request. `None` if it depends on an unknown path.
pub(super) fn next_verdict<'a>(
    applied: &'a [AppliedLimit<'_>],
    listed: Option<&ListEntry>,
    scope: ExplanationScope,
    knows_paths: bool,
) -> Option<NextVerdictJson<'a>> {
    if let Some(banned) = listed.filter(|entry| entry.listing == Listing::Denied) {
        let verdict = LimitVerdict::Rejected {
            reason: Reason::Banned,
            retry_after: banned.ends_in,
        };
        return Some(NextVerdictJson {
            limit: None,
            verdict: verdict.into(),
            is_enforced: Some(true),
        });
    }
    let passed = || applied.iter().filter(|applied| applied.is_reached());
    if scope == ExplanationScope::AllPaths {
        let first = passed().next().map(|applied| &applied.limit.name);
        let is_one = passed().all(|applied| Some(&applied.limit.name) == first);
        if knows_paths || !(is_one || passed().all(AppliedLimit::admits)) {
            return None;
        }
    }
    let decides = passed().max_by_key(|applied| applied.rank());
    // A limit without a number does not limit.
    let decides = decides
        .filter(|applied| applied.limit.verdict != LimitVerdict::Admitted { remaining: None });
    let verdict = decides.map_or(LimitVerdict::Admitted { remaining: None }, |applied| {
        applied.limit.verdict
    });
    let rejects = matches!(verdict, LimitVerdict::Rejected { .. });
    Some(NextVerdictJson {
        limit: decides.map(|applied| &*applied.limit.name),
        verdict: verdict.into(),
        is_enforced: decides
            .filter(|_| rejects)
            .and_then(AppliedLimit::is_enforced),
    })
}
