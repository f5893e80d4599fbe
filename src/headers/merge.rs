//! Merges the structured lists of a response and of the layer.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::list::members;

/// Merges the last line of a field, which reports the quotas `ours`, with the lines before it. The
/// result is one List (RFC 9651) that names each quota once.
#[cold]
pub(super) fn merge_last_line(field: &HeaderName, ours: &[Arc<str>], headers: &mut HeaderMap) {
    let mut lines: Vec<HeaderValue> = headers.get_all(field).iter().cloned().collect();
    let Some(last) = lines.pop() else {
        return;
    };
    let lines: Vec<&[u8]> = lines.iter().map(HeaderValue::as_bytes).collect();
    match members_besides(ours, &lines.join(&b", "[..])) {
        Some(others) => {
            headers.insert(field, others);
            headers.append(field, last);
        }
        None => {
            headers.insert(field, last);
        }
    }
}

/// The members of a List other than `ours`. `None` if there are none, or if the field is not a
/// List.
///
/// Only Items that are Strings are kept, as in the draft: a client may ignore a whole field with
/// any other member. Of several members with one name the last one stays, as in a Dictionary (RFC
/// 9651 §3.2).
fn members_besides(ours: &[Arc<str>], field: &[u8]) -> Option<HeaderValue> {
    let mut names = HashSet::new();
    let mut others = Vec::new();
    for member in members(field)?.into_iter().rev() {
        let Some(name) = member.name else {
            continue;
        };
        let is_ours = ours.iter().any(|ours| **ours == *name);
        if !is_ours && names.insert(name) {
            others.push(member.text);
        }
    }
    if others.is_empty() {
        return None;
    }
    others.reverse();
    HeaderValue::from_maybe_shared(Bytes::from(others.join(&b", "[..]))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_members_stay_and_ours_are_removed() {
        let ours = ["a".into(), "b \"\\".into()];
        for (field, others) in [
            (r#""c";r=1;t=2, "d";x=?0"#, Some(r#""c";r=1;t=2, "d";x=?0"#)),
            (r#""a";r=1, "c""#, Some(r#""c""#)),
            (r#""b \"\\";r=1"#, None),
            (r#""c";r=1, "d", "c";r=2"#, Some(r#""d", "c";r=2"#)),
            (r#"c;r=1, 100;w=60, ("c" "d"), "e""#, Some(r#""e""#)),
            ("limit=100, remaining=50, reset=30", None),
            (r#""c";r=1,"#, None),
            (r#", "c";r=1"#, None),
            ("", None),
        ] {
            let kept = members_besides(&ours, field.as_bytes());
            let kept = kept.as_ref().map(|kept| kept.to_str().unwrap());
            assert_eq!(kept, others, "{field}");
        }
    }
}
