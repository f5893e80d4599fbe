//! Why a command was not done, and its exit code.

use std::process::ExitCode;

/// One line, in lower case, that says what and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    sort: Sort,
}

/// What else can be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Other,
    /// The server may have done it, as its answer is missing.
    Unanswered,
    /// No service that runs has what is named; one that does not run may.
    Unknown,
    /// It is about this one limit: others may be accepted.
    OfOne,
}

impl Failure {
    /// The key has nothing of its own.
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// The command line is wrong, with the code that clap has for it.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// What was given is rejected, here or by the server.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    /// The server says nothing, or nothing of use.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    /// The same after something was sent: it may have been done.
    pub(crate) fn unanswered(message: impl Into<String>) -> Self {
        Self {
            sort: Sort::Unanswered,
            ..Self::new(4, message)
        }
    }

    /// No service that runs goes by it.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self {
            sort: Sort::Unknown,
            ..Self::refused(message)
        }
    }

    /// The server rejects this one, and not whatever it is asked for.
    pub(crate) fn of_one(message: impl Into<String>) -> Self {
        Self {
            sort: Sort::OfOne,
            ..Self::refused(message)
        }
    }

    /// What was done could not be printed.
    pub(crate) fn unwritten(message: impl Into<String>) -> Self {
        Self::new(5, message)
    }

    /// Names what it is about.
    pub(crate) fn about(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// The failure of a change, which may have been made.
    pub(crate) fn of_change(mut self) -> Self {
        if self.is_unanswered() {
            self.message += "; the change may have been made: look before you repeat it";
        }
        self
    }

    /// Whether the server may have done it.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.sort == Sort::Unanswered
    }

    /// Whether it is only that no service that runs goes by it.
    pub(crate) fn is_unknown(&self) -> bool {
        self.sort == Sort::Unknown
    }

    /// Whether another limit may be accepted.
    pub(crate) fn is_of_one(&self) -> bool {
        self.sort == Sort::OfOne
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            sort: Sort::Other,
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        self.code.into()
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}
