//! Undoes the last change of a key's limit.

use std::io::IsTerminal;

use serde_json::json;
use tower_admission::KeyName;

use crate::changes::Change;
use crate::failure::Failure;
use crate::output::{Output, clean};
use crate::override_json::{OverrideJson, now};
use crate::server::{Server, SetRequest};

/// The number of changes that a server keeps.
pub(crate) const ALL: u16 = 1000;

/// Restores the limit before the last change, with its end and note, unless it has changed since.
pub(crate) async fn undo(
    key: &KeyName,
    is_forced: bool,
    server: &Server,
    output: &Output,
) -> Result<(), Failure> {
    if !is_forced && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "no terminal to ask on: use --force to undo the last change of {key}"
        )));
    }
    server.check_readable(key)?;
    let changes = server.changes(ALL).await?;
    let (last, undone) = last_of(key, &changes)?;
    let entry = server.get(key).await?;
    let current = entry.filter(|entry| !entry.is_from_file());
    let below = current.as_ref().and_then(|entry| entry.in_file.clone());
    let current = current.map(|entry| entry.own);
    if !is_same(current.as_ref(), last.after.as_ref()) {
        let current = current.map_or("none".to_owned(), |own| own.brief());
        return Err(Failure::rejected(format!(
            "the limit of {key} is {current}, but its last change left: {}",
            last.line()
        )));
    }
    if undone.is_unreadable {
        return Err(Failure::rejected(format!(
            "what {key} had before the change at {} cannot be read by this version: use the version of the \
                program that set it, or set the limit again",
            undone.at
        )));
    }
    let mut before = undone.before.clone();
    if let Some(before) = &mut before {
        // The operator of this undo becomes the author.
        (before.author, before.changed_at) = (None, None);
        if let Some(end) = before.end.filter(|end| end.0 <= now()) {
            return Err(Failure::rejected(format!(
                "what {key} had before, {}, ended at {end}: set it again, or delete the limit",
                before.limit
            )));
        }
    }
    if is_same(current.as_ref(), before.as_ref()) {
        let none = "nothing to undo: the limit is the same as before";
        return Err(Failure::missing(format!("{key}: {none}")));
    }
    let brief = |own: Option<&OverrideJson>| match (own, &below) {
        (Some(own), _) => own.brief(),
        (None, Some(below)) => format!("{} from the file", below.brief()),
        (None, None) => "the default".to_owned(),
    };
    let question = format!(
        "Undo the change at {}? The limit of {key} is {} afterwards.",
        undone.at,
        brief(before.as_ref())
    );
    let is_undone = is_forced || output.ask(&question);
    if is_undone {
        match (&before, &current) {
            (Some(before), current) => {
                let wanted = SetRequest {
                    only_if: Some(current.as_ref()),
                    ..SetRequest::new(before)
                };
                server.set(key, wanted).await?;
            }
            (None, Some(current)) => server.delete(key, current).await?,
            (None, None) => {}
        }
    }
    let was = current
        .as_ref()
        .map_or("none".to_owned(), OverrideJson::brief);
    let text = match is_undone {
        true => format!("{key}: {} (was {was})", brief(before.as_ref())),
        false => format!("{key}: {was} (not undone)"),
    };
    let json = json!({
        "key": key.as_str(), "before": current, "after": before, "undone": is_undone,
    });
    output.done(&clean(&text), json)
}

/// The last change of a key, and the change to undo. These differ for a limit that ended: the change that set it is undone.
fn last_of<'a>(key: &KeyName, changes: &'a [Change]) -> Result<(&'a Change, &'a Change), Failure> {
    let none = || {
        Failure::missing(format!(
            "the last {ALL} changes have no change of {key}, so there is nothing to undo: see `limits \
                changes`"
        ))
    };
    let mut of_key = changes
        .iter()
        .filter(|change| change.key.as_deref() == Some(key.as_str()));
    let last = of_key.next().ok_or_else(none)?;
    if !last.has_ended {
        return Ok((last, last));
    }
    let sets = |change: &&Change| is_same(change.after.as_ref(), last.before.as_ref());
    let set = of_key.next().filter(sets).ok_or_else(none)?;
    Ok((last, set))
}

fn is_same(one: Option<&OverrideJson>, other: Option<&OverrideJson>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is_same(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}
