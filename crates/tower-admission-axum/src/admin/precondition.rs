//! Conditional changes: `If-Match` and `If-None-Match` (RFC 9110 §13).

use axum::response::Response;
use http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use tower_admission::provider::{LimitsInternals, OverrideInternals, siphash128};
use tower_admission::{KeyName, LimitEdit, Limits, LimitsError, Override};

use super::responses::AnnotatedLimitJson;
use crate::endpoint::problem_response;

/// The entity tag of an override. All replicas compute the same tag, and each change leads to another one.
fn tag(entry: &Override) -> String {
    let [one, two] = siphash128::<2, 4>([0, 0], entry.to_stored().as_bytes());
    format!("\"{one:016x}{two:016x}\"")
}

/// Adds the entity tag of the override in a response.
pub(super) fn with_entity_tag(mut response: Response, entry: &Override) -> Response {
    let tag = HeaderValue::try_from(tag(entry)).expect("hexadecimal digits");
    response.headers_mut().insert(ETAG, tag);
    response
}

/// The preconditions of a request.
struct Precondition<'a> {
    if_match: Option<EntityTags<'a>>,
    if_none_match: Option<EntityTags<'a>>,
}

/// The entity tags in all lines of a header.
struct EntityTags<'a> {
    headers: &'a HeaderMap,
    name: HeaderName,
}

impl<'a> Precondition<'a> {
    fn from_headers(headers: &'a HeaderMap) -> Self {
        let tags = |name: HeaderName| {
            headers
                .contains_key(&name)
                .then_some(EntityTags { headers, name })
        };
        Self {
            if_match: tags(IF_MATCH),
            if_none_match: tags(IF_NONE_MATCH),
        }
    }

    fn is_none(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether the preconditions hold for the current override.
    fn holds_for(&self, entry: Option<&Override>) -> bool {
        let tag = entry.map(tag);
        let is_in = |tags: &EntityTags<'_>| tags.contain(tag.as_deref());
        self.if_match.as_ref().is_none_or(is_in) && !self.if_none_match.as_ref().is_some_and(is_in)
    }
}

impl EntityTags<'_> {
    /// Whether a tag is listed. `*` matches every override, but not a missing one.
    fn contain(&self, tag: Option<&str>) -> bool {
        let lines = self.headers.get_all(&self.name).iter();
        let mut tags = lines.flat_map(|line| line.to_str().unwrap_or_default().split(','));
        tag.is_some_and(|tag| tags.any(|one| matches!(one.trim(), "*") || one.trim() == tag))
    }
}

/// Applies a change only if its preconditions hold for the override in the store. `edit` begins the change. The inner
/// error is the response to a change whose preconditions do not hold, with both overrides.
pub(super) async fn change_if_unmodified<'a>(
    limits: &Limits,
    key: &KeyName,
    headers: &HeaderMap,
    to: Option<&Override>,
    edit: impl Fn() -> LimitEdit<'a>,
) -> Result<Result<Option<Override>, Response>, LimitsError> {
    let condition = Precondition::from_headers(headers);
    if condition.is_none() {
        return make(edit(), to).await.map(Ok);
    }
    for _ in 0..ATTEMPTS {
        let mut current = limits.get_override(key);
        if !condition.holds_for(current.as_ref()) {
            // Another replica may have changed the override to the one in the precondition.
            limits.refresh().await?;
            current = limits.get_override(key);
        }
        if !condition.holds_for(current.as_ref()) {
            return Ok(Err(changed_meanwhile(current.as_ref(), to)));
        }
        let at_run_time = limits.override_at_run_time(key);
        match make(edit().only_if(at_run_time.as_ref()), to).await {
            // This replica has not read the change of another one.
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

/// The attempts to apply a change while other replicas change the same override.
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
        current: Option<AnnotatedLimitJson<'a>>,
        wanted: Option<AnnotatedLimitJson<'a>>,
    }
    let detail = "The override was changed since it was read, so this change was not made.";
    let values = Values {
        current: current.map(AnnotatedLimitJson::from),
        wanted: wanted.map(AnnotatedLimitJson::from),
    };
    let response = problem_response(StatusCode::PRECONDITION_FAILED, detail, &values);
    match current {
        Some(current) => with_entity_tag(response, current),
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
        Precondition::from_headers(&map).holds_for(entry)
    }

    #[test]
    fn a_change_needs_the_tag_of_the_current_override() {
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
            // A weak tag is no strong match (RFC 9110 §13.1.1).
            (&[("if-match", &*format!("W/{mine}"))], false, false),
        ] {
            assert_eq!(admits(headers, Some(&had)), has, "{headers:?}");
            assert_eq!(admits(headers, None), has_none, "{headers:?}");
        }
    }
}
