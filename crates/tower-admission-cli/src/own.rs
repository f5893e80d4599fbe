//! An override as it is shown, and as the admin endpoints have it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use tower_admission::Override;

use crate::failure::Failure;

/// The override of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Own {
    pub(crate) limit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) changed_at: Option<Time>,
}

/// An override in an answer: all of it, or its numbers alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answered {
    Limit(String),
    Own(Own),
}

/// A time in whole seconds: RFC 3339, or a number of seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) SystemTime);

impl Own {
    fn limit(limit: String) -> Self {
        Self {
            limit,
            end: None,
            note: None,
            author: None,
            changed_at: None,
        }
    }

    /// As the admin endpoints take it.
    pub(crate) fn to_json(&self) -> Value {
        let mut json = json!({ "limit": self.limit });
        if let Some(Time(end)) = self.end {
            let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
            json["end"] = json!(end.as_secs());
        }
        if let Some(note) = &self.note {
            json["note"] = json!(note);
        }
        json
    }

    /// As the library has it.
    pub(crate) fn to_override(&self) -> Result<Override, Failure> {
        let limit = self.limit.parse().map_err(|error| {
            Failure::refused(format!("{:?} cannot be read: {error}", self.limit))
        })?;
        let mut own = Override::new(limit);
        if let Some(Time(end)) = self.end {
            own = own.with_end(end);
        }
        if let Some(note) = &self.note {
            own = own.with_note(note);
        }
        if let Some(author) = &self.author {
            own = own.with_author(author);
        }
        Ok(own)
    }

    /// The numbers, and the end if there is one.
    pub(crate) fn brief(&self) -> String {
        match self.end {
            Some(end) => format!("{} until {end}", self.limit),
            None => self.limit.clone(),
        }
    }

    /// Who set it, when and why, as far as that is known.
    pub(crate) fn noted(&self) -> Option<String> {
        let mut noted = match (&self.author, self.changed_at) {
            (Some(author), Some(at)) => format!("set by {author} at {at}"),
            (Some(author), None) => format!("set by {author}"),
            (None, Some(at)) => format!("set at {at}"),
            (None, None) => String::new(),
        };
        if let Some(note) = &self.note {
            noted += if noted.is_empty() { "note: " } else { ": " };
            noted += note;
        }
        (!noted.is_empty()).then_some(noted)
    }

    /// The command that sets it, for a shell.
    pub(crate) fn command(&self, key: &str) -> String {
        let (key, limit) = (quoted(key), quoted(&self.limit));
        let mut command = format!("tower-admission limits set {key} {limit}");
        if let Some(end) = self.end {
            command += &format!(" --until {end}");
        }
        if let Some(note) = &self.note {
            command += &format!(" --note {}", quoted(note));
        }
        command
    }

    /// Its parts: each with the name of the limit that it is about, if it has one.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        // No name has a comma in it.
        let parts = self.limit.split(',').map(str::trim);
        parts.map(|part| (part.split_once('=').map(|(name, _)| name.trim()), part))
    }

    /// Whether both have the same effect and the same note.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.limit, self.end, &self.note) == (&other.limit, other.end, &other.note)
    }
}

impl From<&Override> for Own {
    fn from(own: &Override) -> Self {
        Self {
            limit: own.limit().to_string(),
            end: own.end().map(Time),
            note: own.note().map(str::to_owned),
            author: own.author().map(str::to_owned),
            changed_at: own.changed_at().map(Time),
        }
    }
}

impl From<Answered> for Own {
    fn from(answered: Answered) -> Self {
        match answered {
            Answered::Limit(limit) => Self::limit(limit),
            Answered::Own(own) => own,
        }
    }
}

/// A word of a command.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":._/=#@%+-".contains(&byte);
    match text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The wall clock, by which limits end.
#[expect(
    clippy::disallowed_methods,
    reason = "a program that runs for a moment has no other clock"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Seconds(u64),
            Text(String),
        }
        let time = match Written::deserialize(deserializer)? {
            // Up to the last second of the year 9999, which all systems can represent.
            Written::Seconds(seconds) => {
                UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
            }
            Written::Text(text) => {
                humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?
            }
        };
        Ok(Self(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_quoted() {
        let mut own = Own::limit("20/s burst 50, tier=pro".to_owned());
        own.note = Some("anna's $(plan)".to_owned());
        assert_eq!(
            own.command("bearer#00ff"),
            "tower-admission limits set bearer#00ff '20/s burst 50, tier=pro' --note 'anna'\\''s $(plan)'"
        );
        let parts: Vec<_> = own.parts().collect();
        assert_eq!(parts, [(None, "20/s burst 50"), (Some("tier"), "tier=pro")]);
    }

    #[test]
    fn a_time_is_read_as_text_and_as_seconds() {
        for json in ["1796083200", "\"2026-12-01T00:00:00Z\""] {
            let time: Time = serde_json::from_str(json).unwrap();
            assert_eq!(
                serde_json::to_string(&time).unwrap(),
                "\"2026-12-01T00:00:00Z\""
            );
        }
        assert!(serde_json::from_str::<Time>("\"soon\"").is_err());
    }
}
