//! An override with its end, note and author, and its stored form.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::limit::Limit;

/// The override of a key: a [`Limit`], with an optional end, note, author and time.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_admission::{Limits, Override};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = Limits::new();
/// let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
/// let banned = Override::new("deny all".parse()?)
///     .with_end(in_an_hour)
///     .with_note("ticket 4711");
/// limits
///     .edit(&"ip:192.0.2.1".parse()?)
///     .author("anna")
///     .set(banned)
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// # The end
///
/// An end is in whole seconds of the wall clock, rounded up, because replicas and restarts share no
/// other clock. From its end on, an override has no effect, and the key has its default again.
/// Decisions check the end themselves: no background task is needed.
///
/// A wall clock may step forward for a moment. So an ended override is kept, and applies again if
/// the clock is set back to before the end. In memory, a run-time override is kept for an hour of
/// monotonic time, and an override of the [configuration](super::Limits::set_base) until it is
/// replaced. A shared store deletes an override when the store's own clock has reached the end. A
/// process whose clock is ahead of the store's logs a warning every ten minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    limit: Limit,
    /// In seconds since the Unix epoch, like all times here.
    end: Option<u64>,
    // Most overrides have none of these.
    notes: Option<Arc<OverrideNotes>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OverrideNotes {
    note: Option<Box<str>>,
    author: Option<Box<str>>,
    changed_at: Option<u64>,
}

impl Override {
    /// The maximum length of a note or an author, in bytes. Longer text is truncated.
    pub const MAX_NOTE: usize = 256;

    /// Creates an override without an end and a note.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self {
            limit,
            end: None,
            notes: None,
        }
    }

    /// Sets the end. Default: none.
    #[must_use]
    pub fn with_end(mut self, end: SystemTime) -> Self {
        let since = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.end = Some(whole_seconds(since));
        self
    }

    /// Sets the end to `time` after `from`, which is a time since the Unix epoch.
    pub(super) fn lasting(mut self, time: Duration, from: Duration) -> Self {
        self.end = Some(whole_seconds(from.saturating_add(time)));
        self
    }

    /// Sets a note for other operators, up to [`MAX_NOTE`](Self::MAX_NOTE) bytes. Clients never see
    /// it. Default: none.
    #[must_use]
    pub fn with_note(self, note: &str) -> Self {
        let note = line(note);
        self.noted(|notes| notes.note = note)
    }

    /// Sets the author, up to [`MAX_NOTE`](Self::MAX_NOTE) bytes. The author of an
    /// [edit](super::LimitEdit::author) replaces it. Default: unknown.
    #[must_use]
    pub fn with_author(self, author: &str) -> Self {
        let author = line(author);
        self.noted(|notes| notes.author = author)
    }

    /// Sets the author and the time of the change.
    pub(super) fn made(self, author: Option<&str>, at: u64) -> Self {
        let author = author.and_then(line);
        self.noted(|notes| {
            notes.author = author;
            notes.changed_at = Some(at);
        })
    }

    fn noted(mut self, note: impl FnOnce(&mut OverrideNotes)) -> Self {
        let mut notes = self
            .notes
            .map_or_else(OverrideNotes::default, Arc::unwrap_or_clone);
        note(&mut notes);
        self.notes = (notes != OverrideNotes::default()).then(|| Arc::new(notes));
        self
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// The end, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<SystemTime> {
        self.end.map(time)
    }

    /// The note.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.notes.as_ref()?.note.as_deref()
    }

    /// The author, if one was [set](super::LimitEdit::author).
    #[must_use]
    pub fn author(&self) -> Option<&str> {
        self.notes.as_ref()?.author.as_deref()
    }

    /// The time at which it was set.
    #[must_use]
    pub fn changed_at(&self) -> Option<SystemTime> {
        self.notes.as_ref()?.changed_at.map(time)
    }

    /// The end in seconds since the Unix epoch.
    pub(crate) fn end_seconds(&self) -> Option<u64> {
        self.end
    }

    /// Whether the override has ended.
    #[inline]
    pub(crate) fn has_ended(&self, now: impl FnOnce() -> u64) -> bool {
        self.end.is_some_and(|end| now() >= end)
    }

    /// The stored text: the limit, and one line for each of the other values that are set.
    pub(crate) fn to_stored(&self) -> String {
        let mut text = self.limit.to_string();
        let mut add = |name: &str, value: &str| {
            text.push('\n');
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
        };
        let mut number = itoa::Buffer::new();
        if let Some(end) = self.end {
            add(names::END, number.format(end));
        }
        if let Some(notes) = &self.notes {
            if let Some(note) = &notes.note {
                add(names::NOTE, note);
            }
            if let Some(author) = &notes.author {
                add(names::AUTHOR, author);
            }
            if let Some(at) = notes.changed_at {
                add(names::CHANGED_AT, number.format(at));
            }
        }
        text
    }

    /// Returns `None` if this version of the crate cannot read the text, also if the end is not a
    /// number: an override must not apply for longer than intended.
    pub(crate) fn from_stored(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut read = Self::new(lines.next()?.parse().ok()?);
        let mut notes = OverrideNotes::default();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            match name {
                names::END => read.end = Some(value.parse().ok()?),
                names::NOTE => notes.note = line(value),
                names::AUTHOR => notes.author = line(value),
                names::CHANGED_AT => notes.changed_at = value.parse().ok(),
                // A line of a later version.
                _ => {}
            }
        }
        read.notes = (notes != OverrideNotes::default()).then(|| Arc::new(notes));
        Some(read)
    }
}

/// The names of the lines of a stored override.
mod names {
    pub(super) const END: &str = "end";
    pub(super) const NOTE: &str = "note";
    pub(super) const AUTHOR: &str = "author";
    pub(super) const CHANGED_AT: &str = "changed_at";
}

impl From<Limit> for Override {
    fn from(limit: Limit) -> Self {
        Self::new(limit)
    }
}

/// Truncates a text and replaces control and invisible characters by spaces, so that it fits one
/// line.
pub(super) fn line(text: &str) -> Option<Box<str>> {
    let mut end = text.len().min(Override::MAX_NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let is_invisible = crate::key::is_invisible;
    let line = text[..end].replace(is_invisible, " ");
    let line = line.trim();
    (!line.is_empty()).then(|| line.into())
}

/// Rounded up.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    let seconds = time
        .as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0));
    seconds.min(MAX_SECONDS)
}

/// The time this many seconds after the Unix epoch, or the latest time that is supported.
pub(crate) fn time(seconds: u64) -> SystemTime {
    let latest = Duration::from_secs(MAX_SECONDS);
    UNIX_EPOCH + Duration::from_secs(seconds).min(latest)
}

/// The last second of the year 9999, which all systems can represent.
const MAX_SECONDS: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> Limit {
        "tier=pro, daily=5/day".parse().unwrap()
    }

    #[test]
    fn a_stored_override_parses_to_the_same_override() {
        let plain = Override::new(limit());
        let ending = plain.clone().with_end(time(1_800_000_000));
        let noted = ending.clone().with_note("ticket 4711: too many\ncalls");
        let made = noted.clone().made(Some("anna"), 1_700_000_000);
        for (entry, text) in [
            (&plain, "tier=pro, daily=5/day"),
            (&ending, "tier=pro, daily=5/day\nend: 1800000000"),
            (
                &made,
                "tier=pro, daily=5/day\nend: 1800000000\nnote: ticket 4711: too many calls\n\
                 author: anna\nchanged_at: 1700000000",
            ),
        ] {
            assert_eq!(entry.to_stored(), text);
            assert_eq!(Override::from_stored(text).as_ref(), Some(entry));
        }
        assert_eq!(made.note(), Some("ticket 4711: too many calls"));
        assert_eq!(made.author(), Some("anna"));
        assert_eq!(made.changed_at(), Some(time(1_700_000_000)));
    }

    #[test]
    fn lines_of_later_versions_are_ignored_and_invalid_texts_are_rejected() {
        let read = Override::from_stored("5/day\ncolour: red\nnonsense\nend: 7");
        assert_eq!(read.unwrap().end(), Some(time(7)));
        for text in ["", "fast\nend: 7", "5/day\nend: soon", "5/day\nend: -1"] {
            assert_eq!(Override::from_stored(text), None, "{text}");
        }
    }

    #[test]
    fn an_end_is_rounded_up_and_no_time_panics() {
        let half = UNIX_EPOCH + Duration::from_millis(2_500);
        let entry = Override::new(limit()).with_end(half);
        assert_eq!(entry.end(), Some(time(3)));
        assert!(!entry.has_ended(|| 2) && entry.has_ended(|| 3));
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(Override::new(limit()).with_end(before).end(), Some(time(0)));
        let forever = Override::from_stored(&format!("5/day\nend: {}", u64::MAX));
        assert_eq!(forever.unwrap().end(), Some(time(MAX_SECONDS)));
    }

    #[test]
    fn notes_are_truncated_to_one_line() {
        let note = |text: &str| Override::new(limit()).with_note(text);
        let long = "ä".repeat(200);
        assert_eq!(note(&long).note().unwrap().len(), Override::MAX_NOTE);
        assert_eq!(note(" \n ").note(), None);
        let forged = note("ok\nend: 9\u{202e}");
        assert_eq!(forged.note(), Some("ok end: 9"));
        assert_eq!(Override::from_stored(&forged.to_stored()), Some(forged));
    }
}
