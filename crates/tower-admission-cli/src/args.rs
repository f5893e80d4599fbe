//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::failure::Failure;

/// Changes limits per key at run time, and shows usage
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
Write a key as kind:name, such as org:acme, ip:192.0.2.1, bearer:<token> or bearer#<fingerprint>.
Write a limit as 1000/min, 20/s burst 50, 5 concurrent, daily=100000/day or deny all. Separate
several limits with commas.

Exit codes:
  0  done
  1  not found: the key has no override
  2  the command line is invalid
  3  rejected: an invalid limit, an unknown name, a wrong token or secret, an invalid file
  4  the server cannot be reached
  5  the result cannot be printed";

/// The server with the limits.
#[derive(Args)]
#[command(next_help_heading = "Server: use --redis or --admin")]
pub(crate) struct ServerArgs {
    /// The Redis of the services: redis://[user:password@]host[:port][/db]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ADMISSION_REDIS",
        hide_env_values = true
    )]
    pub(crate) redis: Option<String>,

    /// For rediss://: a PEM file of CA certificates, used in place of those of the system
    #[cfg(feature = "tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_CA")]
    pub(crate) redis_ca: Option<PathBuf>,

    /// For rediss://: a PEM file with the client certificate
    #[cfg(feature = "tls")]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ADMISSION_REDIS_CERTIFICATE"
    )]
    pub(crate) redis_certificate: Option<PathBuf>,

    /// For rediss://: a PEM file with the private key of the client certificate
    #[cfg(feature = "tls")]
    #[arg(long, global = true, value_name = "FILE", env = "ADMISSION_REDIS_KEY")]
    pub(crate) redis_key: Option<PathBuf>,

    /// The prefix of all keys in Redis
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

    /// The bearer token for the admin endpoints
    #[arg(long, global = true, env = "ADMISSION_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// The secret of the services, as 32 hexadecimal digits. With --redis, keys of credentials and usage need it
    #[arg(long, global = true, env = "ADMISSION_SECRET", hide_env_values = true)]
    pub(crate) secret: Option<String>,

    /// The author of the change, for the audit trail. Default: user@host; with --admin the name of the token
    #[arg(long = "as", global = true, value_name = "NAME")]
    pub(crate) author: Option<String>,

    /// Accept names, prefixes and secrets that no running service has, for services that do not run yet
    #[arg(long, global = true)]
    pub(crate) unchecked: bool,

    /// How many seconds to wait for the server
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Change and show the overrides of keys
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Show the usage of the limits of a key, or of the limits over all keys
    Usage {
        /// The key; without one, the limits over all keys
        key: Option<String>,
        /// Read the key from standard input, such as bearer:<token>
        #[arg(long, conflicts_with = "key")]
        key_stdin: bool,
    },
    /// Show the limits that apply to a key, the source of each number, and the decision for a request now
    Explain {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Control what services keep of the limits in memory
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Check configuration files of services
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Write this page and one page per command into a folder
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

/// A key, as an argument or from standard input.
#[derive(Args)]
pub(crate) struct KeyArgs {
    /// The key, such as org:acme
    #[arg(required_unless_present = "key_stdin")]
    pub(crate) key: Option<String>,
    /// Read the key from standard input, such as bearer:<token>
    #[arg(long, conflicts_with = "key")]
    pub(crate) key_stdin: bool,
}

/// The request to explain.
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
    /// The address of the client, for lists; with --admin and --path also for limits per address
    #[arg(long)]
    pub(crate) address: Option<String>,
    /// The key as written, if it is an address. An IPv6 address is longer than the network that is charged
    #[arg(skip)]
    pub(crate) written: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum LimitsCommand {
    /// Set the limit of a key, which replaces the default
    Set(SetArgs),
    /// Show the override of a key, and the limits that apply to it
    Get {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show all overrides
    #[command(visible_alias = "ls")]
    List {
        /// Show usage as well
        #[arg(long)]
        usage: bool,
    },
    /// Delete the override of a key, so that the default applies
    Delete {
        #[command(flatten)]
        key: KeyArgs,
        /// Do not ask for confirmation
        #[arg(long)]
        force: bool,
    },
    /// Show the last changes with author, time and origin
    Changes {
        /// The number of changes, up to 1000
        #[arg(short = 'n', long, default_value_t = 20)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
    /// Undo the last change of a key's limit, unless the limit has changed since
    Undo {
        #[command(flatten)]
        key: KeyArgs,
        /// Do not ask for confirmation
        #[arg(long)]
        force: bool,
    },
    /// Write all overrides that were set at run time, as a TOML table [limits]
    Export {
        /// The file, `-` is standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Also write the overrides of the configuration file of a service; with --admin
        #[arg(long)]
        all: bool,
        /// Write an incomplete export: after a loss of the store, or over a file with more limits
        #[arg(long)]
        force: bool,
    },
    /// Set the overrides of a TOML table [limits]
    Import {
        /// The file, `-` is standard input
        file: PathBuf,
        /// Delete the overrides that are not in the file
        #[arg(long)]
        replace: bool,
        /// Show the changes, and make none
        #[arg(long)]
        dry_run: bool,
        /// Do not ask before overrides are deleted
        #[arg(long)]
        force: bool,
    },
    /// Drop the overrides that the store has lost from all services, which still keep them
    AcceptLoss {
        /// Do not ask for confirmation
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
    /// The key, such as org:acme
    pub(crate) key: String,
    /// The limit, such as 1000/min burst 50
    #[arg(required_unless_present = "key_stdin", num_args = 1..)]
    pub(crate) limit: Vec<String>,
    /// Read the key from standard input, such as bearer:<token>
    #[arg(long)]
    pub(crate) key_stdin: bool,
    /// End the limit after this time, such as 1h or 7days
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) lasts: Option<Duration>,
    /// End the limit at this time, such as 2026-12-01T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    #[arg(value_parser = humantime::parse_rfc3339_weak)]
    pub(crate) until: Option<SystemTime>,
    /// A note for other operators, which clients never see
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a file and the ADMISSION_.. variables, which override it, and report errors and warnings
    Check {
        /// The file, `-` is standard input
        file: PathBuf,
        /// Also connect to the store, and make a decision under the prefix
        #[arg(long)]
        connect: bool,
        /// Also reject settings without effect, which only cause warnings otherwise
        #[arg(long)]
        strict: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum CacheCommand {
    /// Make all services read all limits again
    Clear,
}

/// The server to use.
pub(crate) enum ServerUrl {
    Redis(String),
    Admin(String),
}

impl Cli {
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.output == Format::Json
    }
}

impl ServerArgs {
    /// The server of the command line, else of the environment.
    pub(crate) fn url(&self, matches: &ArgMatches) -> Result<ServerUrl, Failure> {
        let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let is_on_command_line = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (given(&self.redis), given(&self.admin)) {
            (Some(url), None) => Ok(ServerUrl::Redis(url)),
            (None, Some(url)) => Ok(ServerUrl::Admin(url)),
            (Some(redis), Some(admin)) => {
                match (is_on_command_line("redis"), is_on_command_line("admin")) {
                    (true, false) => Ok(ServerUrl::Redis(redis)),
                    (false, true) => Ok(ServerUrl::Admin(admin)),
                    _ => Err(Failure::usage(
                        "both --redis and --admin are set (or ADMISSION_REDIS and ADMISSION_ADMIN): use one",
                    )),
                }
            }
            (None, None) => Err(Failure::usage(
                "no server is set: use --redis URL or --admin URL, or set ADMISSION_REDIS or ADMISSION_ADMIN",
            )),
        }
    }
}
