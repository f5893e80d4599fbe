//! Exports all overrides to a file.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;
use tower_admission_config::LimitsTable;

use crate::atomic_file::replace;
use crate::failure::Failure;
use crate::keys::invalid_key;
use crate::output::{Output, clean, first, limits};
use crate::override_json::now;
use crate::server::{OverrideEntry, Server};
use crate::transfer::is_standard;
use crate::undo::ALL;

/// The settings of an export.
pub(crate) struct Export<'a> {
    pub(crate) file: &'a Path,
    /// Whether the overrides of a service's configuration are exported as well.
    pub(crate) has_all: bool,
    pub(crate) is_forced: bool,
}

impl Export<'_> {
    pub(crate) async fn run(&self, server: &Server, output: &Output) -> Result<(), Failure> {
        let is_standard = is_standard(self.file);
        if is_standard && output.is_json() {
            return Err(Failure::usage(
                "an export is TOML: name a file, or use `limits list -o json`",
            ));
        }
        if output.is_incomplete() && !self.is_forced {
            return Err(Failure::rejected(
                "the store has lost limits, so the export would miss them: export from a service that keeps \
                    them (--admin), or use --force",
            ));
        }
        let mut entries = server.list().await?;
        let unreadable = server.unreadable();
        if !unreadable.is_empty() && !self.is_forced {
            return Err(Failure::rejected(format!(
                "{} cannot be read by this version, so the export would miss them ({}): use the version of the \
                    program that set them, or use --force",
                limits(unreadable.len() as u64),
                first(&unreadable)
            )));
        }
        if !self.has_all {
            entries.retain(|entry| !entry.is_from_file());
        }
        if !is_standard && !self.is_forced {
            self.check_replaced(&entries, server).await?;
        }
        let count = entries.len();
        let table = entries
            .into_iter()
            .map(|OverrideEntry { key, own, .. }| {
                let name = key.parse().map_err(invalid_key)?;
                Ok((name, own.to_override()?))
            })
            .collect::<Result<LimitsTable, Failure>>()?;
        let text = table.to_toml();
        if is_standard {
            return output.raw(text.as_bytes());
        }
        let shown = self.file.display();
        replace(self.file, &text)
            .map_err(|error| Failure::unprintable(format!("{shown} cannot be written: {error}")))?;
        let json = json!({ "file": shown.to_string(), "limits": count });
        output.done(
            &clean(&format!("{shown}: {} written", limits(count as u64))),
            json,
        )
    }

    /// Rejects to replace a file that is not an export, or that has limits which are missing without a recorded deletion. An
    /// empty store must not replace the backup.
    async fn check_replaced(
        &self,
        entries: &[OverrideEntry],
        server: &Server,
    ) -> Result<(), Failure> {
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
            return Err(Failure::rejected(format!(
                "{shown} has other content than limits of keys: use --force to replace it"
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
        // An accepted loss explains all missing limits. A later loss would have removed this record.
        let is_accepted = changes.iter().any(|change| change.key.is_none());
        let changed: BTreeSet<_> = changes.iter().filter_map(|c| c.key.as_deref()).collect();
        let unexplained = before.iter().filter(gone);
        let unexplained: Vec<_> = unexplained
            .filter(|key| !changed.contains(&***key))
            .collect();
        // Older changes may explain the other missing limits.
        let most = match changes.len() >= usize::from(ALL) {
            true => before.len() / 2,
            false => 0,
        };
        if unexplained.len() <= most || is_accepted {
            return Ok(());
        }
        Err(Failure::rejected(format!(
            "{shown} has {} that are missing now, but `limits changes` shows no deletion ({}): did the \
                store lose them? Write to another file, or use --force to replace this one",
            limits(unexplained.len() as u64),
            first(&unexplained)
        )))
    }
}
