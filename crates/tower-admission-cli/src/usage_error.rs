//! Errors of the command line.

use std::process::ExitCode;

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::Failure;
use crate::output::Output;

/// Prints the help, or the error of the command line.
pub(crate) fn not_parsed(error: &Error) -> ExitCode {
    let is_json = wants_json(
        std::env::args_os()
            .skip(1)
            .filter_map(|argument| argument.into_string().ok()),
    );
    let failure = match error.kind() {
        ErrorKind::UnknownArgument => unknown_argument(error),
        ErrorKind::InvalidSubcommand => unknown_command(error),
        _ if !is_json || !error.use_stderr() => error.exit(),
        _ => {
            // The first paragraph has the error. The others are hints for people.
            let text = error.to_string();
            let lines = text.lines().map(str::trim);
            let message: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let message = message.join(" ");
            Failure::usage(message.strip_prefix("error: ").unwrap_or(&message))
        }
    };
    Output::new(is_json).failure(&failure);
    failure.code()
}

/// Shows the name of an unknown option without its value. Other arguments may be credentials and are not shown.
fn unknown_argument(error: &Error) -> Failure {
    let written = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let option = written.split('=').next().unwrap_or_default();
    let is_option = option.len() > 1
        && option.starts_with('-')
        && option.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if !is_option {
        return Failure::usage(
            "unexpected argument (not shown, because it may be a credential): see --help",
        );
    }
    let meant = text(error, ContextKind::SuggestedArg);
    let meant = meant.map_or(String::new(), |meant| format!(": did you mean {meant}?"));
    Failure::usage(format!("unknown option {option}{meant} (see --help)"))
}

/// Shows an unknown command only if it resembles a known one, because it may be a credential otherwise.
fn unknown_command(error: &Error) -> Failure {
    let meant = texts(error, ContextKind::SuggestedSubcommand);
    let written = text(error, ContextKind::InvalidSubcommand);
    Failure::usage(match (written, meant.first()) {
        (Some(written), Some(meant)) => {
            format!("unknown command {written:?}: did you mean {meant:?}? (see --help)")
        }
        _ => "unknown command (not shown, because it may be a credential): see --help".to_owned(),
    })
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    texts(error, kind).into_iter().next()
}

fn texts(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

/// Whether an invalid command line asks for JSON.
fn wants_json(arguments: impl Iterator<Item = String>) -> bool {
    let mut before = String::new();
    for argument in arguments {
        let is_json = matches!(
            &*argument,
            "--json" | "-ojson" | "-o=json" | "--output=json"
        );
        if is_json || argument == "json" && matches!(&*before, "-o" | "--output") {
            return true;
        }
        before = argument;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_on_a_wrong_command_line() {
        let wants = |line: &str| wants_json(line.split(' ').map(str::to_owned));
        for line in ["x --json", "-o json x", "--output=json", "x -ojson"] {
            assert!(wants(line), "{line}");
        }
        for line in ["json", "-o table json", "x"] {
            assert!(!wants(line), "{line}");
        }
    }
}
