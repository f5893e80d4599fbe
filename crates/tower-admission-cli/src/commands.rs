//! Runs the commands.

use std::fmt::Write as _;
use std::io::IsTerminal;

use serde_json::json;
use tower_admission::KeyName;

use crate::args::{CacheCommand, Command, KeyArgs, LimitsCommand, RequestArgs};
use crate::explanation::Explanation;
use crate::export::Export;
use crate::failure::Failure;
use crate::keys::{Keys, from_stdin};
use crate::output::{MAX_WIDTH, Output, clean, style, table};
use crate::server::{OverrideEntry, Server};
use crate::set::{merge, set};
use crate::transfer::Import;
use crate::undo::undo;
use crate::usage::Usage;
use crate::{changes, explain};

pub(crate) async fn run(
    command: &Command,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    if server.is_store() {
        // The store does not have the limits that only services keep.
        output.lost(server.lost().await?);
        output.unreadable(server.unreadable());
    }
    match command {
        Command::Limits(LimitsCommand::Set(args)) => set(args, server, keys, output).await,
        Command::Limits(LimitsCommand::Get { key }) => {
            get(&read(key, server, keys).await?, server, output).await
        }
        Command::Limits(LimitsCommand::List { usage }) => list(*usage, server, keys, output).await,
        Command::Limits(LimitsCommand::Delete { key, force }) => {
            let key = read(key, server, keys).await?;
            delete(&key, *force, server, keys, output).await
        }
        Command::Limits(LimitsCommand::Changes { count }) => {
            changes::changes(*count, server, output).await
        }
        Command::Limits(LimitsCommand::Undo { key, force }) => {
            let key = read(key, server, keys).await?;
            undo(&key, *force, server, output).await
        }
        Command::Limits(LimitsCommand::Export { file, all, force }) => {
            let export = Export {
                file,
                has_all: *all,
                is_forced: *force,
            };
            export.run(server, output).await
        }
        Command::Limits(LimitsCommand::Import {
            file,
            replace,
            dry_run,
            force,
        }) => {
            let import = Import {
                file,
                replaces: *replace,
                is_dry_run: *dry_run,
                is_forced: *force,
            };
            import.run(server, output).await
        }
        Command::Limits(LimitsCommand::AcceptLoss { force }) => {
            accept_loss(*force, server, output).await
        }
        Command::Usage { key, key_stdin } => {
            let key = match (key, key_stdin) {
                (None, false) => None,
                (key, _) => Some(resolve_key(key.as_deref(), server, keys).await?),
            };
            usage(key, server, keys, output).await
        }
        Command::Explain { key, request } => {
            let name = read(key, server, keys).await?;
            let name = counted(&name, server, keys)?;
            let written = key.key.clone().filter(|_| name.key().is_ip());
            let request = RequestArgs {
                written,
                ..request.clone()
            };
            explain::explain(name, &request, server, output).await
        }
        Command::Cache(CacheCommand::Clear) => {
            server.clear_caches().await?;
            let text = "all services read all limits again within a second";
            output.done(text, json!({ "cleared": true }))
        }
        // Needs no server.
        Command::Config(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

async fn read(key: &KeyArgs, server: &Server, keys: &Keys) -> Result<KeyName, Failure> {
    resolve_key(key.key.as_deref(), server, keys).await
}

/// The key of an argument, else of standard input.
pub(crate) async fn resolve_key(
    key: Option<&str>,
    server: &Server,
    keys: &Keys,
) -> Result<KeyName, Failure> {
    match key {
        Some(key) => server.key(key, keys).await,
        None => server.key(&from_stdin()?, keys).await,
    }
}

async fn get(key: &KeyName, server: &Server, output: &Output) -> Result<(), Failure> {
    server.check_readable(key)?;
    let entry = server.get(key).await?;
    let explained = server.explain(key, &RequestArgs::default()).await;
    let explained = match explained {
        Ok(explained) => explained,
        // The override is known even if no service runs.
        Err(failure) if entry.is_some() => {
            output.warning(failure.message());
            Explanation::new(key, None, &[], None)
        }
        Err(failure) => return Err(failure),
    };
    let mut json = json!({ "key": key.as_str(), "limit": null });
    let mut text = match &entry {
        Some(entry) => {
            merge(&mut json, json!(entry));
            let own = &entry.own;
            let noted = own.noted();
            let noted = noted.map_or(String::new(), |noted| format!("\n{}", clean(&noted)));
            clean(&format!("{key}: {} ({})", own.brief(), entry.origin())) + &noted
        }
        None if explained.limits.is_empty() && explained.listed.is_none() => {
            return Err(none_of(key, output));
        }
        None => clean(&format!("{key}: {}", output.none())),
    };
    json["listed"] = json!(explained.listed);
    if let Some(listed) = &explained.listed {
        let _ = write!(text, "\n{}", clean(&listed.text()));
    }
    let _ = write!(text, "\n{}", explain::sources(&explained));
    let applies = explained.limits.iter().map(|row| {
        json!({ "name": row.name, "sort": row.sort, "limit": row.limit, "source": row.source, "tier": row.tier })
    });
    json["applies"] = applies.collect();
    output.done(&text, json)
}

fn none_of(key: &KeyName, output: &Output) -> Failure {
    Failure::missing(match output.is_incomplete() {
        true => format!(
            "{key} has no override in the store, but the store has lost overrides that services keep, and \
                this may be one of them. Use --admin to ask a service"
        ),
        false => format!(
            "{key} has no override, so the default applies: `limits list` shows all overrides"
        ),
    })
}

async fn accept_loss(is_forced: bool, server: &Server, output: &Output) -> Result<(), Failure> {
    if !is_forced && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "no terminal to ask on: use --force to accept the loss",
        ));
    }
    let question = "Drop the limits that the store has lost from all services? They cannot be recovered from the \
        services afterwards.";
    if !is_forced && !output.ask(question) {
        return output.done("nothing was changed", json!({ "accepted": false }));
    }
    server.accept_loss().await?;
    let text = "services drop the limits that the store has lost within a second";
    output.done(text, json!({ "accepted": true }))
}

async fn list(
    with_usage: bool,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    let entries = server.list().await?;
    let longest = |text: fn(&OverrideEntry) -> String| {
        let lengths = entries.iter().map(|entry| text(entry).chars().count());
        lengths.max().unwrap_or(0).min(MAX_WIDTH)
    };
    let key_width = longest(|entry| clean(&entry.key));
    let limit_width = longest(|entry| clean(&entry.own.brief()));
    let (mut text, mut json) = (String::new(), Vec::new());
    for entry in &entries {
        let (key, limit) = (clean(&entry.key), clean(&entry.own.brief()));
        let mut shown = json!(entry);
        let _ = write!(text, "{key:key_width$}  {limit:limit_width$}");
        if with_usage {
            let usages = match keys.read(&entry.key) {
                Ok(key) => {
                    server
                        .usage(Some(counted(&key, server, keys)?))
                        .await?
                        .usage
                }
                // A later version has set it.
                Err(_) => Vec::new(),
            };
            let brief: Vec<_> = usages.iter().map(brief).collect();
            let _ = write!(text, "  {}", brief.join(", "));
            shown["usage"] = json!(usages);
        }
        if entry.is_from_file() {
            text.push_str("  from the file");
        }
        if let Some(note) = &entry.own.note {
            let _ = write!(text, "  # {}", clean(note));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        json.push(shown);
    }
    if entries.is_empty() {
        text.push_str(match output.is_incomplete() {
            true => "no key has an override in the store",
            false => "no key has an override",
        });
    }
    output.done(&text, json!({ "limits": json }))
}

/// The key, if its usage can be read.
pub(crate) fn counted<'a>(
    key: &'a KeyName,
    server: &Server,
    keys: &Keys,
) -> Result<&'a KeyName, Failure> {
    if server.wants_fingerprints() && !keys.can_count(key) {
        return Err(Failure::usage(
            "usage in redis needs the secret of the services: set ADMISSION_SECRET",
        ));
    }
    Ok(key)
}

pub(crate) fn brief(usage: &Usage) -> String {
    let style = style(usage.level());
    let name = match usage.title() {
        title if title.is_empty() => clean(&usage.sort),
        title => title,
    };
    match (usage.limit, usage.percent()) {
        (Some(0), _) => format!("{name} denied"),
        (Some(limit), Some(percent)) => format!(
            "{name} {style}{} of {limit} ({percent}%){style:#}",
            usage.used
        ),
        _ => format!("{name} {}", usage.used),
    }
}

async fn delete(
    key: &KeyName,
    is_forced: bool,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    if !is_forced && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "no terminal to ask on: use --force to delete the limit of {key}"
        )));
    }
    server.check_readable(key)?;
    let entry = server.get(key).await?;
    let entry = entry.ok_or_else(|| none_of(key, output))?;
    let limit = entry.own.brief();
    if entry.is_from_file() {
        return Err(Failure::rejected(format!(
            "{key}: {limit} comes from the configuration file of the service: delete it there, in [limits], \
                or override it with `limits set`"
        )));
    }
    let warnings = warnings(key, server, keys).await;
    for warning in &warnings {
        output.warning(warning);
    }
    let then = match &entry.in_file {
        Some(below) => format!("{} from the file", below.brief()),
        None => "The default".to_owned(),
    };
    let question = format!("Delete the limit of {key} ({limit})? {then} applies afterwards.");
    if !is_forced && !output.ask(&question) {
        let json = json!({ "key": key.as_str(), "before": entry.own, "deleted": false });
        return output.done(&clean(&format!("{key}: {limit} (not deleted)")), json);
    }
    server.delete(key, &entry.own).await?;
    // The result is printed even if this cannot be read.
    let below = server.get(key).await.ok().flatten();
    let below = below.filter(OverrideEntry::is_from_file);
    let explained = server.explain(key, &RequestArgs::default()).await;
    let applies = explained.map_or(String::new(), |explained| explained.brief());
    let mut text = match below {
        Some(below) => format!("{key}: {} from the file (was {limit})", below.own.brief()),
        None => format!("{key}: the default (was {limit})"),
    };
    if !applies.is_empty() {
        let _ = write!(text, ": {applies}");
    }
    let json = json!({
        "key": key.as_str(), "before": entry.own, "applies": applies, "deleted": true,
        "warnings": warnings,
    });
    output.done(&clean(&text), json)
}

/// Warnings for limits where the usage of the key is above the default. Ignores failures, which must not prevent the
/// deletion.
async fn warnings(key: &KeyName, server: &Server, keys: &Keys) -> Vec<String> {
    if counted(key, server, keys).is_err() {
        return Vec::new();
    }
    let Ok(report) = server.usage(Some(key)).await else {
        return Vec::new();
    };
    let above = report.usage.iter().filter(|usage| usage.is_above_default());
    let warnings = above.map(|usage| {
        let (name, used) = (&usage.name, usage.used);
        let default = usage.default.unwrap_or(0);
        format!("{name}: {used} are used but the default is {default}: {key} is rejected until fewer are used")
    });
    warnings.collect()
}

async fn usage(
    key: Option<KeyName>,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    if let Some(key) = &key {
        counted(key, server, keys)?;
        server.check_readable(key)?;
    }
    let report = server.usage(key.as_ref()).await?;
    if let Some(warning) = report.warning() {
        output.warning(&warning);
    }
    let mut text = String::new();
    let mut json = match &key {
        Some(key) => {
            let own = report.limit.as_deref();
            let own = own.map_or(output.none().to_owned(), |own| format!("{own} (override)"));
            let _ = writeln!(text, "{}", clean(&format!("{key}: {own}")));
            if let Some(listed) = &report.listed {
                let _ = writeln!(text, "{}", clean(&listed.text()));
            }
            json!({
                "key": key.as_str(), "limit": report.limit, "listed": report.listed, "usage": report.usage,
            })
        }
        None => json!({ "usage": report.usage }),
    };
    if let Some(replica) = &report.replica {
        json["replica"] = json!(replica);
        json["store"] = json!(report.store);
    }
    text += &match (&*report.usage, &key) {
        ([], Some(_)) => "no limits per key are known".to_owned(),
        ([], None) => "no limits over all keys are known".to_owned(),
        _ => table(&report),
    };
    output.done(&text, json)
}
