//! The flags of the gateway, also as environment variables.

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use tower_admission::store::FailureMode;
use tower_admission::{Quota, QuotaError, Secret};
use tower_admission_redis::RedisStore;

/// An HTTP and gRPC gateway on one port, with one set of limits
#[derive(Clone, Parser)]
#[command(name = "gateway")]
pub(crate) struct Flags {
    /// The address to listen on; port 0 selects a free port
    #[arg(long, env, default_value = "127.0.0.1:3000", value_parser = address)]
    pub(crate) listen: SocketAddr,

    /// A file with limits, in place of the flags below. ADMISSION_.. variables override it. A change of
    /// the file is applied within two seconds
    #[arg(long, env, conflicts_with_all = ["max_concurrency", "rate", "burst", "store", "secret", "replicas"])]
    pub(crate) config: Option<PathBuf>,

    /// The maximum number of requests in flight; 0 turns the limit off
    #[arg(long, env, default_value_t = 64)]
    pub(crate) max_concurrency: usize,

    /// The rate of each token, else address (10/s, 600/min); 0 turns the limit off
    #[arg(long, env, default_value = "10/s", value_parser = rate)]
    rate: Rate,

    /// The burst of the rate, unless --rate has one (600/min burst 50); 0 for the count of the rate
    #[arg(long, env, default_value_t = 20)]
    burst: u32,

    /// The store that replicas share: redis://host, redis+cluster://host,host. Without it each replica
    /// has its own limits
    // Not read by clap, which would repeat a password.
    #[arg(long, env, requires = "secret", hide_env_values = true)]
    store: Option<String>,

    /// The secret of fingerprints of tokens, the same for all replicas: 32 hexadecimal digits
    #[arg(long, env, hide_env_values = true)]
    secret: Option<String>,

    /// The number of replicas: each grants its share while the store is away. With 0 no rate is
    /// limited then
    #[arg(long, env, default_value_t = 0)]
    replicas: u32,

    /// The seconds that requests in progress get to finish after SIGTERM or SIGINT. Then they are
    /// cut. A second signal cuts them at once
    #[arg(long, env, default_value_t = 10)]
    grace_seconds: u64,
}

impl Flags {
    /// The time that requests in progress get to finish.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }

    /// The rate with its burst. Exits when the two do not go together.
    pub(crate) fn quota(&self) -> Quota {
        if self.rate.has_burst || self.burst == 0 {
            return self.rate.quota;
        }
        self.rate
            .quota
            .try_burst(self.burst)
            .unwrap_or_else(|error| {
                let message = format!("--rate with --burst {}: {error}", self.burst);
                Flags::command()
                    .error(ErrorKind::ValueValidation, message)
                    .exit()
            })
    }
}

impl Flags {
    /// The store that replicas share, if there is one. Exits when it or the secret cannot be used.
    pub(crate) fn store(&self) -> Option<RedisStore> {
        let url = self.store.as_deref()?;
        let store = RedisStore::connect(url).unwrap_or_else(|error| wrong("--store", &error));
        let secret = secret(self.secret.as_deref()?);
        let secret = secret.unwrap_or_else(|error| wrong("--secret", &error));
        let mode = match self.replicas {
            0 => FailureMode::Open,
            replicas => FailureMode::LocalShare { replicas },
        };
        Some(store.prefix("gateway").secret(secret).on_failure(mode))
    }
}

/// A quota, and whether its text has a burst.
#[derive(Clone, Copy, Debug)]
struct Rate {
    quota: Quota,
    has_burst: bool,
}

fn rate(text: &str) -> Result<Rate, QuotaError> {
    Ok(Rate {
        quota: text.parse()?,
        has_burst: text.contains("burst"),
    })
}

/// Exits with the error of a flag. The message leaves out the value, which may be a secret.
fn wrong(flag: &str, error: &dyn Display) -> ! {
    Flags::command()
        .error(ErrorKind::ValueValidation, format!("{flag}: {error}"))
        .exit()
}

fn secret(digits: &str) -> Result<Secret, &'static str> {
    // `from_str_radix` accepts a sign as well.
    let is_hexadecimal = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let bits = u128::from_str_radix(digits, 16)
        .ok()
        .filter(|_| is_hexadecimal);
    let bits = bits.ok_or("it is 32 hexadecimal digits")?;
    Ok(Secret::new(bits.to_be_bytes()))
}

/// Accepts names too: `localhost:3000`.
fn address(text: &str) -> io::Result<SocketAddr> {
    let mut addresses = text.to_socket_addrs()?;
    addresses
        .next()
        .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}
