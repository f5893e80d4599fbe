//! The audit trail of limits.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_admission::LimitChange;

use crate::failure::Failure;
use crate::output::{Output, clean};
use crate::override_json::{OverrideAnswer, OverrideJson, Timestamp};
use crate::server::Server;

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) at: Timestamp,
    /// `None` if an operator accepted the loss of overrides.
    pub(crate) key: Option<String>,
    #[serde(default, deserialize_with = "answered")]
    pub(crate) before: Option<OverrideJson>,
    #[serde(default, deserialize_with = "answered")]
    pub(crate) after: Option<OverrideJson>,
    #[serde(default)]
    pub(crate) author: Option<String>,
    #[serde(default)]
    pub(crate) origin: Option<String>,
    /// Whether the override ended, so that no operator changed it.
    #[serde(default)]
    pub(crate) has_ended: bool,
    /// Whether the answering version cannot read the limit before or after the change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_unreadable: bool,
}

fn answered<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<OverrideJson>, D::Error> {
    let answered: Option<OverrideAnswer> = Option::deserialize(deserializer)?;
    Ok(answered.map(OverrideJson::from))
}

impl From<&LimitChange> for Change {
    fn from(change: &LimitChange) -> Self {
        Self {
            at: Timestamp(change.at),
            key: change.key.as_ref().map(ToString::to_string),
            before: change.before.as_ref().map(OverrideJson::from),
            after: change.after.as_ref().map(OverrideJson::from),
            author: change.author.as_deref().map(str::to_owned),
            origin: change.origin.as_deref().map(str::to_owned),
            has_ended: change.has_ended,
            is_unreadable: change.is_unreadable,
        }
    }
}

impl Change {
    pub(crate) fn line(&self) -> String {
        let brief = |own: &Option<OverrideJson>| {
            own.as_ref().map_or("none".to_owned(), OverrideJson::brief)
        };
        let (before, after) = (brief(&self.before), brief(&self.after));
        let mut line = match &self.key {
            Some(key) => format!("{}  {key}: {before} -> {after}", self.at),
            None => format!("{}  the loss of overrides was accepted", self.at),
        };
        if self.is_unreadable {
            line += ", one of which this version cannot read";
        }
        if self.has_ended {
            line += ", because it ended";
        }
        if let Some(author) = &self.author {
            let _ = write!(line, ", by {author}");
        }
        if let Some(origin) = &self.origin {
            let _ = write!(line, ", from {origin}");
        }
        if let Some(note) = self.after.as_ref().and_then(|own| own.note.as_ref()) {
            let _ = write!(line, ": {note}");
        }
        clean(&line)
    }
}

pub(crate) async fn changes(count: u16, server: &Server, output: &Output) -> Result<(), Failure> {
    let changes = server.changes(count).await?;
    let mut text = String::new();
    for change in &changes {
        text += &change.line();
        text.push('\n');
    }
    if changes.is_empty() {
        text.push_str("no changes");
    }
    output.done(&text, json!({ "changes": changes }))
}
