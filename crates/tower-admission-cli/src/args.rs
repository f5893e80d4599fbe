//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::failure::Failure;

/// Changes the limits of single keys, and shows what is used
#[derive(Parser)]
#[command(name = "tower-admission", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Print a table for people, or JSON for programs
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) output: Format,

    /// The same as --output json
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

const AFTER_HELP: &str = "\
A key is written as kind:name, such as org:acme, ip:192.0.2.1, bearer:<token> or bearer#<fingerprint>.
A limit is written as 1000/min, 20/s burst 50, 5 concurrent, daily=100000/day or deny all, several
with commas between them.

Exit codes:
  0  done
  1  not there: the key has no limit of its own
  2  the command line is wrong
  3  what was given is rejected: an invalid limit, an unknown name, a wrong token or secret, a wrong file
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
    #[cfg(feature = "tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_CA")]
    pub(crate) redis_ca: Option<PathBuf>,

    /// For rediss://: a file with the certificate to show, in PEM
    #[cfg(feature = "tls")]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ADMISSION_REDIS_CERTIFICATE"
    )]
    pub(crate) redis_certificate: Option<PathBuf>,

    /// For rediss://: a file with its private key, in PEM
    #[cfg(feature = "tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_KEY")]
    pub(crate) redis_key: Option<PathBuf>,

    /// What keys in Redis begin with
    #[arg(
        long,
        global = true,
        env = "ADMISSION_PREFIX",
        default_value = "admission"
    )]
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

    /// The secret that the services share, as 32 hexadecimal digits: with --redis, for keys that are credentials
    /// and for what is used
    #[arg(long, global = true, env = "ADMISSION_SECRET", hide_env_values = true)]
    pub(crate) secret: Option<String>,

    /// Who makes the change, for the audit trail; user@host by default, with --admin the token's name
    #[arg(long = "as", global = true, value_name = "NAME")]
    pub(crate) author: Option<String>,

    /// Take names, prefixes and secrets that no service has, for services that do not run yet
    #[arg(long, global = true)]
    pub(crate) unchecked: bool,

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
        /// Read the key from standard input, such as bearer:<token>
        #[arg(long, conflicts_with = "key")]
        key_stdin: bool,
    },
    /// Show which limits apply to a key, where each number comes from, and what a request would get now
    Explain {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        request: RequestArgs,
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
    /// Print the manual page
    Man {
        /// Write this page and one for each command into a folder
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

/// A key, as an argument or from standard input.
#[derive(Args)]
pub(crate) struct KeyArgs {
    /// Whose, such as org:acme
    #[arg(required_unless_present = "key_stdin")]
    pub(crate) key: Option<String>,
    /// Read the key from standard input, such as bearer:<token>
    #[arg(long, conflicts_with = "key")]
    pub(crate) key_stdin: bool,
}

/// The request that is asked about.
#[derive(Args, Clone, Default)]
pub(crate) struct RequestArgs {
    /// The tier of the request
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// The path of the request, such as /api/chat; with --admin
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// The method of the request, such as POST
    #[arg(long, requires = "path")]
    pub(crate) method: Option<String>,
    /// The host of the request
    #[arg(long, requires = "path")]
    pub(crate) host: Option<String>,
    /// The address of the client, for lists, and for limits on addresses with --admin and --path
    #[arg(long)]
    pub(crate) address: Option<String>,
    /// The key, where that is an address: of one in IPv6 more than the network that is charged
    #[arg(skip)]
    pub(crate) written: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum LimitsCommand {
    /// Set the limit of a key, in place of the default
    Set(SetArgs),
    /// Show the limit of a key, and what else applies to it
    Get {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show all keys that have limits of their own
    #[command(visible_alias = "ls")]
    List {
        /// How far they are used up, as well
        #[arg(long)]
        usage: bool,
    },
    /// Delete the limit of a key, so that its default applies
    Delete {
        #[command(flatten)]
        key: KeyArgs,
        /// Do not ask
        #[arg(long)]
        force: bool,
    },
    /// Show the last changes: who made them, when and from where
    Changes {
        /// How many, up to 1000
        #[arg(short = 'n', long, default_value_t = 20)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
    /// Undo the last change of a key's limit, unless it was changed since
    Undo {
        #[command(flatten)]
        key: KeyArgs,
        /// Do not ask
        #[arg(long)]
        force: bool,
    },
    /// Write all limits of keys that were set at run time as a table [limits] of TOML
    Export {
        /// Where to, `-` is standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Those of a service's configuration file as well; with --admin
        #[arg(long)]
        all: bool,
        /// Write also what is not all: after a loss of the store, or over a file with more in it
        #[arg(long)]
        force: bool,
    },
    /// Set the limits of a table [limits] of TOML
    Import {
        /// Where from, `-` is standard input
        file: PathBuf,
        /// Delete the limits that are not in the file
        #[arg(long)]
        replace: bool,
        /// Show what would change
        #[arg(long)]
        dry_run: bool,
        /// Do not ask before limits are deleted
        #[arg(long)]
        force: bool,
    },
    /// Have services drop the limits that they keep although the store has lost them
    AcceptLoss {
        /// Do not ask
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args)]
#[command(
    override_usage = "tower-admission limits set [OPTIONS] <KEY> <LIMIT>...\n       \
                      tower-admission limits set [OPTIONS] --key-stdin <LIMIT>..."
)]
pub(crate) struct SetArgs {
    /// Whose, such as org:acme
    pub(crate) key: String,
    /// The limit, such as 1000/min burst 50
    #[arg(required_unless_present = "key_stdin", num_args = 1..)]
    pub(crate) limit: Vec<String>,
    /// Read the key from standard input, such as bearer:<token>
    #[arg(long)]
    pub(crate) key_stdin: bool,
    /// End it after this time, such as 1h or 7days
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) lasts: Option<Duration>,
    /// End it at this time, such as 2026-12-01T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    #[arg(value_parser = humantime::parse_rfc3339_weak)]
    pub(crate) until: Option<SystemTime>,
    /// A note for other operators, which clients never see
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a file, with the ADMISSION_.. variables over it, and say what is wrong in it
    Check {
        /// The file, `-` is standard input
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

impl Cli {
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.output == Format::Json
    }
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
