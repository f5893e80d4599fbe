//! The audit trail of limits.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_admission::LimitChange;

use crate::failure::Failure;
use crate::output::{Output, clean};
use crate::own::{Answered, Own, Time};
use crate::server::Server;

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) at: Time,
    /// `None` when an operator accepted that overrides were lost.
    pub(crate) key: Option<String>,
    #[serde(default, deserialize_with = "answered")]
    pub(crate) before: Option<Own>,
    #[serde(default, deserialize_with = "answered")]
    pub(crate) after: Option<Own>,
    #[serde(default)]
    pub(crate) author: Option<String>,
    #[serde(default)]
    pub(crate) origin: Option<String>,
    /// Whether the override has ended, so that no one changed it.
    #[serde(default)]
    pub(crate) has_ended: bool,
    /// Whether there was or is a limit that the version which answers cannot read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_unreadable: bool,
}

fn answered<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Own>, D::Error> {
    let answered: Option<Answered> = Option::deserialize(deserializer)?;
    Ok(answered.map(Own::from))
}

impl From<&LimitChange> for Change {
    fn from(change: &LimitChange) -> Self {
        Self {
            at: Time(change.at),
            key: change.key.as_ref().map(ToString::to_string),
            before: change.before.as_ref().map(Own::from),
            after: change.after.as_ref().map(Own::from),
            author: change.author.as_deref().map(str::to_owned),
            origin: change.origin.as_deref().map(str::to_owned),
            has_ended: change.has_ended,
            is_unreadable: change.is_unreadable,
        }
    }
}

impl Change {
    pub(crate) fn line(&self) -> String {
        let brief = |own: &Option<Own>| own.as_ref().map_or("none".to_owned(), Own::brief);
        let (before, after) = (brief(&self.before), brief(&self.after));
        let mut line = match &self.key {
            Some(key) => format!("{}  {key}: {before} -> {after}", self.at),
            None => format!("{}  the loss of overrides was accepted", self.at),
        };
        if self.is_unreadable {
            line += ", of which one cannot be read by this version";
        }
        if self.has_ended {
            line += ", as it ended";
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
        text.push_str("no limit was changed");
    }
    output.done(&text, json!({ "changes": changes }))
}
