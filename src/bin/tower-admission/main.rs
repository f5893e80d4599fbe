//! Changes limits and shows what is used, in Redis or through a service's admin endpoints.

mod admin;
mod args;
mod commands;
mod failure;
mod http;
mod keys;
mod output;
mod redis;
mod server;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use self::args::{Cli, Command};
use self::failure::Failure;
use self::keys::Keys;
use self::output::Output;
use self::server::Server;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let output = Output::new(cli.json);
    let done = match &cli.command {
        Command::Completions { shell } => {
            output.completions(*shell);
            Ok(())
        }
        command => at_server(&cli, &matches, command, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.code()
        }
    }
}

/// Does what needs a server.
fn at_server(
    cli: &Cli,
    matches: &clap::ArgMatches,
    command: &Command,
    output: &Output,
) -> Result<(), Failure> {
    let place = cli.server.place(matches)?;
    // Before any key is made.
    let keys = Keys::new(cli.server.secret.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unreachable(format!("no network: {error}")))?;
    runtime.block_on(async {
        let server = Server::open(&place, &cli.server, &keys).await?;
        commands::run(command, &server, &keys, output).await
    })
}
