//! What each command does.

use std::fmt::Write as _;
use std::io::IsTerminal;

use serde_json::{Value, json};
use tower_admission::{KeyName, Override};

use crate::args::{CacheCommand, Command, KeyArgs, LimitsCommand, RequestArgs, SetArgs};
use crate::explained::Explained;
use crate::failure::Failure;
use crate::keys::{Keys, from_stdin};
use crate::output::{Output, WIDEST, clean, style, table};
use crate::own::{Own, now};
use crate::server::{Entry, Server};
use crate::transfer::Import;
use crate::usage::{Level, Usage};
use crate::{changes, explain, transfer};

pub(crate) async fn run(
    command: &Command,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
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
        Command::Limits(LimitsCommand::Export { file }) => {
            transfer::export(file, server, output).await
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
                (key, _) => Some(named(key.as_deref(), server, keys).await?),
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
            let text = "all services read all limits anew, within a second";
            output.done(text, json!({ "cleared": true }))
        }
        // Needs no server.
        Command::Config(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

async fn read(key: &KeyArgs, server: &Server, keys: &Keys) -> Result<KeyName, Failure> {
    named(key.key.as_deref(), server, keys).await
}

/// The key that a text means: an argument, or else what is on standard input.
async fn named(key: Option<&str>, server: &Server, keys: &Keys) -> Result<KeyName, Failure> {
    match key {
        Some(key) => server.key(key, keys).await,
        None => server.key(&from_stdin()?, keys).await,
    }
}

async fn set(args: &SetArgs, server: &Server, keys: &Keys, output: &Output) -> Result<(), Failure> {
    let mut limit = args.limit.clone();
    let key = match args.key_stdin {
        true => {
            // What stands in the place of the key is of the limit.
            limit.insert(0, args.key.clone());
            None
        }
        false => Some(&*args.key),
    };
    let now = now();
    let end = args.until.or_else(|| now.checked_add(args.lasts?));
    if args.lasts.is_some() && end.is_none() || end.is_some_and(|end| end <= now) {
        return Err(Failure::usage(
            "the end is in the past, or out of all bounds",
        ));
    }
    let limit = limit.join(" ");
    // As it is stored, which rounds the end and cuts the note.
    let mut own = Override::new(crate::redis::read(&limit)?);
    if let Some(end) = end {
        own = own.with_end(end);
    }
    if let Some(note) = &args.note {
        own = own.with_note(note);
    }
    let key = named(key, server, keys).await?;
    let changed = server.set(&key, &Own::from(&own)).await?;
    let before = match &changed.before {
        Some(before) => format!("was {}", before.brief()),
        None => "was the default".to_owned(),
    };
    let mut text = clean(&format!("{key}: {} ({before})", changed.own.brief()));
    let mut json = json!({
        "key": key.as_str(),
        "before": changed.before.as_ref().map(|before| &before.limit),
    });
    merge(&mut json, json!(changed.own));
    // That it cannot be known is no reason not to say what was done.
    let used = match counted(&key, server, keys) {
        Ok(key) => server.usage(Some(key)).await.ok(),
        Err(_) => None,
    };
    if let Some(used) = used {
        let warnings = full(&key, &used.usage);
        for warning in &warnings {
            output.warning(warning);
        }
        let brief: Vec<_> = used.usage.iter().map(brief).collect();
        if !brief.is_empty() {
            let _ = write!(text, "\nused: {}", brief.join(", "));
        }
        json["usage"] = json!(used.usage);
        json["warnings"] = json!(warnings);
    }
    output.done(&text, json)
}

/// The limits that a key is at or above.
fn full(key: &KeyName, usages: &[Usage]) -> Vec<String> {
    let full = usages.iter().filter(|usage| usage.level() == Level::Full);
    let full = full.filter(|usage| usage.limit != Some(0));
    let warnings = full.map(|usage| {
        let (name, used, limit) = (usage.title(), usage.used, usage.limit.unwrap_or(0));
        format!("{name}: {used} are used and the limit is {limit}, so {key} is rejected until they are fewer")
    });
    warnings.collect()
}

fn merge(json: &mut Value, with: Value) {
    if let (Value::Object(json), Value::Object(with)) = (json, with) {
        json.extend(with);
    }
}

async fn get(key: &KeyName, server: &Server, output: &Output) -> Result<(), Failure> {
    let own = server.get(key).await?;
    let explained = server.explain(key, &RequestArgs::default()).await;
    let explained = match explained {
        Ok(explained) => explained,
        // What it has of its own is known also where no service runs.
        Err(failure) if own.is_some() => {
            output.warning(failure.message());
            Explained::new(key, None, &[], None)
        }
        Err(failure) => return Err(failure),
    };
    let mut json = json!({ "key": key.as_str(), "limit": null });
    let mut text = match &own {
        Some(own) => {
            merge(&mut json, json!(own));
            let noted = own.noted();
            let noted = noted.map_or(String::new(), |noted| format!("\n{}", clean(&noted)));
            clean(&format!("{key}: {} (its own)", own.brief())) + &noted
        }
        None if explained.limits.is_empty() && explained.listed.is_none() => {
            return Err(none_of(key));
        }
        None => clean(&format!("{key}: no limit of its own")),
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

fn none_of(key: &KeyName) -> Failure {
    Failure::missing(format!(
        "{key} has no limit of its own, so the default applies: see `limits list` for those that have"
    ))
}

async fn accept_loss(is_forced: bool, server: &Server, output: &Output) -> Result<(), Failure> {
    if !is_forced && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to ask on: say --force to accept the loss",
        ));
    }
    let question = "Have services drop the limits that the store has lost? They cannot be imported from these then.";
    if !is_forced && !output.ask(question) {
        return output.done("nothing was changed", json!({ "accepted": false }));
    }
    server.accept_loss().await?;
    let text = "services drop the limits that the store has lost, within a second";
    output.done(text, json!({ "accepted": true }))
}

async fn list(
    with_usage: bool,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
    let entries = server.list().await?;
    let longest = |text: fn(&Entry) -> String| {
        let lengths = entries.iter().map(|entry| text(entry).chars().count());
        lengths.max().unwrap_or(0).min(WIDEST)
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
                // Of a later version.
                Err(_) => Vec::new(),
            };
            let brief: Vec<_> = usages.iter().map(brief).collect();
            let _ = write!(text, "  {}", brief.join(", "));
            shown["usage"] = json!(usages);
        }
        if let Some(note) = &entry.own.note {
            let _ = write!(text, "  # {}", clean(note));
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
            "there is no terminal to ask on: say --force to delete the limit of {key}"
        )));
    }
    let own = server.get(key).await?.ok_or_else(|| none_of(key))?;
    let limit = own.brief();
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
    let explained = server.explain(key, &RequestArgs::default()).await;
    let applies = explained.map_or(String::new(), |explained| explained.brief());
    let mut text = format!("{key}: the default (was {})", before.brief());
    if !applies.is_empty() {
        let _ = write!(text, ": {applies}");
    }
    let json = json!({
        "key": key.as_str(), "before": before.limit, "applies": applies, "deleted": true,
        "warnings": warnings,
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
    key: Option<KeyName>,
    server: &Server,
    keys: &Keys,
    output: &Output,
) -> Result<(), Failure> {
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
        ([], Some(_)) => "no limits are known that are counted by key".to_owned(),
        ([], None) => "no limits are known that are not of any one key".to_owned(),
        _ => table(&report),
    };
    output.done(&text, json)
}
