//! Sets the limit of a key, and reports what it replaces.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tower_admission::{KeyName, Override};

use crate::args::SetArgs;
use crate::commands::{brief, counted, resolve_key};
use crate::failure::Failure;
use crate::keys::Keys;
use crate::output::{Output, clean};
use crate::override_json::{OverrideJson, now};
use crate::server::{ChangedLimit, OverrideEntry, Server, SetRequest};
use crate::usage::{Level, Usage};

pub(crate) async fn set(
    args: &SetArgs,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    let mut limit = args.limit.clone();
    let key = match args.key_stdin {
        true => {
            // The first argument is a part of the limit.
            limit.insert(0, args.key.clone());
            None
        }
        false => Some(&*args.key),
    };
    if args.until.is_some_and(|end| end <= now()) {
        return Err(Failure::usage(
            "the end is in the past by the clock of this machine",
        ));
    }
    if args.lasts.is_some_and(|lasts| lasts.is_zero()) {
        return Err(Failure::usage("--for needs at least one second"));
    }
    // Read the key first: an error of the limit repeats text that may be the rest of a split key.
    let key = resolve_key(key, server, keys).await?;
    // As stored: with a rounded end and a shortened note.
    let mut own = Override::new(crate::effect::read(&limit.join(" "))?);
    if let Some(end) = args.until {
        own = own.with_end(end);
    }
    if let Some(note) = &args.note {
        own = own.with_note(note);
    }
    let own = OverrideJson::from(&own);
    // Only for messages.
    let shown = server.get(&key).await.ok().flatten();
    let is_unreadable = server.is_unreadable(&key);
    let wanted = SetRequest {
        lasts: args.lasts,
        ..SetRequest::new(&own)
    };
    let changed = server.set(&key, wanted).await?;
    let before = replaced(&changed, shown.as_ref());
    let was = match (&before, &shown) {
        (Some(before), _) => format!("was {}", before.brief()),
        (None, Some(shown)) if shown.is_from_file() => {
            format!("was {} from the file", shown.own.brief())
        }
        (None, _) if is_unreadable => "was a limit that this version cannot read".to_owned(),
        (None, _) if output.is_incomplete() => "the store had none".to_owned(),
        (None, _) => "was the default".to_owned(),
    };
    let mut text = clean(&format!("{key}: {} ({was})", changed.own.brief()));
    let mut json = json!({ "key": key.as_str(), "before": before });
    merge(&mut json, json!(changed.own));
    let mut warnings: Vec<_> = before
        .and_then(|before| gone(&key, &before, &changed.own))
        .into_iter()
        .collect();
    let is_listed = matches!(&*changed.own.limit, "deny all" | "unlimited");
    if key.key().is_ip() && is_listed && server.has_no_lists().await {
        warnings.push(format!(
            "no service has allow and deny lists for these limits: this applies to requests that are \
                charged to {key}, not to requests from there that are charged to a token"
        ));
    }
    // The result is printed even if this cannot be read.
    let used = match counted(&key, server, keys) {
        Ok(key) => server.usage(Some(key)).await.ok(),
        Err(_) => None,
    };
    if let Some(used) = used {
        warnings.extend(full(&key, &used.usage));
        let brief: Vec<_> = used.usage.iter().map(brief).collect();
        if !brief.is_empty() {
            let _ = write!(text, "\nused: {}", brief.join(", "));
        }
        json["usage"] = json!(used.usage);
    }
    for warning in &warnings {
        output.warning(warning);
    }
    json["warnings"] = json!(warnings);
    output.done(&text, json)
}

/// The override that a change replaced, with its end and note. An answer may miss both.
fn replaced(changed: &ChangedLimit, shown: Option<&OverrideEntry>) -> Option<OverrideJson> {
    let before = changed.before.clone()?;
    let shown = shown.filter(|shown| !shown.is_from_file() && shown.own.limit == before.limit);
    Some(shown.map_or(before, |shown| shown.own.clone()))
}

/// The parts of the earlier limit that the new limit removes without naming them: a limit without an end that one with an
/// end replaces, or unnamed parts.
fn gone(key: &KeyName, before: &OverrideJson, after: &OverrideJson) -> Option<String> {
    let outlasts = match (before.end, after.end) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(before), Some(after)) => before.0 > after.0,
    };
    if outlasts && (before.end.is_none() || before.limit != after.limit) {
        return Some(format!(
            "{} is not restored when this ends; to restore it then, run `tower-admission limits undo \
                {key}`, or: {}",
            before.brief(),
            before.command(key.as_str())
        ));
    }
    if matches!(&*before.limit, "deny all" | "unlimited") {
        // Lifting a ban is intended.
        return None;
    }
    let names: Vec<_> = after.parts().map(|(name, _)| name).collect();
    let is_named = names.iter().all(Option::is_some);
    let gone = before.parts().filter(|(name, _)| !names.contains(name));
    let gone: Vec<_> = gone.map(|(_, part)| part).collect();
    if gone.is_empty() || !is_named {
        return None;
    }
    let gone = gone.join(", ");
    let both = OverrideJson {
        limit: format!("{gone}, {}", after.limit),
        ..after.clone()
    };
    let keeps = match crate::effect::read(&both.limit) {
        Ok(_) => format!("to keep it, run: {}", both.command(key.as_str())),
        Err(_) => format!("to undo this, run: tower-admission limits undo {key}"),
    };
    Some(format!(
        "this replaces the whole limit: {gone} no longer applies; {keeps}"
    ))
}

/// The limits whose usage by the key is at or above the limit.
fn full(key: &KeyName, usages: &[Usage]) -> Vec<String> {
    let full = usages.iter().filter(|usage| usage.level() == Level::Full);
    let full = full.filter(|usage| usage.limit != Some(0));
    let warnings = full.map(|usage| {
        let (name, used, limit) = (usage.title(), usage.used, usage.limit.unwrap_or(0));
        format!("{name}: {used} are used but the limit is {limit}: {key} is rejected until fewer are used")
    });
    warnings.collect()
}

pub(crate) fn merge(json: &mut Value, with: Value) {
    if let (Value::Object(json), Value::Object(with)) = (json, with) {
        json.extend(with);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(limit: &str, end: Option<&str>) -> OverrideJson {
        let mut own = OverrideJson::from(&Override::new(limit.parse().unwrap()));
        own.end = end.map(|end| serde_json::from_value(json!(end)).unwrap());
        own
    }

    #[test]
    fn what_is_gone_is_named_with_the_command_that_brings_it_back() {
        let key: KeyName = "org:acme".parse().unwrap();
        let day = Some("2126-12-01T00:00:00Z");
        let next = Some("2126-12-02T00:00:00Z");
        for (before, after, command) in [
            (
                ("tier=pro", None),
                ("deny all", day),
                "set org:acme tier=pro",
            ),
            (
                ("tier=pro", next),
                ("deny all", day),
                "set org:acme tier=pro --until 2126-12-02T00:00:00Z",
            ),
            (
                ("a=5 concurrent, b=1/s", None),
                ("b=2/s", None),
                "set org:acme 'a=5 concurrent, b=2/s'",
            ),
            (
                ("10/s", None),
                ("b=2/s", None),
                "set org:acme '10/s, b=2/s'",
            ),
        ] {
            let gone = gone(&key, &own(before.0, before.1), &own(after.0, after.1));
            let gone = gone.unwrap();
            assert!(gone.ends_with(command), "{gone}");
        }
        for (before, after) in [
            (("tier=pro", None), ("deny all", None)),
            (("deny all", day), ("deny all", next)),
            (("deny all", day), ("tier=pro", None)),
            (("b=1/s", None), ("a=5 concurrent, b=2/s", None)),
            (("a=5 concurrent, b=1/s", None), ("10/s", None)),
        ] {
            let gone = gone(&key, &own(before.0, before.1), &own(after.0, after.1));
            assert_eq!(gone, None);
        }
    }
}
