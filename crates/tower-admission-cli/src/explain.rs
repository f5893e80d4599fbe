//! Shows the limits that apply to a key, the sources of their numbers, and the decision for a request.

use std::fmt::Write as _;

use serde_json::json;
use tower_admission::KeyName;

use crate::args::RequestArgs;
use crate::explanation::{Explanation, LimitRow, NextRequest};
use crate::failure::Failure;
use crate::output::{Output, clean, columns};
use crate::server::Server;
use crate::usage::Store;

pub(crate) async fn explain(
    key: &KeyName,
    request: &RequestArgs,
    server: &Server,
    output: &Output,
) -> Result<(), Failure> {
    server.check_readable(key)?;
    let explained = server.explain(key, request).await?;
    if let Some(warning) = explained.store.as_ref().and_then(Store::warning) {
        output.warning(&warning);
    }
    let mut text = String::new();
    let own = match &explained.limit {
        Some(limit) => format!("{limit} (override)"),
        None => output.none().to_owned(),
    };
    let _ = writeln!(text, "{}", clean(&format!("{}: {own}", explained.key)));
    if let Some(listed) = &explained.listed {
        let _ = writeln!(text, "{}", clean(&listed.text()));
    }
    for group in explained.groups.iter().flatten() {
        let note = match (group.is_excluded, group.enforce) {
            (true, _) => " (it excludes the request)".to_owned(),
            (_, 100) => String::new(),
            (_, 0) => " (dry run: rejections are not enforced)".to_owned(),
            (_, percent) => format!(" (enforced for {percent}% of keys)"),
        };
        let _ = writeln!(text, "group {}{note}", clean(&group.name));
    }
    if explained.groups.as_ref().is_some_and(Vec::is_empty) {
        text.push_str("the path is in no group\n");
    }
    text += &table(&explained);
    if !explained.address_limits.is_empty() {
        let names = explained.address_limits.join(", ");
        let names = clean(&names);
        let _ = writeln!(
            text,
            "not shown: {names}, which depend on the client address (--address)"
        );
    }
    if let Some(counted) = explained.counted() {
        let _ = writeln!(text, "{}", clean(&counted));
    }
    if let Some(not_known) = &explained.not_known {
        let _ = writeln!(text, "not known here: {}", clean(not_known));
    }
    let now = match &explained.now {
        Some(now) => verdict(now),
        None if !server.is_store() => {
            "the path decides: set --path. No request passes all these limits".to_owned()
        }
        None => "the path decides: no request passes all these limits".to_owned(),
    };
    let _ = writeln!(text, "a request now: {now}");
    output.done(&text, json!(explained))
}

fn verdict(now: &NextRequest) -> String {
    let by = now.limit.as_ref();
    let by = by.map_or(String::new(), |name| format!(" ({name})"));
    let enforced = match now.is_enforced {
        Some(false) => ", which is not enforced for this key",
        _ => "",
    };
    clean(&format!("{}{by}{enforced}", now.verdict.text()))
}

fn table(explained: &Explanation) -> String {
    if explained.limits.is_empty() {
        return "no limits apply\n".to_owned();
    }
    let has_keys = explained.address.is_some();
    let mut rows =
        vec![["NAME", "SORT", "LIMIT", "FROM", "USED", "A REQUEST NOW"].map(str::to_owned)];
    rows.extend(explained.limits.iter().map(|row| {
        [
            name(row, has_keys),
            row.sort.clone(),
            row.limit.clone(),
            row.source().to_owned(),
            row.used.map_or("-".to_owned(), |used| used.to_string()),
            match row.is_skipped {
                true => "skipped".to_owned(),
                false => row.verdict.text(),
            },
        ]
    }));
    // A limit that charges a key at several positions can have equal rows.
    rows.dedup();
    columns(&rows)
}

/// The name of the limit, with its key if that differs from the explained key.
fn name(row: &LimitRow, has_keys: bool) -> String {
    let mut name = row.name.clone();
    if let Some(tier) = &row.tier {
        name = format!("{name} ({tier})");
    }
    match &row.key {
        None => format!("{name}, all keys"),
        Some(key) if has_keys => format!("{name}, {key}"),
        Some(_) => name,
    }
}

/// The limits that apply and their sources, without usage.
pub(crate) fn sources(explained: &Explanation) -> String {
    let mut rows = vec![["NAME", "LIMIT", "FROM"].map(str::to_owned)];
    let of_key = explained.limits.iter().filter(|row| row.key.is_some());
    rows.extend(of_key.map(|row| [name(row, false), row.limit.clone(), row.source().to_owned()]));
    rows.dedup();
    match rows.len() {
        1 => String::new(),
        _ => columns(&rows),
    }
}
