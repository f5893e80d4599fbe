//! What can go wrong with Redis, and who is told.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{ErrorKind, ParsingError, RedisError, ServerErrorKind};

/// What went wrong with a call to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// There is no connection.
    Disconnected,
    /// No answer within the deadline.
    Timeout,
    /// As many calls are under way as may be.
    Overloaded,
    /// The server refuses the credentials, or does not allow this user the commands.
    Denied,
    /// The server is a replica.
    ReadOnly,
    /// The server has no memory for it, and evicts nothing.
    OutOfMemory,
    /// The server is busy: it loads its data, runs a script that does not end, or its part of the
    /// cluster is down.
    Busy,
    /// Under the key lies something that this crate did not write.
    WrongData,
    /// The server is older than Redis 6.2.
    TooOld,
    /// The URL cannot be used.
    Configuration,
    /// Something else; the log line has the server's words.
    Other,
}

impl FailureKind {
    /// A word for logs and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Denied => "denied",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Busy => "busy",
            Self::WrongData => "wrong_data",
            Self::TooOld => "too_old",
            Self::Configuration => "configuration",
            Self::Other => "other",
        }
    }

    /// What an error of the client's stands for.
    pub(super) fn of(error: &RedisError) -> Self {
        // Codes that the client has no kind for.
        match error.code() {
            Some("OOM") => return Self::OutOfMemory,
            Some("BUSY") => return Self::Busy,
            Some("NOAUTH" | "WRONGPASS") => return Self::Denied,
            Some("WRONGTYPE" | "JUNK") => return Self::WrongData,
            _ => {}
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
                Self::Denied
            }
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Self::ReadOnly,
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain,
            ) => Self::Busy,
            ErrorKind::InvalidClientConfig => Self::Configuration,
            ErrorKind::UnexpectedReturnType => Self::WrongData,
            _ if error.is_timeout() => Self::Timeout,
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => {
                Self::Disconnected
            }
            _ => Self::Other,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call to a store that failed.
///
/// Says what kind of failure it was, and in the server's words why. Holds no key.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: FailureKind,
    source: Option<RedisError>,
    /// Whether anything was sent: the server may have done what it was asked to.
    was_sent: bool,
}

impl StoreError {
    pub(super) fn new(kind: FailureKind) -> Self {
        Self {
            kind,
            source: None,
            was_sent: false,
        }
    }

    pub(super) fn after_sending(mut self) -> Self {
        self.was_sent = true;
        self
    }

    pub(super) fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// Whether the server does not know a script yet.
    pub(super) fn is_no_script(&self) -> bool {
        let kind = self.source.as_ref().map(RedisError::kind);
        kind == Some(ErrorKind::Server(ServerErrorKind::NoScript))
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self {
            kind: FailureKind::of(&error),
            source: Some(error),
            was_sent: false,
        }
    }
}

/// An answer that arrived and is not what was asked for: the connection is none the worse. (Of an
/// answer that cannot be told from the next one the client says so itself, in a [`RedisError`].)
impl From<ParsingError> for StoreError {
    fn from(error: ParsingError) -> Self {
        Self {
            kind: FailureKind::WrongData,
            source: Some(error.into()),
            was_sent: true,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store failed: {}", self.kind)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_ref()?;
        Some(source)
    }
}

/// Sees how a store that is somewhere else fares. Every hook does nothing unless it is written.
#[diagnostic::on_unimplemented(note = "implement `StoreObserver` and write the hooks you need")]
pub trait StoreObserver: Send + Sync + 'static {
    /// A call failed, or was not made because calls fail; the failure mode decided.
    fn failed(&self, kind: FailureKind) {
        let _ = kind;
    }

    /// The store can be reached again, or no longer.
    fn reachable(&self, reachable: bool) {
        let _ = reachable;
    }

    /// A key that was denied was denied again, without a call.
    fn denied_from_cache(&self) {}
}

impl<O: StoreObserver + ?Sized> StoreObserver for Arc<O> {
    fn failed(&self, kind: FailureKind) {
        (**self).failed(kind);
    }

    fn reachable(&self, reachable: bool) {
        (**self).reachable(reachable);
    }

    fn denied_from_cache(&self) {
        (**self).denied_from_cache();
    }
}

/// Tells observers and, at most once a second, the log.
#[derive(Clone, Default)]
pub(super) struct Events {
    observers: Vec<Arc<dyn StoreObserver>>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    /// When the next line may be written, in milliseconds on the client's clock.
    next: AtomicU64,
    /// Failures since the last line.
    silent: AtomicU64,
}

const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Events {
    pub(super) fn add(&mut self, observer: impl StoreObserver) {
        self.observers.push(Arc::new(observer));
    }

    pub(super) fn failed(&self, error: &StoreError, now: Duration) {
        for observer in &self.observers {
            observer.failed(error.kind());
        }
        if let Some(silent) = self.log.line(now) {
            log(error, silent);
        }
    }

    pub(super) fn reachable(&self, reachable: bool) {
        for observer in &self.observers {
            observer.reachable(reachable);
        }
    }

    pub(super) fn denied_from_cache(&self) {
        for observer in &self.observers {
            observer.denied_from_cache();
        }
    }
}

impl Log {
    /// Whether a line may be written now; and how many failures had none since the last.
    fn line(&self, now: Duration) -> Option<u64> {
        let now = now.as_millis() as u64;
        let next = self.next.load(Ordering::Relaxed);
        let interval = LOG_INTERVAL.as_millis() as u64;
        let ours = now >= next
            && self
                .next
                .compare_exchange(next, now + interval, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if ours {
            Some(self.silent.swap(0, Ordering::Relaxed))
        } else {
            self.silent.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

fn log(error: &StoreError, silent: u64) {
    // The source may quote the command's arguments where a key of the wrong type is named; Redis
    // itself names none.
    let source = error.source.as_ref().and_then(RedisError::code);
    tracing::warn!(
        kind = error.kind.as_str(),
        code = source,
        since_last_line = silent,
        "calls to Redis fail; the failure mode decides"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_type_is_no_lost_connection() {
        let text = redis::Value::BulkString(b"\xff\xfe".to_vec());
        let error = redis::from_redis_value::<String>(text).unwrap_err();
        let error = StoreError::from(error);
        assert_eq!(error.kind(), FailureKind::WrongData);
        assert!(error.was_sent());
        // Unlike bytes that are no answer.
        let garbled = redis::parse_redis_value(b"?\r\n").unwrap_err();
        assert_eq!(FailureKind::of(&garbled), FailureKind::Disconnected);
    }

    #[test]
    fn one_line_a_second() {
        let log = Log::default();
        let at = Duration::from_millis;
        assert_eq!(log.line(at(0)), Some(0));
        assert_eq!(log.line(at(1)), None);
        assert_eq!(log.line(at(999)), None);
        assert_eq!(log.line(at(1000)), Some(2));
        assert_eq!(log.line(at(1001)), None);
    }
}
