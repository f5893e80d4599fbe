//! What each command does.

use std::fmt::Write as _;
use std::io::IsTerminal;

use serde_json::json;
use tower_admission::KeyName;

use crate::args::{CacheCommand, Command, LimitsCommand};
use crate::failure::Failure;
use crate::keys::Keys;
use crate::output::{Output, WIDEST, clean, style, table};
use crate::server::Server;
use crate::usage::Usage;

pub(crate) async fn run(
    command: &Command,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        Command::Limits(LimitsCommand::Set { key, limit }) => {
            set(&keys.read(key)?, &limit.join(" "), server, output).await
        }
        Command::Limits(LimitsCommand::Get { key }) => get(&keys.read(key)?, server, output).await,
        Command::Limits(LimitsCommand::List { usage }) => list(*usage, server, keys, output).await,
        Command::Limits(LimitsCommand::Delete { key, force }) => {
            delete(&keys.read(key)?, *force, server, keys, output).await
        }
        Command::Usage { key } => usage(key.as_deref(), server, keys, output).await,
        Command::Cache(CacheCommand::Clear) => {
            server.clear_caches().await?;
            let text = "all services read all limits anew, within a second";
            output.done(text, json!({ "cleared": true }))
        }
        // Needs no server.
        Command::Config(_) | Command::Completions { .. } => Ok(()),
    }
}

async fn set(key: &KeyName, limit: &str, server: &Server, output: &Output) -> Result<(), Failure> {
    let changed = server.set(key, limit).await?;
    let before = match &changed.before {
        Some(before) => format!("was {before}"),
        None => "was the default".to_owned(),
    };
    let text = format!("{key}: {} ({before})", changed.limit);
    let json = json!({ "key": key.as_str(), "limit": changed.limit, "before": changed.before });
    output.done(&clean(&text), json)
}

async fn get(key: &KeyName, server: &Server, output: &Output) -> Result<(), Failure> {
    let limit = server.get(key).await?.ok_or_else(|| none_of(key))?;
    let text = format!("{key}: {limit} (its own)");
    let json = json!({ "key": key.as_str(), "limit": limit });
    output.done(&clean(&text), json)
}

fn none_of(key: &KeyName) -> Failure {
    Failure::missing(format!(
        "{key} has no limit of its own, so the default applies: see `limits list` for those that have"
    ))
}

async fn list(
    with_usage: bool,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    let entries = server.list().await?;
    let longest = |text: fn(&crate::server::Entry) -> &str| {
        let lengths = entries.iter().map(|entry| text(entry).chars().count());
        lengths.max().unwrap_or(0).min(WIDEST)
    };
    let (key_width, limit_width) = (longest(|entry| &entry.key), longest(|entry| &entry.limit));
    let (mut text, mut json) = (String::new(), Vec::new());
    for entry in &entries {
        let (key, limit) = (clean(&entry.key), clean(&entry.limit));
        let mut shown = json!({ "key": entry.key, "limit": entry.limit });
        let _ = write!(text, "{key:key_width$}  {limit:limit_width$}");
        if with_usage {
            let usages = match keys.read(&entry.key) {
                Ok(key) => {
                    server
                        .usage(Some(counted(&key, server, keys)?))
                        .await?
                        .usage
                }
                // Of a later version.
                Err(_) => Vec::new(),
            };
            let brief: Vec<_> = usages.iter().map(brief).collect();
            let _ = write!(text, "  {}", brief.join(", "));
            shown["usage"] = json!(usages);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        json.push(shown);
    }
    if entries.is_empty() {
        text.push_str("no key has a limit of its own");
    }
    output.done(&text, json!({ "limits": json }))
}

/// The key, if what is used by it can be known.
fn counted<'a>(key: &'a KeyName, server: &Server, keys: &Keys) -> Result<&'a KeyName, Failure> {
    if server.wants_fingerprints() && !keys.can_count(key) {
        return Err(Failure::usage(
            "what is used in redis is found with the services' secret only: set ADMISSION_SECRET",
        ));
    }
    Ok(key)
}

fn brief(usage: &Usage) -> String {
    let style = style(usage.level());
    let name = match usage.title() {
        title if title.is_empty() => clean(&usage.sort),
        title => title,
    };
    match (usage.limit, usage.percent()) {
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
            "there is no terminal to ask on: say --force to delete the limit of {key}"
        )));
    }
    let limit = server.get(key).await?.ok_or_else(|| none_of(key))?;
    let warnings = warnings(key, server, keys).await;
    for warning in &warnings {
        output.warning(warning);
    }
    let question = format!("Delete the limit of {key} ({limit})? The default applies then.");
    if !is_forced && !output.ask(&question) {
        let json = json!({ "key": key.as_str(), "before": limit, "deleted": false });
        return output.done(&clean(&format!("{key}: {limit} (not deleted)")), json);
    }
    let before = server.delete(key).await?.ok_or_else(|| none_of(key))?;
    let text = format!("{key}: the default (was {before})");
    let json = json!({
        "key": key.as_str(), "before": before, "deleted": true, "warnings": warnings
    });
    output.done(&clean(&text), json)
}

/// Where the key has used as much already as everybody may. That it cannot be known is no reason
/// not to delete.
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
        format!("{name}: {used} are used and the default is {default}, so {key} is refused until they are fewer")
    });
    warnings.collect()
}

async fn usage(
    key: Option<&str>,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    let key = key.map(|key| keys.read(key)).transpose()?;
    if let Some(key) = &key {
        counted(key, server, keys)?;
    }
    let report = server.usage(key.as_ref()).await?;
    if let Some(warning) = report.warning() {
        output.warning(&warning);
    }
    let mut text = String::new();
    let mut json = match &key {
        Some(key) => {
            let own = report.limit.as_deref();
            let own = own.map_or("no limit of its own".to_owned(), |own| {
                format!("{own} (its own)")
            });
            let _ = writeln!(text, "{}", clean(&format!("{key}: {own}")));
            json!({ "key": key.as_str(), "limit": report.limit, "usage": report.usage })
        }
        None => json!({ "usage": report.usage }),
    };
    if let Some(replica) = &report.replica {
        json["replica"] = json!(replica);
        json["store"] = json!(report.store);
    }
    text += &match (&*report.usage, &key) {
        ([], Some(_)) => "no limits are known that are counted by key".to_owned(),
        ([], None) => "no limits are known that are not of any one key".to_owned(),
        _ => table(&report),
    };
    output.done(&text, json)
}
