//! Which paths a group covers, and which of them it excludes: prefixes of whole segments, with parameters.

use std::fmt;

use super::ambiguous::{has_dot_segments, is_ambiguous};
use super::text::{FromText, list_or_off, shown};

/// A path that requests may begin with, in whole segments. The names of parameters are not kept: patterns that cover
/// the same paths are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(Vec<Segment>);

/// What a segment of a path is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    Text(Box<str>),
    /// `{id}`: any segment that is not empty.
    Any,
    /// `{*rest}`: all that is left, which is not empty.
    Rest,
}

impl Prefix {
    /// Whether a path is this one or below it.
    pub(super) fn covers(&self, path: &str) -> bool {
        let mut rest = path;
        for segment in &self.0 {
            let Some((first, more)) = split_first(rest) else {
                return false;
            };
            let fits = match segment {
                Segment::Text(text) => first == &**text,
                Segment::Any => !first.is_empty(),
                Segment::Rest => return rest.len() > 1,
            };
            if !fits {
                return false;
            }
            rest = more;
        }
        rest.is_empty() || rest.starts_with('/')
    }

    /// Whether a path is this one or below it, and no server could take it for another one.
    pub(super) fn excludes(&self, path: &str) -> bool {
        self.covers(path) && !is_ambiguous(path)
    }

    /// Whether it covers all paths that another one covers.
    pub(super) fn covers_all_of(&self, other: &Self) -> bool {
        for (at, segment) in self.0.iter().enumerate() {
            match (segment, other.0.get(at)) {
                (Segment::Rest, Some(_)) => return true,
                (Segment::Text(text), Some(Segment::Text(other))) if text == other => {}
                (Segment::Any, Some(Segment::Text(_) | Segment::Any)) => {}
                _ => return false,
            }
        }
        true
    }

    /// Whether a path can be covered by it and by another one.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let mut both = self.0.iter().zip(&other.0);
        both.all(|both| match both {
            (Segment::Text(text), Segment::Text(other)) => text == other,
            _ => true,
        })
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.0
    }
}

/// As it is written, with other names of parameters.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|segment| match segment {
            Segment::Text(text) => write!(f, "/{text}"),
            Segment::Any => f.write_str("/{..}"),
            Segment::Rest => f.write_str("/{*..}"),
        })
    }
}

impl FromText for Prefix {
    fn read(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            let text = shown(text);
            return Err(format!(
                "{text} is not a path: a path begins with `/`, such as \"/api\""
            ));
        }
        // As requests have it: escaped.
        let is_plain = text.bytes().all(|b| b.is_ascii_graphic());
        let is_path = is_plain && !text.contains("//");
        if !is_path || text.contains(['?', '#']) {
            return Err(format!("{} is not a path, such as \"/api\"", shown(text)));
        }
        if has_dot_segments(text) {
            let text = shown(text);
            return Err(format!("{text} has a `.` or `..` segment: remove it"));
        }
        let segments = text.trim_end_matches('/').split('/').skip(1);
        let segments: Option<Vec<_>> = segments.map(Segment::read).collect();
        let before_last =
            |segments: &Vec<Segment>| segments.split_last().map(|(_, rest)| rest.to_vec());
        match segments {
            Some(segments)
                if !before_last(&segments).is_some_and(|rest| rest.contains(&Segment::Rest)) =>
            {
                Ok(Self(segments))
            }
            _ => Err(format!(
                "{} is not a valid pattern: a parameter is a whole segment, as in \"/users/{{id}}\", and \
                        `{{*rest}}` must be the last one",
                shown(text)
            )),
        }
    }
}

/// The paths of a group; none, if it is `off`.
pub(super) fn paths<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Prefix>, D::Error> {
    list_or_off(from)
}

impl Segment {
    fn read(text: &str) -> Option<Self> {
        if !text.contains(['{', '}', '*']) {
            return Some(Self::Text(text.into()));
        }
        let name = text.strip_prefix('{')?.strip_suffix('}')?;
        let (name, segment) = match name.strip_prefix('*') {
            Some(name) => (name, Self::Rest),
            None => (name, Self::Any),
        };
        let is_name = !name.is_empty() && !name.contains(['{', '}', '*']);
        is_name.then_some(segment)
    }
}

/// The first segment of a path, and the rest, which is empty or begins with `/`.
pub(super) fn split_first(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix('/')?;
    Some(path.split_at(path.find('/').unwrap_or(path.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_whole_segments() {
        let prefix = |text| Prefix::read(text).unwrap();
        for (text, path, covers) in [
            ("/api", "/api", true),
            ("/api", "/api/chat", true),
            ("/api/", "/api", true),
            ("/api", "/apis", false),
            ("/api", "/", false),
            ("/", "/anything", true),
            ("/", "/", true),
            ("/", "*", false),
            ("/users/{id}", "/users/7", true),
            ("/users/{id}", "/users/7/orders", true),
            ("/users/{id}", "/users/7/", true),
            ("/users/{id}", "/users/", false),
            ("/users/{id}", "/users", false),
            ("/users/{id}/orders", "/users/7/orders/1", true),
            ("/users/{id}/orders", "/users//orders", false),
            ("/users/{id}/orders", "/users/7/ordersx", false),
            ("/files/{*rest}", "/files/a/b", true),
            ("/files/{*rest}", "/files/", false),
            ("/files/{*rest}", "/files", false),
            ("/{*rest}", "/", false),
            ("/{*rest}", "/a", true),
        ] {
            assert_eq!(prefix(text).covers(path), covers, "{text} {path}");
        }
        for text in [
            "",
            "api",
            "/a?b",
            "/a/*",
            "http://x/",
            "//",
            "/a//b",
            "/ä",
            "/users/{}",
            "/users/{*}",
            "/users/*",
            "/users/{id}.png",
            "/users/{{id}}",
            "/users/{id",
            "/{*rest}/more",
            "/a/../b",
            "/a/%2e",
        ] {
            assert!(Prefix::read(text).is_err(), "{text}");
        }
    }
}
