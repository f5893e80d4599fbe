//! The command line.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::failure::Failure;

/// Changes what single keys may do, and shows what is used.
#[derive(Parser)]
#[command(name = "tower-admission", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
A key is written as kind:name, such as org:acme, ip:192.0.2.1, bearer:<token> or bearer#<fingerprint>.
A limit is written as 1000/min, 20/s burst 50, 5 concurrent, daily=100000/day or deny all, several
with commas between them.

Exit codes:
  0  done
  1  not there: the key has no limit of its own
  2  the command line is wrong
  3  what was given is refused: an invalid limit, a wrong token, a wrong configuration
  4  the server cannot be reached
  5  what was done cannot be printed";

/// Where the limits are.
#[derive(Args)]
#[command(next_help_heading = "Server: one of --redis and --admin")]
pub(crate) struct ServerArgs {
    /// The Redis that the services count in: redis://[user:password@]host[:port][/db]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ADMISSION_REDIS",
        hide_env_values = true
    )]
    pub(crate) redis: Option<String>,

    /// For rediss://: a file of CA certificates in PEM, in place of the system's
    #[cfg(feature = "redis-tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_CA")]
    pub(crate) redis_ca: Option<PathBuf>,

    /// For rediss://: a file with the certificate to show, in PEM
    #[cfg(feature = "redis-tls")]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ADMISSION_REDIS_CERTIFICATE"
    )]
    pub(crate) redis_certificate: Option<PathBuf>,

    /// For rediss://: a file with its private key, in PEM
    #[cfg(feature = "redis-tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_KEY")]
    pub(crate) redis_key: Option<PathBuf>,

    /// What keys in Redis begin with
    #[arg(long, global = true, default_value = "admission")]
    pub(crate) prefix: String,

    /// The admin endpoints of a service: http://host:port/path
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ADMISSION_ADMIN",
        hide_env_values = true
    )]
    pub(crate) admin: Option<String>,

    /// The bearer token that the admin endpoints want
    #[arg(long, global = true, env = "ADMISSION_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// The secret that the services share, as 32 hexadecimal digits: for keys that are credentials,
    /// and for what is used in Redis
    #[arg(long, global = true, env = "ADMISSION_SECRET", hide_env_values = true)]
    pub(crate) secret: Option<String>,

    /// How long to wait for the server, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The limits of single keys
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Show how far limits are used up: those of a key, or those over all keys
    Usage {
        /// Whose; without one, those that are not of any one key
        key: Option<String>,
    },
    /// What services hold of the limits in their memory
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Configuration files of services
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Subcommand)]
pub(crate) enum LimitsCommand {
    /// Set what a key may do, in place of what everybody may
    Set {
        /// Whose, such as org:acme
        key: String,
        /// The limit, such as 1000/min burst 50
        #[arg(required = true, num_args = 1..)]
        limit: Vec<String>,
    },
    /// Show what a key has of its own
    Get {
        /// Whose, such as org:acme
        key: String,
    },
    /// Show all keys that have limits of their own
    List {
        /// How far they are used up, as well
        #[arg(long)]
        usage: bool,
    },
    /// Make a key one of all again
    Delete {
        /// Whose, such as org:acme
        key: String,
        /// Do not ask
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a file, with the ADMISSION_.. variables over it, and say what is wrong in it
    Check {
        /// The file
        file: PathBuf,
        /// Connect to the store, too, and have it make a decision under the prefix
        #[arg(long)]
        connect: bool,
        /// Reject what has no effect, too, which is only warned of otherwise
        #[arg(long)]
        strict: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum CacheCommand {
    /// Have all services read all limits anew
    Clear,
}

/// Where to go.
pub(crate) enum Place {
    Redis(String),
    Admin(String),
}

impl ServerArgs {
    /// The one place that is given; what is written goes before the environment.
    pub(crate) fn place(&self, matches: &ArgMatches) -> Result<Place, Failure> {
        let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let is_written = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (given(&self.redis), given(&self.admin)) {
            (Some(url), None) => Ok(Place::Redis(url)),
            (None, Some(url)) => Ok(Place::Admin(url)),
            (Some(redis), Some(admin)) => match (is_written("redis"), is_written("admin")) {
                (true, false) => Ok(Place::Redis(redis)),
                (false, true) => Ok(Place::Admin(admin)),
                _ => Err(Failure::usage(
                    "both --redis and --admin are given (or set as ADMISSION_REDIS and \
                     ADMISSION_ADMIN): give one",
                )),
            },
            (None, None) => Err(Failure::usage(
                "no server is given: say --redis URL or --admin URL, or set ADMISSION_REDIS or \
                 ADMISSION_ADMIN",
            )),
        }
    }
}
