//! Writes all limits of keys to a file.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;
use tower_admission_config::LimitsTable;

use crate::failure::Failure;
use crate::keys::no_key;
use crate::output::{Output, clean, first, limits};
use crate::own::now;
use crate::server::{Entry, Server};
use crate::transfer::is_standard;
use crate::undo::ALL;
use crate::written::replace;

/// How limits are written to a file.
pub(crate) struct Export<'a> {
    pub(crate) file: &'a Path,
    /// Whether those of a service's configuration are written as well.
    pub(crate) has_all: bool,
    pub(crate) is_forced: bool,
}

impl Export<'_> {
    pub(crate) async fn run(&self, server: &Server, output: &Output) -> Result<(), Failure> {
        let is_standard = is_standard(self.file);
        if is_standard && output.is_json() {
            return Err(Failure::usage(
                "an export is TOML: give a file for it, or take `limits list -o json`",
            ));
        }
        if output.is_incomplete() && !self.is_forced {
            return Err(Failure::refused(
                "the store has lost limits, so the export would be without them: export from a service that \
                 keeps them (--admin), or say --force",
            ));
        }
        let mut entries = server.list().await?;
        let unreadable = server.unreadable();
        if !unreadable.is_empty() && !self.is_forced {
            return Err(Failure::refused(format!(
                "{} cannot be read by this version, so the export would be without them ({}): use the program of the \
                 version that has set them, or say --force",
                limits(unreadable.len() as u64),
                first(&unreadable)
            )));
        }
        if !self.has_all {
            entries.retain(|entry| !entry.is_of_file());
        }
        if !is_standard && !self.is_forced {
            self.check_replaced(&entries, server).await?;
        }
        let count = entries.len();
        let table = entries
            .into_iter()
            .map(|Entry { key, own, .. }| {
                let name = key.parse().map_err(no_key)?;
                Ok((name, own.to_override()?))
            })
            .collect::<Result<LimitsTable, Failure>>()?;
        let text = table.to_toml();
        if is_standard {
            return output.raw(text.as_bytes());
        }
        let shown = self.file.display();
        replace(self.file, &text)
            .map_err(|error| Failure::unwritten(format!("{shown} cannot be written: {error}")))?;
        let json = json!({ "file": shown.to_string(), "limits": count });
        output.done(
            &clean(&format!("{shown}: {} written", limits(count as u64))),
            json,
        )
    }

    /// Rejects a file that is no export, and one that has limits which are gone without a trace: a store that came up
    /// empty is not to take the place of the backup.
    async fn check_replaced(&self, entries: &[Entry], server: &Server) -> Result<(), Failure> {
        let shown = self.file.display();
        let text = match std::fs::metadata(self.file).is_ok_and(|found| found.is_file()) {
            true => std::fs::read_to_string(self.file),
            false => return Ok(()),
        };
        let text = text.unwrap_or_else(|_| "no text".to_owned());
        if text.trim().is_empty() {
            return Ok(());
        }
        let Ok(table) = LimitsTable::from_toml(&text) else {
            return Err(Failure::refused(format!(
                "{shown} has something else than limits of keys: say --force to replace it"
            )));
        };
        let now = now();
        let before: Vec<_> = table
            .overrides()
            .filter(|(_, own)| own.end().is_none_or(|end| end > now))
            .map(|(key, _)| key.as_str().to_owned())
            .collect();
        let current: BTreeSet<_> = entries.iter().map(|entry| &*entry.key).collect();
        let gone = |key: &&String| !current.contains(&***key);
        if !before.iter().any(|key| gone(&key)) {
            return Ok(());
        }
        let changes = server.changes(ALL).await?;
        // It tells of all that was lost. Another loss since would have taken it along.
        let is_accepted = changes.iter().any(|change| change.key.is_none());
        let changed: BTreeSet<_> = changes.iter().filter_map(|c| c.key.as_deref()).collect();
        let untold = before.iter().filter(gone);
        let untold: Vec<_> = untold.filter(|key| !changed.contains(&***key)).collect();
        // Older changes than these may tell of the others.
        let most = match changes.len() >= usize::from(ALL) {
            true => before.len() / 2,
            false => 0,
        };
        if untold.len() <= most || is_accepted {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "{shown} has {} that are not there any more, though nobody has deleted them as far as `limits changes` knows \
             ({}): has the store lost them? Write to another file, or say --force to replace this one",
            limits(untold.len() as u64),
            first(&untold)
        )))
    }
}
