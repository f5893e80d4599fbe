//! What to do about an error of the store.

use tower_admission::store::{FailureKind, StoreError};
use tower_admission::{KeyName, LimitsError};

use crate::failure::Failure;
use crate::own::Own;
use crate::server::changed_meanwhile;

/// Why limits were not read.
pub(crate) fn not_read(error: LimitsError) -> Failure {
    match error {
        LimitsError::Unavailable(error) => failed(&error),
        error => Failure::refused(error.to_string()),
    }
}

/// Why the limit of a key was not changed.
pub(crate) fn not_changed(error: LimitsError, key: &KeyName) -> Failure {
    match error {
        LimitsError::Changed { current } => {
            let current = current.as_deref().map(Own::from);
            changed_meanwhile(key, current.as_ref())
        }
        LimitsError::Unavailable(error) => failed(&error),
        error @ (LimitsError::UnknownTier { .. }
        | LimitsError::Network { .. }
        | LimitsError::Embedded { .. }
        | LimitsError::Unreadable) => Failure::refused(error.to_string()),
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
pub(crate) fn failed(error: &StoreError) -> Failure {
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
            Failure::unanswered,
            "redis does not answer in time: check --redis, and that it is not overloaded",
        ),
        FailureKind::Tls => (
            Failure::unreachable,
            "no TLS with redis: check the port, the host name and the certificate authority",
        ),
        FailureKind::Disconnected => (
            // Also for a connection that ends while an answer is waited for.
            Failure::unanswered,
            "redis cannot be reached: check --redis, and that it runs",
        ),
        FailureKind::Overloaded => (
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
