//! Changes limits and shows usage, in Redis or through the admin endpoints of a service.

mod admin;
mod args;
mod atomic_file;
#[cfg(feature = "tls")]
mod certificates;
mod changes;
mod commands;
mod effect;
mod explain;
mod explanation;
mod export;
mod failure;
mod http;
mod keys;
mod output;
mod override_json;
mod redis;
mod server;
mod set;
mod store_error;
mod suggest;
mod transfer;
mod undo;
mod usage;
mod usage_error;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use serde_json::{Value, json};
use tower_admission_config::{Config, ConfigError, ConfigWarning, WarningKind};

use self::args::{Cli, Command, ConfigCommand};
use self::failure::Failure;
use self::keys::Keys;
use self::output::{Output, clean};
use self::server::Server;
use self::transfer::STANDARD_INPUT;

fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage_error::not_parsed(&error),
    };
    let output = Output::new(cli.is_json());
    let done = match &cli.command {
        Command::Completions { shell } => output.completions(*shell),
        Command::Man { dir } => output.manual(dir.as_deref()),
        Command::Config(ConfigCommand::Check {
            file,
            connect,
            strict,
        }) => check(file, *connect, *strict, &output),
        command => run_on_server(&cli, &matches, command, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.code()
        }
    }
}

/// Checks that a service can run with a configuration, and prints its warnings. With `connect`, also checks that its
/// store decides.
fn check(file: &Path, connect: bool, strict: bool, output: &Output) -> Result<(), Failure> {
    let (name, config) = match transfer::is_standard(file) {
        true => {
            let text = transfer::read(file)
                .map_err(|error| Failure::rejected(format!("{STANDARD_INPUT}: {error}")))?;
            (STANDARD_INPUT, Config::load_text(STANDARD_INPUT, text))
        }
        false => (&*file.to_string_lossy(), Config::load(file)),
    };
    let config = config.map_err(|error| Failure::rejected(error.to_string()))?;
    let warnings = config.warnings();
    let is_denied = |warning: &&ConfigWarning| match strict {
        true => !warning.may_be_intended(),
        // A service does not start with this file.
        false => warning.kind() == WarningKind::NoGroups,
    };
    let denied = warnings.iter().filter(is_denied);
    let all: Vec<_> = denied.map(ToString::to_string).collect();
    if !all.is_empty() {
        return Err(Failure::rejected(all.join("; ")));
    }
    check_store(&config, connect)?;
    for warning in &warnings {
        output.warning(&warning.to_string());
    }
    let groups: Vec<_> = config.groups().collect();
    let listed = if groups.is_empty() {
        "no groups".to_owned()
    } else {
        groups.join(", ")
    };
    let text = format!("{name}: ok: {listed}");
    output.done(
        &clean(&text),
        json!({
            "file": name,
            "groups": groups,
            "warnings": warnings.iter().map(warning_json).collect::<Vec<_>>(),
        }),
    )
}

fn warning_json(warning: &ConfigWarning) -> Value {
    json!({ "kind": warning.kind().as_str(), "message": clean(&warning.to_string()) })
}

/// Opens the store, which reads its certificate files. With `connect`, checks that the store decides.
fn check_store(config: &Config, connect: bool) -> Result<(), Failure> {
    let refused = |error: ConfigError| Failure::rejected(error.to_string());
    let store = config.store().map_err(refused)?;
    let Some(store) = store.filter(|_| connect) else {
        return Ok(());
    };
    within_runtime(async {
        let ping = store.ping().await;
        ping.map_err(|error| store_error::store_check_failure(&error))
    })
}

/// Runs a command that needs a server.
fn run_on_server(
    cli: &Cli,
    matches: &clap::ArgMatches,
    command: &Command,
    output: &Output,
) -> Result<(), Failure> {
    let url = cli.server.url(matches)?;
    // Install the secret before the first key is made.
    let keys = Keys::new(cli.server.secret.as_deref(), cli.server.unchecked)?;
    within_runtime(async {
        let server = Server::open(&url, &cli.server, &keys).await?;
        commands::run(command, &server, &keys, output).await
    })
}

fn within_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unreachable(format!("no network: {error}")))?;
    let done = runtime.block_on(work);
    // Do not wait for a pending name lookup.
    runtime.shutdown_background();
    done
}
