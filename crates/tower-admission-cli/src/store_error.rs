//! Failures for errors of the store, each with its fix.

use tower_admission::store::{FailureKind, StoreError};
use tower_admission::{KeyName, LimitsError};

use crate::failure::Failure;
use crate::override_json::OverrideJson;
use crate::server::concurrent_change;

/// The failure of a read.
pub(crate) fn read_failure(error: LimitsError) -> Failure {
    match error {
        LimitsError::Unavailable(error) => store_failure(&error),
        error => Failure::rejected(error.to_string()),
    }
}

/// The failure of a change of a key's limit.
pub(crate) fn change_failure(error: LimitsError, key: &KeyName) -> Failure {
    match error {
        LimitsError::Changed { current } => {
            let current = current.as_deref().map(OverrideJson::from);
            concurrent_change(key, current.as_ref())
        }
        LimitsError::Unavailable(error) => store_failure(&error),
        error @ (LimitsError::UnknownTier { .. }
        | LimitsError::Network { .. }
        | LimitsError::Embedded { .. }
        | LimitsError::Unreadable) => Failure::rejected(error.to_string()),
        error => Failure::rejected(format!("{error}: delete some overrides first")),
    }
}

/// The failure of the store of a configuration.
pub(crate) fn store_check_failure(error: &StoreError) -> Failure {
    let failure = match error.kind() {
        FailureKind::Disconnected | FailureKind::Timeout | FailureKind::Tls | FailureKind::Busy => {
            Failure::unreachable
        }
        _ => Failure::rejected,
    };
    failure(format!("store: {error}"))
}

/// The fix and the cause. Never the URL, which may contain a password.
pub(crate) fn store_failure(error: &StoreError) -> Failure {
    let (failure, advice): (fn(String) -> Failure, _) = match error.kind() {
        FailureKind::Configuration => (
            Failure::usage,
            "--redis cannot be used: write it as redis://host:port, or redis+cluster:// for a cluster",
        ),
        FailureKind::Denied => (
            Failure::rejected,
            "redis rejects the credentials or a command of this user: check --redis and the ACL",
        ),
        FailureKind::ReadOnly => (
            Failure::rejected,
            "this redis is a replica: use the primary in --redis",
        ),
        FailureKind::OutOfMemory => (
            Failure::rejected,
            "redis has no memory left: raise maxmemory or delete data",
        ),
        FailureKind::WrongData => (
            Failure::rejected,
            "redis has other data under these names: check --prefix",
        ),
        FailureKind::TooOld => (Failure::rejected, "this redis is too old: use 6.2 or later"),
        FailureKind::Unsupported => (
            Failure::rejected,
            "this server does not know the commands: check that --redis is not a sentinel or a proxy",
        ),
        FailureKind::Busy => (
            Failure::unreachable,
            "redis is busy (it loads its data or runs a script): try again",
        ),
        FailureKind::Timeout => (
            Failure::unanswered,
            "redis does not answer in time: check --redis, and that redis is not overloaded",
        ),
        FailureKind::Tls => (
            Failure::unreachable,
            "the TLS connection to redis failed: check the port, the host name and the certificate \
                authority",
        ),
        FailureKind::Disconnected => (
            // The connection may have ended before the answer.
            Failure::unanswered,
            "redis cannot be reached: check --redis, and that redis runs",
        ),
        FailureKind::Overloaded => (
            Failure::unreachable,
            "redis cannot be reached: check --redis, and that redis runs",
        ),
        _ => (
            Failure::rejected,
            "redis rejects the command, or its data cannot be read: check --prefix and the log of redis",
        ),
    };
    failure(match error.detail() {
        Some(detail) => format!("{advice} ({detail})"),
        None => advice.to_owned(),
    })
}
