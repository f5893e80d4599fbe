//! What `POST /explain` answers: the limits of a request, the list entry that goes before them, and what decides.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tower_admission::{KeyName, LimitExplanation, LimitVerdict, ListEntry, Listing, Reason};

use super::groups::{GUARD, RequestGroup};
use super::now::Store;
use super::replica::Replica;

#[derive(Serialize)]
pub(super) struct Explanation<'a> {
    pub(super) replica: &'a Replica,
    pub(super) store: Option<Store>,
    pub(super) key: &'a str,
    pub(super) address: Option<&'a str>,
    pub(super) limit: Option<String>,
    /// The entry of a list that decides, before any limit.
    pub(super) listed: Option<Listed<'a>>,
    /// Whether the limits are those of a path, or of all paths, which no single request passes.
    pub(super) scope: Scope,
    /// Absent where no path was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) groups: Option<Vec<Group<'a>>>,
    pub(super) limits: Vec<Limit<'a>>,
    /// What depends on the client's address, which was not given: limits, and `lists`.
    pub(super) address_limits: Vec<&'a str>,
    /// `None` where that depends on the path, which was not given.
    pub(super) now: Option<Now<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    Path,
    AllPaths,
}

/// An entry of an allow or deny list.
#[derive(Serialize)]
pub(super) struct Listed<'a> {
    key: &'a str,
    list: &'static str,
    source: &'static str,
    /// In seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Group<'a> {
    name: &'a str,
    enforce: u8,
    is_excluded: bool,
}

/// One limit.
#[derive(Serialize)]
pub(super) struct Limit<'a> {
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
    /// Whether the next request does not get to this limit, or is exempt from it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_skipped: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Serialize)]
struct Verdict {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// What the next request would get.
#[derive(Serialize)]
pub(super) struct Now<'a> {
    /// The limit that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(flatten)]
    verdict: Verdict,
    /// Whether a rejection is enforced for this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_enforced: Option<bool>,
}

/// A limit that applies, to which key, in which group.
pub(super) struct Applied<'a> {
    pub(super) limit: LimitExplanation,
    pub(super) key: &'a KeyName,
    pub(super) group: Option<&'a RequestGroup>,
    /// Whether the next request does not get to it, or is exempt from it.
    pub(super) is_skipped: bool,
}

impl<'a> From<&'a ListEntry> for Listed<'a> {
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

impl<'a> From<&'a RequestGroup> for Group<'a> {
    fn from(group: &'a RequestGroup) -> Self {
        Self {
            name: group.name(),
            enforce: group.percent(),
            is_excluded: group.is_excluded(),
        }
    }
}

impl<'a> From<&'a Applied<'_>> for Limit<'a> {
    fn from(applied: &'a Applied<'_>) -> Self {
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

impl From<LimitVerdict> for Verdict {
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
                // Rounded up, so that waiting so long is enough.
                retry_after_ms: retry_after.map(|wait| wait.as_nanos().div_ceil(1_000_000) as u64),
                ..none("rejected")
            },
            _ => none("unknown"),
        }
    }
}

/// What decides about the next request. A limit that is not enforced does so only where nothing else is left to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It admits so many more requests, or any number.
    Admits(std::cmp::Reverse<Option<u64>>),
    /// It would reject, and is not enforced.
    Tried(Rejecting),
    Unknown,
    Rejects(Rejecting),
}

/// A permit is taken before the guard is asked, and that before a rate is charged. Of several rates the one with the
/// longest wait is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rejecting {
    is_permit: bool,
    is_guard: bool,
    /// Without a time there is no use in waiting.
    never: bool,
    wait: Option<Duration>,
}

impl Applied<'_> {
    /// Whether the next request gets to it.
    fn is_passed(&self) -> bool {
        self.limit.sort != "lease" && !self.is_skipped
    }

    fn is_enforced(&self) -> Option<bool> {
        Some(self.group?.enforces(&self.key.key()))
    }

    fn rank(&self) -> Rank {
        match self.limit.verdict {
            LimitVerdict::Rejected { retry_after, .. } => {
                let rejecting = Rejecting {
                    is_permit: self.limit.sort == "concurrency",
                    is_guard: self.limit.sort == GUARD,
                    never: retry_after.is_none(),
                    wait: retry_after,
                };
                match self.is_enforced() {
                    Some(false) => Rank::Tried(rejecting),
                    _ => Rank::Rejects(rejecting),
                }
            }
            // Without a number it admits more than any number.
            LimitVerdict::Admitted { remaining } => {
                Rank::Admits(std::cmp::Reverse(remaining.or(Some(u64::MAX))))
            }
            _ => Rank::Unknown,
        }
    }

    fn admits(&self) -> bool {
        matches!(self.limit.verdict, LimitVerdict::Admitted { .. })
    }
}

/// What the next request would get. `None` where its path decides that and is not known.
pub(super) fn now<'a>(
    applied: &'a [Applied<'_>],
    listed: Option<&ListEntry>,
    scope: Scope,
    knows_paths: bool,
) -> Option<Now<'a>> {
    if let Some(banned) = listed.filter(|entry| entry.listing == Listing::Denied) {
        let verdict = LimitVerdict::Rejected {
            reason: Reason::Banned,
            retry_after: banned.ends_in,
        };
        return Some(Now {
            limit: None,
            verdict: verdict.into(),
            is_enforced: Some(true),
        });
    }
    let passed = || applied.iter().filter(|applied| applied.is_passed());
    if scope == Scope::AllPaths {
        let first = passed().next().map(|applied| &applied.limit.name);
        let is_one = passed().all(|applied| Some(&applied.limit.name) == first);
        if knows_paths || !(is_one || passed().all(Applied::admits)) {
            return None;
        }
    }
    let decides = passed().max_by_key(|applied| applied.rank());
    // One without a number does not limit.
    let decides = decides
        .filter(|applied| applied.limit.verdict != LimitVerdict::Admitted { remaining: None });
    let verdict = decides.map_or(LimitVerdict::Admitted { remaining: None }, |applied| {
        applied.limit.verdict
    });
    let rejects = matches!(verdict, LimitVerdict::Rejected { .. });
    Some(Now {
        limit: decides.map(|applied| &*applied.limit.name),
        verdict: verdict.into(),
        is_enforced: decides.filter(|_| rejects).and_then(Applied::is_enforced),
    })
}
