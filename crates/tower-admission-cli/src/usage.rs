//! Usage of limits, in the JSON of the admin endpoints and in text.

use serde::{Deserialize, Serialize};

use crate::explanation::ListEntryJson;
use crate::output::clean;
use crate::override_json::Timestamp;

/// The usage of one limit, in the JSON of the admin endpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) name: String,
    /// The tier, if the limit belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tier: Option<String>,
    pub(crate) sort: String,
    pub(crate) used: u64,
    /// The part of it that the answering process holds, if it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) here: Option<u64>,
    /// Where the usage is counted. A service of an older version does not send this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counted_in: Option<String>,
    #[serde(default)]
    pub(crate) limit: Option<u64>,
    /// Whether the limit is an override. `None` for totals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) is_override: Option<bool>,
    /// The default of this limit, if it is known.
    #[serde(skip)]
    pub(crate) default: Option<u64>,
}

/// The usage of a key, or of the limits over all keys.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct UsageReport {
    /// The override of the key.
    #[serde(default)]
    pub(crate) limit: Option<String>,
    /// The list entry that decides about the key before any limit.
    #[serde(default)]
    pub(crate) listed: Option<ListEntryJson>,
    pub(crate) usage: Vec<Usage>,
    /// The answering process, if a service answers.
    #[serde(default)]
    pub(crate) replica: Option<Replica>,
    /// The status of its store.
    #[serde(default)]
    pub(crate) store: Option<Store>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Replica {
    pub(crate) host: String,
    pub(crate) pid: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Store {
    pub(crate) status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
}

impl UsageReport {
    /// Where the usage is counted, for people.
    pub(crate) fn counted(&self, usage: &Usage) -> Option<String> {
        let replica = self.replica.as_ref();
        let replica =
            replica.map(|replica| clean(&format!("{} (pid {})", replica.host, replica.pid)));
        let replica = replica.as_deref().unwrap_or("one process");
        Some(match (usage.counted_in.as_deref()?, usage.here) {
            ("store", Some(here)) => format!("in the store, {here} of them by {replica}"),
            ("store", None) => "in the store".to_owned(),
            _ => format!("in {replica}"),
        })
    }

    /// The warning for numbers that are incomplete because the store does not answer.
    pub(crate) fn warning(&self) -> Option<String> {
        self.store.as_ref().and_then(Store::warning)
    }
}

impl Store {
    /// What is missing while it does not answer.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.status != "failing" {
            return None;
        }
        let mode = self.failure_mode.as_deref().unwrap_or("unknown");
        let cause = self.cause.as_deref().unwrap_or("unknown");
        Some(format!(
            "the store of the service does not answer ({cause}), so its failure mode decides ({mode}). \
                Usage in the store is not shown"
        ))
    }
}

/// How near it is to being refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Low,
    /// From 70 percent.
    High,
    /// From 90 percent.
    Highest,
    /// At the limit, where the next is refused.
    Full,
}

impl Usage {
    /// What it is called in a line for people; nothing for one without a name.
    pub(crate) fn title(&self) -> String {
        match &self.tier {
            Some(tier) => clean(&format!("{} ({tier})", self.name)),
            None => clean(&self.name),
        }
    }

    pub(crate) fn level(&self) -> Level {
        let Some(limit) = self.limit else {
            return Level::Low;
        };
        let (used, limit) = (u128::from(self.used), u128::from(limit));
        if used >= limit {
            Level::Full
        } else if used * 10 >= limit * 9 {
            Level::Highest
        } else if used * 10 >= limit * 7 {
            Level::High
        } else {
            Level::Low
        }
    }

    /// Rounded down, so that 100 is at the limit and nothing below it is; `None` where there is none.
    pub(crate) fn percent(&self) -> Option<u128> {
        let limit = u128::from(self.limit?);
        let percent = (u128::from(self.used) * 100).checked_div(limit);
        Some(percent.unwrap_or(100))
    }

    /// Whether it would be refused with what everybody has.
    pub(crate) fn is_above_default(&self) -> bool {
        self.is_override == Some(true) && self.default.is_some_and(|default| self.used >= default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used: u64, limit: Option<u64>) -> Usage {
        Usage {
            name: String::new(),
            tier: None,
            sort: String::new(),
            used,
            here: None,
            counted_in: None,
            limit,
            is_override: None,
            default: None,
        }
    }

    #[test]
    fn levels_begin_where_they_say() {
        for (used, limit, percent, level) in [
            (0, 10, 0, Level::Low),
            (699, 1000, 69, Level::Low),
            (7, 10, 70, Level::High),
            (899, 1000, 89, Level::High),
            (9, 10, 90, Level::Highest),
            (999, 1000, 99, Level::Highest),
            (10, 10, 100, Level::Full),
            (25, 10, 250, Level::Full),
            (0, 0, 100, Level::Full),
            (u64::MAX - 1, u64::MAX, 99, Level::Highest),
        ] {
            let usage = usage(used, Some(limit));
            assert_eq!(usage.level(), level, "{used} of {limit}");
            assert_eq!(usage.percent(), Some(percent), "{used} of {limit}");
        }
        assert_eq!(usage(5, None).level(), Level::Low);
        assert_eq!(usage(5, None).percent(), None);
    }
}
