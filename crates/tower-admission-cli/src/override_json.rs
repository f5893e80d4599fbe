//! An override in JSON, as the admin endpoints send it, and in text.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use tower_admission::Override;

use crate::failure::Failure;

/// The override of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OverrideJson {
    pub(crate) limit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) changed_at: Option<Timestamp>,
}

/// An override in an answer: the whole override, or only its limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OverrideAnswer {
    Limit(String),
    OverrideJson(OverrideJson),
}

/// A time in whole seconds: RFC 3339, or a number of seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(pub(crate) SystemTime);

impl OverrideJson {
    fn limit(limit: String) -> Self {
        Self {
            limit,
            end: None,
            note: None,
            author: None,
            changed_at: None,
        }
    }

    /// The JSON that the admin endpoints accept.
    pub(crate) fn to_json(&self) -> Value {
        let mut json = json!({ "limit": self.limit });
        if let Some(Timestamp(end)) = self.end {
            let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
            json["end"] = json!(end.as_secs());
        }
        if let Some(note) = &self.note {
            json["note"] = json!(note);
        }
        json
    }

    /// The override of the library.
    pub(crate) fn to_override(&self) -> Result<Override, Failure> {
        let limit = self.limit.parse().map_err(|error| {
            Failure::rejected(format!("{:?} cannot be read: {error}", self.limit))
        })?;
        let mut own = Override::new(limit);
        if let Some(Timestamp(end)) = self.end {
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

    /// The limit, with its end if there is one.
    pub(crate) fn brief(&self) -> String {
        match self.end {
            Some(end) => format!("{} until {end}", self.limit),
            None => self.limit.clone(),
        }
    }

    /// The author, the time and the note, if known.
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

    /// The shell command that sets this override.
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

    /// The parts of the limit, each with the name of its limit if it has one.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        // Names have no comma.
        let parts = self.limit.split(',').map(str::trim);
        parts.map(|part| (part.split_once('=').map(|(name, _)| name.trim()), part))
    }

    /// Whether both have the same effect and the same note.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.limit, self.end, &self.note) == (&other.limit, other.end, &other.note)
    }
}

impl From<&Override> for OverrideJson {
    fn from(own: &Override) -> Self {
        Self {
            limit: own.limit().to_string(),
            end: own.end().map(Timestamp),
            note: own.note().map(str::to_owned),
            author: own.author().map(str::to_owned),
            changed_at: own.changed_at().map(Timestamp),
        }
    }
}

impl From<OverrideAnswer> for OverrideJson {
    fn from(answered: OverrideAnswer) -> Self {
        match answered {
            OverrideAnswer::Limit(limit) => Self::limit(limit),
            OverrideAnswer::OverrideJson(own) => own,
        }
    }
}

/// Quotes a word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":._/=#@%+-".contains(&byte);
    match text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The wall clock. Limits end by it.
#[expect(
    clippy::disallowed_methods,
    reason = "a short-lived program has no other clock"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Seconds(u64),
            Text(String),
        }
        let time = match Written::deserialize(deserializer)? {
            // At most the last second of the year 9999, which all systems can represent.
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
        let mut own = OverrideJson::limit("20/s burst 50, tier=pro".to_owned());
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
            let time: Timestamp = serde_json::from_str(json).unwrap();
            assert_eq!(
                serde_json::to_string(&time).unwrap(),
                "\"2026-12-01T00:00:00Z\""
            );
        }
        assert!(serde_json::from_str::<Timestamp>("\"soon\"").is_err());
    }
}
