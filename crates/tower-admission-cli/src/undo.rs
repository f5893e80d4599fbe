//! Undoes the last change of a key's limit.

use std::io::IsTerminal;

use serde_json::json;
use tower_admission::KeyName;

use crate::changes::Change;
use crate::failure::Failure;
use crate::output::{Output, clean};
use crate::own::{Own, now};
use crate::server::{Server, Wanted};

/// All changes that are kept.
pub(crate) const ALL: u16 = 1000;

/// Restores what a key had before its last change, with its end and its note, unless it was changed in between.
pub(crate) async fn undo(
    key: &KeyName,
    is_forced: bool,
    server: &Server,
    output: &Output,
) -> Result<(), Failure> {
    if !is_forced && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "there is no terminal to ask on: say --force to undo the last change of {key}"
        )));
    }
    server.check_readable(key)?;
    let changes = server.changes(ALL).await?;
    let (last, undone) = last_of(key, &changes)?;
    let entry = server.get(key).await?;
    let current = entry.filter(|entry| !entry.is_of_file());
    let below = current.as_ref().and_then(|entry| entry.in_file.clone());
    let current = current.map(|entry| entry.own);
    if !is_same(current.as_ref(), last.after.as_ref()) {
        let current = current.map_or("none".to_owned(), |own| own.brief());
        return Err(Failure::refused(format!(
            "the limit of {key} is {current}, and not what its last change has left: {}",
            last.line()
        )));
    }
    if undone.is_unreadable {
        return Err(Failure::refused(format!(
            "what {key} had before the change at {} cannot be read by this version, so it cannot be restored here: use \
             the program of the version that had set it, or set the limit anew",
            undone.at
        )));
    }
    let mut before = undone.before.clone();
    if let Some(before) = &mut before {
        // Of the operator who undoes it.
        (before.author, before.changed_at) = (None, None);
        if let Some(end) = before.end.filter(|end| end.0 <= now()) {
            return Err(Failure::refused(format!(
                "what {key} had before, {}, has ended at {end}: set it anew, or delete the limit",
                before.limit
            )));
        }
    }
    if is_same(current.as_ref(), before.as_ref()) {
        let none = "nothing is to be undone: it is what it was before";
        return Err(Failure::missing(format!("{key}: {none}")));
    }
    let brief = |own: Option<&Own>| match (own, &below) {
        (Some(own), _) => own.brief(),
        (None, Some(below)) => format!("{} of the file", below.brief()),
        (None, None) => "none, so that the default applies".to_owned(),
    };
    let question = format!(
        "Undo the change at {}? The limit of {key} is {} then.",
        undone.at,
        brief(before.as_ref())
    );
    let is_undone = is_forced || output.ask(&question);
    if is_undone {
        match (&before, &current) {
            (Some(before), current) => {
                let wanted = Wanted {
                    only_if: Some(current.as_ref()),
                    ..Wanted::new(before)
                };
                server.set(key, wanted).await?;
            }
            (None, Some(current)) => server.delete(key, current).await?,
            (None, None) => {}
        }
    }
    let was = current.as_ref().map_or("none".to_owned(), Own::brief);
    let text = match is_undone {
        true => format!("{key}: {} (was {was})", brief(before.as_ref())),
        false => format!("{key}: {was} (not undone)"),
    };
    let json = json!({
        "key": key.as_str(), "before": current, "after": before, "undone": is_undone,
    });
    output.done(&clean(&text), json)
}

/// The last change of a key, and the one to undo: the same, or of a limit that has ended the one that has set it.
fn last_of<'a>(key: &KeyName, changes: &'a [Change]) -> Result<(&'a Change, &'a Change), Failure> {
    let none = || {
        Failure::missing(format!(
            "no change of {key} is among the last {ALL}, so there is nothing to undo: see `limits changes`"
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

fn is_same(one: Option<&Own>, other: Option<&Own>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is_same(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}
