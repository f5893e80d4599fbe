//! Imports overrides from a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read as _};
use std::path::Path;

use serde_json::json;
use tower_admission::KeyName;
use tower_admission_config::LimitsTable;

use crate::failure::Failure;
use crate::keys::invalid_key;
use crate::output::{Output, clean, first, limits};
use crate::override_json::{OverrideJson, now};
use crate::server::{OverrideEntry, Server, SetRequest};

/// The settings of an import.
pub(crate) struct Import<'a> {
    pub(crate) file: &'a Path,
    /// Whether overrides that are not in the file are deleted.
    pub(crate) replaces: bool,
    pub(crate) is_dry_run: bool,
    pub(crate) is_forced: bool,
}

/// A change of one key.
struct Step {
    key: KeyName,
    before: Option<OverrideJson>,
    after: Option<OverrideJson>,
}

impl Import<'_> {
    pub(crate) async fn run(&self, server: &Server, output: &Output) -> Result<(), Failure> {
        let shown = match is_standard(self.file) {
            true => STANDARD_INPUT.to_owned(),
            false => self.file.display().to_string(),
        };
        let text = read(self.file)
            .map_err(|error| Failure::rejected(format!("{shown} cannot be read: {error}")))?;
        let table = LimitsTable::from_toml(&text)
            .map_err(|error| Failure::rejected(format!("{shown}: {error}")))?;
        // A service may keep limits that the store has lost. Set all limits, also equal ones.
        let lost = server.lost().await?;
        let sets_all = lost > 0 && !server.is_store();
        let mut current = server.list().await?;
        // Overrides of a configuration file are changed in that file.
        current.retain(|entry| !entry.is_from_file());
        let (steps, same, ended) = self.steps(table, &current, sets_all)?;
        check(&steps, server, lost > 0, output).await?;
        for key in &ended {
            output.warning(&format!("{key}: the end is in the past, so it is skipped"));
        }
        let deleted = steps.iter().filter(|step| step.after.is_none()).count();
        let mut deletes = (deleted > 0)
            .then(|| limits(deleted as u64))
            .into_iter()
            .collect::<Vec<_>>();
        if self.replaces && lost > 0 {
            deletes.push(format!("up to {} that the store has lost", limits(lost)));
        }
        let deletes = deletes.join(" and ");
        if !deletes.is_empty() && self.is_dry_run && lost > 0 {
            output.warning(&format!("deletes {deletes}, unless they are in {shown}"));
        }
        if !deletes.is_empty() && !self.is_dry_run && !self.is_forced {
            if is_standard(self.file) || !std::io::stdin().is_terminal() {
                return Err(Failure::usage(format!(
                    "no terminal to ask on: use --force to delete {deletes}, or --dry-run to list them"
                )));
            }
            let question = format!("Delete {deletes} that are not in {shown}?");
            if !output.ask(&question) {
                let json = json!({ "changes": [], "imported": false });
                return output.done("nothing was changed", json);
            }
        }
        if !self.is_dry_run {
            make(&steps, server).await?;
            if lost > 0 && self.replaces {
                // The file replaces everything, including the lost overrides.
                server.accept_loss().await?;
            } else if lost > 0 {
                output.warning(
                    "services still keep the limits that the store has lost, unless they are in the file: see \
                        `limits accept-loss`",
                );
            }
        }
        self.report(&steps, same, &ended, output)
    }

    fn report(
        &self,
        steps: &[Step],
        same: usize,
        ended: &[KeyName],
        output: &Output,
    ) -> Result<(), Failure> {
        let mut text = String::new();
        for step in steps {
            let _ = writeln!(text, "{}", clean(&step.line()));
        }
        let did = match self.is_dry_run {
            true => "would be ",
            false => "",
        };
        let deleted = steps.iter().filter(|step| step.after.is_none()).count();
        let set = steps.len() - deleted;
        let _ = write!(
            text,
            "{} {did}set, {deleted} {did}deleted, {same} unchanged",
            limits(set as u64)
        );
        let changes = steps.iter().map(
            |step| json!({ "key": step.key.as_str(), "before": step.before, "after": step.after }),
        );
        let json = json!({
            "changes": changes.collect::<Vec<_>>(),
            "unchanged": same,
            "ended": ended.iter().map(KeyName::as_str).collect::<Vec<_>>(),
            "imported": !self.is_dry_run,
        });
        output.done(&text, json)
    }

    /// The changes, the number of unchanged limits, and the keys of the file whose limits have ended.
    fn steps(
        &self,
        table: LimitsTable,
        current: &[OverrideEntry],
        sets_all: bool,
    ) -> Result<(Vec<Step>, usize, Vec<KeyName>), Failure> {
        let mut current: BTreeMap<_, _> = current
            .iter()
            .map(|entry| (entry.key.as_str(), &entry.own))
            .collect();
        let now = now();
        let (mut steps, mut same, mut ended) = (Vec::new(), 0, Vec::new());
        for (key, own) in table {
            if own.end().is_some_and(|end| end <= now) {
                ended.push(key);
                continue;
            }
            let before = current.remove(key.as_str());
            let mut after = OverrideJson::from(&own);
            // The importing operator becomes the author.
            after.author = None;
            if !sets_all && before.is_some_and(|before| before.is_same(&after)) {
                same += 1;
                continue;
            }
            steps.push(Step {
                key,
                before: before.cloned(),
                after: Some(after),
            });
        }
        if self.replaces {
            for (key, own) in current {
                steps.push(Step {
                    key: key.parse().map_err(invalid_key)?,
                    before: Some(own.clone()),
                    after: None,
                });
            }
        }
        Ok((steps, same, ended))
    }
}

/// Rejects changes that no service would enforce, before any is made. After a loss they only cause a warning: the limit was
/// in force, so its service may only be down.
async fn check(
    steps: &[Step],
    server: &Server,
    is_lost: bool,
    output: &Output,
) -> Result<(), Failure> {
    let mut unknown = Vec::new();
    for step in steps {
        let Some(own) = &step.after else { continue };
        let checked = server.check(&step.key, own).await;
        match checked.map_err(|failure| failure.about(step.key.as_str())) {
            Err(failure) if failure.is_unknown() => unknown.push(failure.message().to_owned()),
            checked => checked?,
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let (count, told) = (limits(unknown.len() as u64), first(&unknown));
    if is_lost {
        output.warning(&format!(
            "no running service uses {count}; a service that does not run now may use them: {told}"
        ));
        return Ok(());
    }
    Err(Failure::rejected(format!(
        "{told} (nothing was changed; `import --unchecked` sets {count} that no running service uses)"
    )))
}

/// Makes all changes that the server accepts. A rejected change does not stop the later ones.
async fn make(steps: &[Step], server: &Server) -> Result<(), Failure> {
    let all = steps.len();
    let (mut done, mut rejected) = (0, Vec::new());
    for step in steps {
        if step.after.is_none() && !rejected.is_empty() {
            // Some limits are missing, so nothing is deleted.
            break;
        }
        match step.make(server).await {
            Ok(()) => done += 1,
            Err(failure) if failure.is_single_limit() && step.after.is_some() => {
                rejected.push(failure.about(step.key.as_str()).message().to_owned());
            }
            Err(failure) => {
                let or = match failure.is_unanswered() {
                    true => format!(" or {}", done + 1),
                    false => String::new(),
                };
                return Err(failure.about(&format!(
                    "{} ({done}{or} of {all} changes were made)",
                    step.key
                )));
            }
        }
    }
    if rejected.is_empty() {
        return Ok(());
    }
    Err(Failure::rejected(format!(
        "{} ({done} of {all} changes were made, {} rejected, nothing was deleted)",
        first(&rejected),
        rejected.len()
    )))
}

impl Step {
    async fn make(&self, server: &Server) -> Result<(), Failure> {
        match (&self.before, &self.after) {
            (_, Some(own)) => {
                let wanted = SetRequest {
                    is_checked: true,
                    ..SetRequest::new(own)
                };
                server.set(&self.key, wanted).await.map(drop)
            }
            (Some(shown), None) => server.delete(&self.key, shown).await,
            (None, None) => Ok(()),
        }
    }

    fn line(&self) -> String {
        let key = &self.key;
        match (&self.before, &self.after) {
            (None, Some(after)) => format!("+ {key}: {}", after.brief()),
            (Some(before), Some(after)) => {
                format!("~ {key}: {} -> {}", before.brief(), after.brief())
            }
            (Some(before), None) => format!("- {key}: {}", before.brief()),
            (None, None) => format!("  {key}"),
        }
    }
}

/// The name of standard input in messages.
pub(crate) const STANDARD_INPUT: &str = "standard input";

pub(crate) fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

pub(crate) fn read(file: &Path) -> std::io::Result<String> {
    if !is_standard(file) {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
