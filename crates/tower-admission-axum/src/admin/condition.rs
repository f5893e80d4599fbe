//! Changes that are made only to what their author has seen (RFC 9110 §13).

use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use tower_admission::provider::{LimitsInternals, siphash128};
use tower_admission::{KeyName, LimitEdit, Limits, LimitsError, Override};

use super::answer::Noted;
use crate::endpoint::problem;

/// The tag of an override: after another change it is another, and all replicas have the same.
fn tag(entry: &Override) -> String {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    };
    let content = format!(
        "{}\n{:?}\n{:?}\n{:?}\n{:?}",
        entry.limit(),
        entry.end().map(seconds),
        entry.note(),
        entry.author(),
        entry.changed_at().map(seconds),
    );
    let [one, two] = siphash128::<2, 4>([0, 0], content.as_bytes());
    format!("\"{one:016x}{two:016x}\"")
}

/// An answer with the tag of what it tells of.
pub(super) fn tagged(mut response: Response, entry: &Override) -> Response {
    let tag = HeaderValue::try_from(tag(entry)).expect("hexadecimal digits");
    response.headers_mut().insert(ETAG, tag);
    response
}

/// What a request demands of a limit before it changes it.
struct Condition<'a> {
    if_match: Option<Tags<'a>>,
    if_none_match: Option<Tags<'a>>,
}

/// Tags of a header; of several of its lines all count.
struct Tags<'a> {
    headers: &'a HeaderMap,
    name: HeaderName,
}

impl<'a> Condition<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let tags = |name: HeaderName| {
            headers
                .contains_key(&name)
                .then_some(Tags { headers, name })
        };
        Self {
            if_match: tags(IF_MATCH),
            if_none_match: tags(IF_NONE_MATCH),
        }
    }

    fn is_none(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether a limit may be changed, or the place where none is.
    fn admits(&self, entry: Option<&Override>) -> bool {
        let tag = entry.map(tag);
        let is_in = |tags: &Tags<'_>| tags.have(tag.as_deref());
        self.if_match.as_ref().is_none_or(is_in) && !self.if_none_match.as_ref().is_some_and(is_in)
    }
}

impl Tags<'_> {
    /// `*` stands for any limit, but not for none.
    fn have(&self, tag: Option<&str>) -> bool {
        let lines = self.headers.get_all(&self.name).iter();
        let mut tags = lines.flat_map(|line| line.to_str().unwrap_or_default().split(','));
        tag.is_some_and(|tag| tags.any(|one| matches!(one.trim(), "*") || one.trim() == tag))
    }
}

/// A change that is made only if its condition holds for the override as it is in the store. `edit` begins it. The inner
/// error is the answer to a change of something that was changed meanwhile, with both values.
pub(super) async fn change_if<'a>(
    limits: &Limits,
    key: &KeyName,
    headers: &HeaderMap,
    to: Option<&Override>,
    edit: impl Fn() -> LimitEdit<'a>,
) -> Result<Result<Option<Override>, Response>, LimitsError> {
    let condition = Condition::of(headers);
    if condition.is_none() {
        return make(edit(), to).await.map(Ok);
    }
    for _ in 0..ATTEMPTS {
        let mut current = limits.get_override(key);
        if !condition.admits(current.as_ref()) {
            // Another replica may have made the change that the condition is about.
            limits.refresh().await?;
            current = limits.get_override(key);
        }
        if !condition.admits(current.as_ref()) {
            return Ok(Err(changed_meanwhile(current.as_ref(), to)));
        }
        let at_run_time = limits.override_at_run_time(key);
        match make(edit().only_if(at_run_time.as_ref()), to).await {
            // This replica has not read it yet.
            Err(LimitsError::Changed { .. }) => {
                limits.refresh().await?;
            }
            made => return made.map(Ok),
        }
    }
    Ok(Err(changed_meanwhile(
        limits.get_override(key).as_ref(),
        to,
    )))
}

/// How often a change is tried that others are faster than.
const ATTEMPTS: usize = 3;

async fn make(edit: LimitEdit<'_>, to: Option<&Override>) -> Result<Option<Override>, LimitsError> {
    match to {
        Some(to) => edit.set(to.clone()).await,
        None => edit.delete().await,
    }
}

fn changed_meanwhile(current: Option<&Override>, wanted: Option<&Override>) -> Response {
    #[derive(Serialize)]
    struct Values<'a> {
        current: Option<Noted<'a>>,
        wanted: Option<Noted<'a>>,
    }
    let detail = "The limit was changed meanwhile, so this change was not made.";
    let values = Values {
        current: current.map(Noted::from),
        wanted: wanted.map(Noted::from),
    };
    let response = problem(StatusCode::PRECONDITION_FAILED, detail, &values);
    match current {
        Some(current) => tagged(response, current),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(limit: &str) -> Override {
        Override::new(limit.parse().unwrap())
    }

    fn admits(headers: &[(&'static str, &str)], entry: Option<&Override>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Condition::of(&map).admits(entry)
    }

    #[test]
    fn a_change_is_admitted_as_its_author_saw_the_limit() {
        let had = entry("10/s");
        let (mine, other) = (tag(&had), tag(&entry("11/s")));
        let noted = entry("10/s").with_note("ticket 4711");
        assert_ne!(mine, tag(&noted));
        assert_ne!(mine, other);
        let both = format!("{other} , {mine}");
        for (headers, has, has_none) in [
            (&[][..], true, true),
            (&[("if-match", &*mine)], true, false),
            (&[("if-match", &*other)], false, false),
            (&[("if-match", &*both)], true, false),
            (&[("if-match", &*other), ("if-match", &*mine)], true, false),
            (&[("if-match", "*")], true, false),
            (&[("if-match", "10/s")], false, false),
            (&[("if-match", "")], false, false),
            (&[("if-none-match", "*")], false, true),
            (&[("if-none-match", &*mine)], false, true),
            (&[("if-none-match", &*other)], true, true),
            // A weak tag stands for something alike (RFC 9110 §13.1.1).
            (&[("if-match", &*format!("W/{mine}"))], false, false),
        ] {
            assert_eq!(admits(headers, Some(&had)), has, "{headers:?}");
            assert_eq!(admits(headers, None), has_none, "{headers:?}");
        }
    }
}
