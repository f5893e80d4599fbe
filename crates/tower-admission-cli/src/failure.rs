//! The failure of a command, with its exit code.

use std::process::ExitCode;

/// One line in lower case with the problem and the fix.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    detail: FailureDetail,
}

/// More about a failure, for commands that handle several keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureDetail {
    Other,
    /// The answer is missing, so the server may have made the change.
    Unanswered,
    /// No running service has this name. A service that does not run may have it.
    Unknown,
    /// The failure concerns one limit. Other limits may be accepted.
    OfOne,
}

impl Failure {
    /// The key has no override.
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// The command line is invalid. The code is that of clap.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// This program or the server rejects the input.
    pub(crate) fn rejected(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    /// The server does not answer, or its answer is invalid.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    /// The server does not answer a request that it may have executed.
    pub(crate) fn unanswered(message: impl Into<String>) -> Self {
        Self {
            detail: FailureDetail::Unanswered,
            ..Self::new(4, message)
        }
    }

    /// No running service uses this name.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self {
            detail: FailureDetail::Unknown,
            ..Self::rejected(message)
        }
    }

    /// The server rejects this limit, but may accept others.
    pub(crate) fn single_limit(message: impl Into<String>) -> Self {
        Self {
            detail: FailureDetail::OfOne,
            ..Self::rejected(message)
        }
    }

    /// The result cannot be printed.
    pub(crate) fn unprintable(message: impl Into<String>) -> Self {
        Self::new(5, message)
    }

    /// Puts the subject before the message.
    pub(crate) fn about(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// Adds a warning if the change may be made.
    pub(crate) fn of_a_change(mut self) -> Self {
        if self.is_unanswered() {
            self.message += "; the change may be made: check before you repeat it";
        }
        self
    }

    /// Whether the server may have made the change.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.detail == FailureDetail::Unanswered
    }

    /// Whether the only problem is that no running service uses the name.
    pub(crate) fn is_unknown(&self) -> bool {
        self.detail == FailureDetail::Unknown
    }

    /// Whether other limits may be accepted.
    pub(crate) fn is_single_limit(&self) -> bool {
        self.detail == FailureDetail::OfOne
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: FailureDetail::Other,
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        self.code.into()
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}
