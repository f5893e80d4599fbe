//! Errors of calls to Redis, and their kinds.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use redis::{ErrorKind, ParsingError, RedisError, ServerErrorKind};

use super::attempt::CONNECT_WITHIN;
use super::detail;
use super::url::Address;
use tower_admission::store::{FailureKind, StoreError};

/// The kind of failure of an error of the client library.
pub(super) fn kind_of(error: &RedisError) -> FailureKind {
    // Codes and messages that the client library does not classify.
    match error.code() {
        Some("OOM") => return FailureKind::OutOfMemory,
        Some("BUSY") => return FailureKind::Busy,
        Some("NOAUTH" | "WRONGPASS" | "DENIED") => return FailureKind::Denied,
        Some("WRONGTYPE" | "JUNK") => return FailureKind::WrongData,
        Some("NOPROTO") => return FailureKind::Unsupported,
        Some("ERR") => {
            let detail = error.detail().unwrap_or_default();
            if detail.starts_with("unknown command") {
                return FailureKind::Unsupported;
            }
            // A script runs a command or accesses a key that this user may not. Redis 6.2 adds the name of the script
            // before it, and Valkey words it differently. The client library drops the code when it selects a database.
            if detail.contains("The user executing the script can't")
                || detail.starts_with("ACL failure in script")
                || detail.contains("has no permissions to run the")
            {
                return FailureKind::Denied;
            }
            if detail.contains("DB index is out of range")
                || detail.contains("cluster support disabled")
            {
                return FailureKind::Configuration;
            }
            if detail.starts_with("max number of clients") {
                return FailureKind::Busy;
            }
        }
        _ => {}
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
            FailureKind::Denied
        }
        ErrorKind::Server(ServerErrorKind::ReadOnly) => FailureKind::ReadOnly,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain,
        ) => FailureKind::Busy,
        // Only a client that expects a single server sees these.
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        )
        | ErrorKind::InvalidClientConfig => FailureKind::Configuration,
        ErrorKind::UnexpectedReturnType => FailureKind::WrongData,
        ErrorKind::RESP3NotSupported => FailureKind::Unsupported,
        _ if error.is_timeout() => FailureKind::Timeout,
        _ if is_tls(error) => FailureKind::Tls,
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => {
            FailureKind::Disconnected
        }
        _ => FailureKind::Other,
    }
}

/// Whether TLS failed: errors of the TLS library are reported as invalid data.
fn is_tls(error: &RedisError) -> bool {
    // The type in which the client library stores it.
    let source = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData)
}

/// A call that failed, with what the store needs to know about it.
///
/// The message holds no key, no argument of a call and no password: it ends before the first quoted one.
#[derive(Clone, Debug)]
pub(super) struct CallError {
    kind: FailureKind,
    detail: Option<Arc<str>>,
    /// Whether anything was sent: the server may have done what was requested.
    was_sent: bool,
    is_no_script: bool,
    is_from_breaker: bool,
}

impl CallError {
    pub(super) fn new(kind: FailureKind) -> Self {
        Self {
            kind,
            detail: None,
            was_sent: false,
            is_no_script: false,
            is_from_breaker: false,
        }
    }

    /// Creates an error with a message.
    pub(super) fn because(kind: FailureKind, detail: impl Into<Arc<str>>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..Self::new(kind)
        }
    }

    /// The error for an attempt to connect that took too long: name resolution failed, the network drops packets, or
    /// the server stands still. Redis does not answer TLS on a port without it.
    pub(super) fn not_connected(has_tls: bool) -> Self {
        let words = match has_tls {
            true => format!("no TLS connection within {CONNECT_WITHIN:?}: is it a port for TLS?"),
            false => format!("no connection within {CONNECT_WITHIN:?}"),
        };
        Self::because(FailureKind::Timeout, words)
    }

    /// The error for a call that the open breaker rejects, with its cause.
    pub(super) fn breaker_open(cause: &Self) -> Self {
        let detail = match &cause.detail {
            Some(detail) => detail.clone(),
            None => cause.kind.as_str().into(),
        };
        Self {
            is_from_breaker: true,
            ..Self::because(FailureKind::Disconnected, detail)
        }
    }

    /// The error for a panic in a library. `payload` comes from `catch_unwind`, or from the `JoinError` of a task.
    pub(super) fn panicked(payload: Box<dyn Any + Send>) -> Self {
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| payload.downcast_ref::<&str>().copied());
        let words = words.unwrap_or("without a message");
        Self::because(
            FailureKind::Other,
            detail::bounded(&format!("panicked: {words}")),
        )
    }

    /// Adds the address of the server.
    pub(super) fn at(mut self, address: &Address) -> Self {
        let words = self.detail.as_deref().unwrap_or(self.kind.as_str());
        self.detail = Some(detail::bounded(&format!("{address}: {words}")).into());
        self
    }

    pub(super) fn after_sending(mut self) -> Self {
        self.was_sent = true;
        self
    }

    pub(super) fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// Whether the server does not have the script in its cache.
    pub(super) fn is_no_script(&self) -> bool {
        self.is_no_script
    }

    pub(super) fn is_from_breaker(&self) -> bool {
        self.is_from_breaker
    }

    pub(super) fn kind(&self) -> FailureKind {
        self.kind
    }

    pub(super) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

/// Converts errors of the client library. This is no `From`, because that would make the library part of the public
/// interface.
pub(super) trait ClientError {
    fn into_failure(self) -> CallError;
}

impl ClientError for RedisError {
    fn into_failure(self) -> CallError {
        CallError {
            detail: Some(detail::of(&self)),
            is_no_script: self.kind() == ErrorKind::Server(ServerErrorKind::NoScript),
            ..CallError::new(kind_of(&self))
        }
    }
}

/// A complete answer of an unexpected type does not affect the connection. (An answer with an unclear end is a
/// [`RedisError`] of the client library.)
impl ClientError for ParsingError {
    fn into_failure(self) -> CallError {
        CallError {
            kind: FailureKind::WrongData,
            ..RedisError::from(self).into_failure().after_sending()
        }
    }
}

/// An error of the operating system.
impl ClientError for std::io::Error {
    fn into_failure(self) -> CallError {
        RedisError::from(self).into_failure()
    }
}

pub(super) trait OrFailure<T> {
    fn or_failure(self) -> Result<T, CallError>;
}

impl<T, E: ClientError> OrFailure<T> for Result<T, E> {
    fn or_failure(self) -> Result<T, CallError> {
        self.map_err(E::into_failure)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        StoreError::from(self.clone()).fmt(f)
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        let public = Self::new(error.kind);
        match error.detail {
            Some(detail) => public.with_detail(detail),
            None => public,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_answer_of_another_type_does_not_end_the_connection() {
        let text = redis::Value::BulkString(b"\xff\xfe".to_vec());
        let error = redis::from_redis_value::<String>(text).unwrap_err();
        let error = error.into_failure();
        assert_eq!(error.kind(), FailureKind::WrongData);
        assert!(error.was_sent());
        // Invalid bytes end the connection.
        let garbled = redis::parse_redis_value(b"?\r\n").unwrap_err();
        assert_eq!(kind_of(&garbled), FailureKind::Disconnected);
    }

    /// An error line of the server, parsed by the client library.
    fn server(line: &str) -> CallError {
        let answer = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        answer.extract_error().unwrap_err().into_failure()
    }

    #[test]
    fn each_error_of_the_server_has_a_kind_and_its_message() {
        use FailureKind::*;
        for (line, kind) in [
            ("NOAUTH Authentication required.", Denied),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Denied,
            ),
            (
                "NOPERM User gateway has no permissions to run the 'evalsha' command",
                Denied,
            ),
            ("NOPERM No permissions to access a key", Denied),
            (
                "ERR Error running script (call to f_f00d): @user_script:1: @user_script: 1: The \
                 user executing the script can't run this command or subcommand",
                Denied,
            ),
            (
                "ERR ACL failure in script: User gateway has no permissions to run the 'set' \
                 command script: on @user_script:1.",
                Denied,
            ),
            (
                "ERR The user executing the script can't run this command or subcommand script: \
                 f00d, on @user_script:1.",
                Denied,
            ),
            ("DENIED Redis is running in protected mode", Denied),
            (
                "READONLY You can't write against a read only replica.",
                ReadOnly,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                OutOfMemory,
            ),
            ("LOADING Redis is loading the dataset in memory", Busy),
            (
                "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN \
                 NOSAVE.",
                Busy,
            ),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Busy,
            ),
            ("CLUSTERDOWN Hash slot not served", Busy),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                Busy,
            ),
            ("ERR max number of clients reached", Busy),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                WrongData,
            ),
            ("JUNK under the key lies something else", WrongData),
            ("ERR DB index is out of range", Configuration),
            (
                "ERR this user has no permissions to run the 'select' command",
                Denied,
            ),
            ("NOPROTO unsupported protocol version", Unsupported),
            ("MISCONF Redis is configured to save RDB snapshots", Other),
        ] {
            let error = server(line);
            assert_eq!((error.kind(), error.detail()), (kind, Some(line)));
            assert_eq!(
                StoreError::from(error).to_string(),
                format!("the store failed: {kind}: {line}")
            );
        }
    }

    #[test]
    fn an_error_of_a_cluster_node_names_the_right_url() {
        for line in [
            "MOVED 5474 127.0.0.1:7001",
            "ASK 5474 127.0.0.1:7001",
            "CROSSSLOT Keys in request don't hash to the same slot",
        ] {
            let error = server(line);
            assert_eq!(error.kind(), FailureKind::Configuration);
            let advice = "this server is part of a cluster: use redis+cluster://";
            assert_eq!(error.detail(), Some(&*format!("{line}: {advice}")));
        }
    }

    #[test]
    fn an_error_of_a_single_server_names_the_right_url() {
        let line = "ERR This instance has cluster support disabled";
        let error = server(line);
        assert_eq!(error.kind(), FailureKind::Configuration);
        assert_eq!(error.detail(), Some(&*format!("{line}: use redis://")));
    }

    #[test]
    fn an_error_of_tls_has_its_own_kind() {
        let untrusted = "invalid peer certificate: UnknownIssuer";
        let error = io::Error::new(io::ErrorKind::InvalidData, untrusted).into_failure();
        assert_eq!(error.kind(), FailureKind::Tls);
        assert_eq!(error.detail(), Some(untrusted));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = refused.into_failure();
        assert_eq!(error.kind(), FailureKind::Disconnected);
        assert_eq!(error.detail(), Some("connection refused"));
    }

    #[test]
    fn a_call_that_the_breaker_rejects_has_the_cause() {
        let cause = server("WRONGPASS invalid username-password pair or user is disabled.");
        let rejected = CallError::breaker_open(&cause.after_sending());
        assert_eq!(rejected.kind(), FailureKind::Disconnected);
        assert!(!rejected.was_sent());
        assert_eq!(
            rejected.detail(),
            Some("WRONGPASS invalid username-password pair or user is disabled.")
        );
        let rejected = CallError::breaker_open(&CallError::new(FailureKind::Timeout));
        assert_eq!(rejected.detail(), Some("timeout"));
    }

    #[tokio::test]
    async fn a_panic_becomes_an_error_with_its_message() {
        let words = async |panics: fn()| {
            let payload = tokio::spawn(async move { panics() }).await.unwrap_err();
            let error = CallError::panicked(payload.into_panic());
            assert_eq!(error.kind(), FailureKind::Other);
            error.detail().unwrap().to_owned()
        };
        assert_eq!(
            words(|| panic!("no crypto\nprovider")).await,
            "panicked: no crypto provider"
        );
        let formatted = words(|| panic!("no provider {}", std::hint::black_box(7))).await;
        assert_eq!(formatted, "panicked: no provider 7");
        let other = words(|| std::panic::panic_any(7)).await;
        assert_eq!(other, "panicked: without a message");
        let long = CallError::panicked(Box::new("é".repeat(10_000)));
        assert!(long.detail().unwrap().len() < 400);
    }

    #[test]
    fn an_error_of_the_operating_system_is_not_one_of_tls() {
        use std::io::ErrorKind;

        for (kind, failure) in [
            (ErrorKind::ConnectionRefused, FailureKind::Disconnected),
            (ErrorKind::TimedOut, FailureKind::Timeout),
            (ErrorKind::InvalidData, FailureKind::Tls),
        ] {
            let error = RedisError::from(std::io::Error::from(kind));
            assert_eq!(kind_of(&error), failure, "{kind:?}");
        }
    }
}
