//! Limits where Redis has them.

use std::time::Duration;

use tokio::sync::OnceCell;
use tower_admission::store::redis::{FailureKind, StoreError};
use tower_admission::store::{FailureMode, RedisStore};
use tower_admission::{
    KeyName, Limit, LimitError, LimitUsage, Limits, LimitsError, QuotaError, Secret, SharedLimiters,
};

use crate::args::ServerArgs;
use crate::failure::Failure;
use crate::server::{Changed, Entry};
use crate::usage::{Report, Usage};

pub(crate) struct Redis {
    store: RedisStore,
    limits: Limits,
    /// Read once, for a command that asks about many keys.
    limiters: OnceCell<SharedLimiters>,
}

impl Redis {
    pub(crate) async fn open(
        url: &str,
        args: &ServerArgs,
        secret: Option<Secret>,
        wait: Duration,
    ) -> Result<Self, Failure> {
        let store = RedisStore::connect(url).map_err(|error| {
            Failure::usage(format!(
                "--redis cannot be used: write it as redis://[user:password@]host[:port][/db] ({})",
                error.detail().unwrap_or_default()
            ))
        })?;
        #[cfg(feature = "redis-tls")]
        let store = tls::with_certificates(store, args)?;
        let mut store = store
            .prefix(&args.prefix)
            .deadline(wait)
            // What cannot be asked is not to look as if nothing was used.
            .on_failure(FailureMode::Closed);
        if let Some(secret) = secret {
            store = store.secret(secret);
        }
        store.ping().await.map_err(|error| failed(&error))?;
        Ok(Self {
            limits: Limits::in_store(&store),
            store,
            limiters: OnceCell::new(),
        })
    }

    pub(crate) async fn set(&self, key: &KeyName, limit: &str) -> Result<Changed, Failure> {
        let limit: Limit = limit.parse().map_err(|error| {
            Failure::refused(match error {
                // Of what is written as a quota it says more.
                LimitError::Quota(quota) if quota != QuotaError::Syntax => {
                    format!("no limit: {quota}")
                }
                error => format!("no limit: {error}"),
            })
        })?;
        if let Some(tier) = limit.tier() {
            let known = self.limiters().await?.tiers();
            if !known.is_empty() && !known.iter().any(|known| **known == *tier) {
                return Err(not_changed(LimitsError::UnknownTier {
                    tier: tier.into(),
                    known: known.to_vec(),
                }));
            }
        }
        let before = self.limits.set(key, limit.clone()).await;
        Ok(Changed {
            limit: limit.to_string(),
            before: before.map_err(not_changed)?.map(|limit| limit.to_string()),
        })
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<String>, Failure> {
        self.limits.refresh().await.map_err(not_changed)?;
        Ok(self.limits.get(key).map(|limit| limit.to_string()))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Entry>, Failure> {
        self.limits.refresh().await.map_err(not_changed)?;
        let entries = self.limits.list().into_iter().map(|(key, limit)| Entry {
            key: key.to_string(),
            limit: limit.to_string(),
        });
        Ok(entries.collect())
    }

    pub(crate) async fn delete(&self, key: &KeyName) -> Result<Option<String>, Failure> {
        let before = self.limits.delete(key).await.map_err(not_changed)?;
        Ok(before.map(|limit| limit.to_string()))
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<Report, Failure> {
        let limiters = self.limiters().await?;
        let found = match key {
            Some(key) => limiters.usage(key).await,
            None => limiters.totals().await,
        };
        let usage = found.map_err(not_changed)?;
        let usage = usage.into_iter().map(|usage| Usage {
            is_own: key.map(|_| usage.is_own),
            default: limiters.default_limit(&usage),
            ..shown(usage)
        });
        Ok(Report {
            limit: key.and_then(|key| self.limits.get(key).map(|limit| limit.to_string())),
            usage: usage.collect(),
            replica: None,
            store: None,
        })
    }

    async fn limiters(&self) -> Result<&SharedLimiters, Failure> {
        let limiters = self.limiters.get_or_try_init(async || {
            self.limits.refresh().await?;
            SharedLimiters::read(&self.limits, &self.store).await
        });
        limiters.await.map_err(not_changed)
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        self.limits.clear_caches().await.map_err(not_changed)
    }
}

#[cfg(feature = "redis-tls")]
mod tls {
    use std::path::Path;

    use tower_admission::store::{RedisStore, RedisTls};

    use crate::args::ServerArgs;
    use crate::failure::Failure;

    pub(super) fn with_certificates(
        store: RedisStore,
        args: &ServerArgs,
    ) -> Result<RedisStore, Failure> {
        let mut tls = RedisTls::new();
        if let Some(file) = &args.redis_ca {
            tls = tls.ca(read(file)?);
        }
        tls = match (&args.redis_certificate, &args.redis_key) {
            (Some(certificate), Some(key)) => {
                tls.client_certificate(read(certificate)?, read(key)?)
            }
            (None, None) if args.redis_ca.is_none() => return Ok(store),
            (None, None) => tls,
            _ => {
                return Err(Failure::usage(
                    "--redis-certificate and --redis-key belong together",
                ));
            }
        };
        store.tls(tls).map_err(|error| {
            let reason = error.detail().unwrap_or_default();
            Failure::usage(format!(
                "the certificates for --redis cannot be used: {reason}"
            ))
        })
    }

    fn read(file: &Path) -> Result<Vec<u8>, Failure> {
        std::fs::read(file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
    }
}

fn shown(usage: LimitUsage) -> Usage {
    Usage {
        name: usage.name.to_string(),
        tier: usage.tier.as_deref().map(str::to_owned),
        sort: usage.sort.to_owned(),
        used: usage.used,
        here: usage.here,
        counted_in: Some(usage.counted_in.as_str().to_owned()),
        limit: usage.limit,
        is_own: None,
        default: None,
    }
}

fn not_changed(error: LimitsError) -> Failure {
    match error {
        LimitsError::Unavailable(error) => failed(&error),
        error @ (LimitsError::UnknownTier { .. } | LimitsError::Network { .. }) => {
            Failure::refused(error.to_string())
        }
        error => Failure::refused(format!("{error}: delete some first")),
    }
}

/// Why the store of a configuration makes no decisions.
pub(crate) fn not_deciding(error: &StoreError) -> Failure {
    let failure = match error.kind() {
        FailureKind::Disconnected | FailureKind::Timeout | FailureKind::Tls | FailureKind::Busy => {
            Failure::unreachable
        }
        _ => Failure::refused,
    };
    failure(format!("store: {error}"))
}

/// What to do about it, and the cause; never the URL, which may have a password in it.
fn failed(error: &StoreError) -> Failure {
    let (failure, advice): (fn(String) -> Failure, _) = match error.kind() {
        FailureKind::Configuration => (
            Failure::usage,
            "--redis cannot be used: write it as redis://host:port, or redis+cluster:// for a cluster",
        ),
        FailureKind::Denied => (
            Failure::refused,
            "redis refuses the credentials, or this user the commands: check --redis and the ACL",
        ),
        FailureKind::ReadOnly => (
            Failure::refused,
            "this redis is a replica: give the primary by --redis",
        ),
        FailureKind::OutOfMemory => (
            Failure::refused,
            "redis has no memory left: raise maxmemory, or free some",
        ),
        FailureKind::WrongData => (
            Failure::refused,
            "redis has something else under these names: check --prefix",
        ),
        FailureKind::TooOld => (
            Failure::refused,
            "this redis is too old: it takes 6.2 or later",
        ),
        FailureKind::Unsupported => (
            Failure::refused,
            "this server does not know the commands: check that --redis names no sentinel or proxy",
        ),
        FailureKind::Busy => (
            Failure::unreachable,
            "redis is busy (it loads its data, or a script): try again",
        ),
        FailureKind::Timeout => (
            Failure::unreachable,
            "redis does not answer in time: check --redis, and that it is not overloaded",
        ),
        FailureKind::Tls => (
            Failure::unreachable,
            "no TLS with redis: check the port, the host name and the certificate authority",
        ),
        FailureKind::Disconnected | FailureKind::Overloaded => (
            Failure::unreachable,
            "redis cannot be reached: check --redis, and that it runs",
        ),
        _ => (
            Failure::refused,
            "redis refuses, or its data cannot be read: check --prefix and its log",
        ),
    };
    failure(match error.detail() {
        Some(detail) => format!("{advice} ({detail})"),
        None => advice.to_owned(),
    })
}
